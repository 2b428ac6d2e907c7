"""Gains over the baseline and the control, and when a version beats both."""

import pandas as pd
import pytest

from infini.evaluation.baselines import gains_over_baselines


def losses_of(nats: dict[str, list[float]]) -> pd.DataFrame:
    """Return a loss table of 10 tokens per document; nats: per token, by protocol."""
    rows = [
        {"protocol": p, "piece": i, "text": i, "bytes": 40, "tokens": 10, "nats": 10 * value}
        for p, values in nats.items()
        for i, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("window", "control", "beats_both"),
    [(3.2, 3.1, 1), (3.2, None, 0), (2.9, 3.1, 0), (3.2, 2.9, 0), (3.2, "noisy", 0)],
)
def test_beats_both_needs_both_gains_above_two_errors(
    window: float, control: float | str | None, beats_both: int
) -> None:
    ours = [3.0, 3.01, 2.99, 3.0]
    table = {
        "documents": ours, "memory_off": [3.3] * 4, "memory_swapped": [3.2] * 4,
        "baseline": [window + 0.001 * i for i in range(4)],
    }  # fmt: skip
    if control is not None:
        values = [3.1, 2.95, 3.2, 2.9] if control == "noisy" else [control] * 4
        table["control"] = values
    base = losses_of({"segmented": [3.5] * 4, "full": [2.9] * 4})
    found = gains_over_baselines(losses_of(table), base)
    assert found["beats_both"] == beats_both
    assert ("recovery" in found) == ("control" in found) == (control is not None)
    if (window, control) == (3.2, 3.1):
        assert found["recovery"]["share"] == pytest.approx(0.1 / 0.3015, rel=1e-4)
