"""What a table's cells are, how they are printed, and what they are sorted by."""

import math
from typing import NamedTuple

from infini.evaluation.estimates import Estimate

MISSING = "–"
NOISE = " ~"  # behind a difference that noise may explain
LEGEND = (
    "± is one standard error over test texts, paired where it is a difference; with several seeds "
    "the standard deviation over seeds is in it too (their squares add up). ~ marks a difference "
    "within two errors of none: noise."
)


class Change(NamedTuple):
    """From a figure to another, in per cent; of counts and of differences, which may be near none,
    what the last is above the first.

    It has no error: both are of the same texts, so that the errors of the two say little of it.
    """

    first: Estimate | None
    last: Estimate | None


class Rounded(NamedTuple):
    """A number printed with so many decimal places."""

    value: float
    places: int


Cell = Estimate | Change | Rounded | int | float | str | bool | None


def show(cell: Cell) -> str:
    """A cell as it is printed."""
    if isinstance(cell, Change):
        return _show_change(cell)
    if isinstance(cell, Estimate):
        text = show_estimate(cell)
        return text + NOISE if cell.difference and cell.is_noise and text != MISSING else text
    if isinstance(cell, Rounded):
        return _minus(f"{cell.value:,.{cell.places}f}")
    if cell is None or cell != cell:
        return MISSING
    if isinstance(cell, str):
        return cell
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return _minus(f"{cell:,}" if _is_count(cell) else f"{cell:,g}")


def show_estimate(estimate: Estimate) -> str:
    """ "32.46 ± 0.35": the error's two leading digits decide; without one at most six digits."""
    value, error = estimate.value, estimate.error
    if value != value:
        return MISSING
    if error is not None and math.isfinite(error) and error > 0:
        # The exponent of the error as it is printed: 0.0995 becomes 0.10, not 0.100.
        places = 1 - int(f"{error:.1e}".partition("e")[2])
        both = (round(x, places) + 0.0 for x in (value, error))  # + 0.0: no minus before zero
        return " ± ".join(_minus(f"{x:,.{max(0, places)}f}") for x in both)
    if _is_count(value):
        return _minus(f"{value:,}")
    return _minus(f"{value:,.4f}" if 0.01 <= abs(value) < 100 else f"{value:,.6g}")


def sort_key(cell: Cell) -> str:
    """What a cell is sorted by: a number as JavaScript reads it, a text, or nothing if missing."""
    if isinstance(cell, Change):
        cell = None if None in cell else _amount(cell)[0]
    elif isinstance(cell, Estimate | Rounded):
        cell = cell.value
    if isinstance(cell, str):
        return cell
    return "" if cell is None or not math.isfinite(cell) else repr(float(cell))


def _show_change(change: Change) -> str:
    first, last = change
    if first is None or last is None:
        return MISSING
    amount, form = _amount(change)
    return _minus(form.format(amount))


def _amount(change: Change) -> tuple[float, str]:
    """A change between two known figures, and its format."""
    known = [estimate for estimate in change if estimate is not None]
    first, last = (estimate.value for estimate in known)
    if _is_count(first) and _is_count(last):
        return last - first, "{:+,}"
    if first > 0 and not any(estimate.difference for estimate in known):
        return 100 * (last - first) / first, "{:+,.1f} %"
    return last - first, "{:+,.4g}"


def _is_count(value: float) -> bool:
    return isinstance(value, int)


def _minus(number: str) -> str:
    """With a minus sign for the hyphen, but for a power of ten."""
    return number if "e" in number else number.replace("-", "−")
