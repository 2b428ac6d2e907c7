"""Figures and how sure they are, as tables print them."""

import math
from typing import Any, NamedTuple


class Figure(NamedTuple):
    """A metric and its error, if there is one: over seeds, else over test texts."""

    value: float
    error: float | None = None


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def figures(metrics: dict[str, Any]) -> dict[str, Figure]:
    """Every metric under its dotted key, with its `spread` over seeds or its `_se` over texts."""
    flat = flatten({key: value for key, value in metrics.items() if key != "spread"})
    spread = flatten(metrics.get("spread", {}))
    return {
        key: Figure(value, spread.get(key, flat.get(f"{key}_se")))
        for key, value in flat.items()
        if not key.endswith("_se")
    }


def show(value: Any, error: float | None = None) -> str:
    """ "32.46 ± 0.35": the error's two leading digits decide; without one at most six digits."""
    if value is None or value != value:
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    if error is not None and math.isfinite(error) and error > 0:
        places = 1 - math.floor(math.log10(error))
        parts = (f"{round(x, places):,.{max(0, places)}f}" for x in (value, error))
        return " ± ".join(parts).replace("-", "−")
    if isinstance(value, int):
        text = f"{value:,}"
    else:
        text = f"{value:,.4f}" if 0.01 <= abs(value) < 100 else f"{value:,.6g}"
    return text.replace("-", "−") if "e" not in text else text


def is_noise(difference: float, error: float | None) -> bool:
    """Whether a difference is within two of its errors of none."""
    return error is not None and error > 0 and abs(difference) <= 2 * error


def change(first: Figure | None, last: Figure | None) -> str:
    """What became of a figure: a difference for counts, per cent for the rest; noise is named."""
    if first is None or last is None:
        return "–"
    difference = last.value - first.value
    if isinstance(first.value, int) and isinstance(last.value, int):
        text = f"{difference:+,}"
    elif first.value > 0:
        text = f"{100 * difference / first.value:+,.1f} %"
    else:
        text = f"{difference:+.4g}"
    noise = False
    if first.error is not None and last.error is not None:
        noise = is_noise(difference, math.hypot(first.error, last.error))
    return text.replace("-", "−") + (" (within noise)" if noise and difference else "")
