"""Curves: every row of the table against the estimate that it stands for."""

import math

import pandas as pd
import pytest

from infini.evaluation.curves import curve_table
from infini.evaluation.estimates import curve, difference, difference_curve, rows_of_protocol


def losses(seed: int = 0, **nats: float) -> pd.DataFrame:
    """Return loss tables of three documents; nats: per token, by protocol."""
    rows = [
        {
            "protocol": protocol, "piece": text, "text": text, "bytes": 40, "segment": segment,
            "distance": 2**segment, "tokens": 10, "seed": seed,
            "nats": 10 * (value + 0.1 * text + 0.01 * segment * text),
        }
        for protocol, value in nats.items() for text in range(3) for segment in range(2)
    ]  # fmt: skip
    return pd.DataFrame(rows)


QUESTIONS = pd.DataFrame(
    {
        "text": [0, 1, 2, 3, 4],
        "task": ["passkey"] * 3 + ["recall"] * 2,
        "segments": [2, 2, 8, 4, 4],
        "pairs": [1, 1, 1, 4, 16],
        "depth": [0.0, 0.5, 0.0, 0.1, 0.2],
        "distance": [400, 200, 300, 130, 500],
        "log_prob": [-1.0, -2.0, -3.0, -4.0, -5.0],
        "log_prob_off": [-2.0, -2.5, -6.0, -4.0, -4.0],
        "exact": [1.0, 0.0, 0.0, 1.0, 0.0],
        "exact_full": [1.0, 1.0, None, None, None],
    }
)
NO_GATES = pd.DataFrame(columns=["layer", "head", "gate", "seed"])
BASE = losses(segmented=3.6, full=3.4, window_16=3.5)
BASE_METRICS = {
    "state_bytes": {"total": 100},
    "window_16": {"state_bytes": 50, "nats": 3.5},
    "full": {"state_bytes": 900},
}


def points(table: pd.DataFrame, name: str) -> dict[tuple[float | str, ...], float]:
    rows = table[table["curve"] == name]
    return {(x, series): value for x, series, value in rows[["x", "series", "value"]].to_numpy()}


def test_curve_table_of_the_base() -> None:
    table = curve_table(BASE_METRICS, BASE, QUESTIONS, NO_GATES)
    full, segmented = (rows_of_protocol(BASE, name) for name in ("full", "segmented"))
    for by in ("segment", "distance"):
        assert points(table, f"ppl_by_{by}") == {
            (x, name): estimate.value
            for name, rows in (("segmented", segmented), ("full", full))
            for x, estimate in curve(rows, by).items()
        }
        assert points(table, f"nats_vs_segmented_by_{by}") == {
            (x, "full"): estimate.value
            for x, estimate in difference_curve(full, segmented, by).items()
        }
    assert points(table, "nats_vs_full_by_state_bytes") == pytest.approx(
        {(100, "segmented"): 0.2, (50, "window_16"): 0.1}
    )
    assert points(table, "passkey_exact_by_distance") == {
        (128, "segmented"): 0.0, (256, "segmented"): 0.5, (128, "full"): 1.0, (256, "full"): 1.0
    }  # fmt: skip
    assert points(table, "passkey_gain_by_depth") == points(table, "gate") == {}


def test_curve_table_of_a_version_averages_seeds() -> None:
    ours = pd.concat([losses(0, documents=3.5, control=3.7), losses(1, documents=3.3, control=3.7)])
    gates = pd.DataFrame(
        {
            "layer": [0, 0, 0, 0],
            "head": [0, 1, 0, 1],
            "gate": [0.5, 0.4, 0.7, 0.4],
            "seed": [0, 0, 1, 1],
        }
    )
    metrics = {"state_bytes": {"total": 70}}
    table = curve_table(metrics, ours, QUESTIONS, gates, BASE.drop(columns="seed"))
    joined = losses(documents=3.4)
    segments = table[table["curve"] == "ppl_by_segment"]
    expected = curve(joined, "segment")
    assert segments["value"].tolist() == pytest.approx([e.value for e in expected])
    assert segments["se"].tolist() == pytest.approx([e.error for e in expected])
    assert set(segments["series"]) == {"documents"}
    assert points(table, "nats_vs_segmented_by_distance") == pytest.approx(
        {(1, "documents"): -0.2, (2, "documents"): -0.2}
    )
    full = rows_of_protocol(BASE, "full")
    assert points(table, "nats_vs_full_by_state_bytes") == pytest.approx(
        {
            (70, "documents"): difference(joined, full).value,
            (70, "control"): difference(losses(control=3.7), full).value,
        }
    )
    assert points(table, "passkey_exact_by_distance") == {
        (128, "documents"): 0.0, (256, "documents"): 0.5
    }  # fmt: skip
    assert points(table, "recall_exact_by_pairs") == {(4, "documents"): 1, (16, "documents"): 0}
    assert points(table, "recall_exact_by_distance") == {
        (128, "documents"): 1,
        (256, "documents"): 0,
    }
    assert points(table, "passkey_gain_by_depth") == {
        (0.0, "2 segments"): 1.0, (0.5, "2 segments"): 0.5, (0.0, "8 segments"): 3.0
    }  # fmt: skip
    assert points(table, "gate") == pytest.approx({(0, "layer 0"): 0.6, (1, "layer 0"): 0.4})
    errors = table[table["curve"] == "gate"]["se"].tolist()
    assert errors == pytest.approx([0.2 / math.sqrt(2), 0.0])


def test_curve_table_without_questions() -> None:
    table = curve_table(
        {"state_bytes": {"total": 1}}, losses(documents=3.0), pd.DataFrame(), NO_GATES, BASE
    )
    assert not table["curve"].str.contains("exact|gain|gate").any()
