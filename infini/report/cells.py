"""Formatting of figures for tables and verdicts."""

import math

from uncertainties import ufloat

from infini.evaluation.estimates import Estimate

MISSING = "–"
LEGEND = (
    "Figures are of held-out test text. ± is one standard error, over texts and seeds; of "
    "differences it is paired by document, and ~ marks those within two standard errors of zero. "
    "The repository's `docs/glossary.md` defines all terms."
)

Cell = Estimate | float | int | str | None


def show(cell: Cell) -> str:
    """Format a table's cell."""
    if isinstance(cell, Estimate):
        text = show_estimate(cell)
        return f"{text} ~" if cell.difference and cell.is_noise else text
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return cell if isinstance(cell, str) else show_number(cell)


def show_estimate(estimate: Estimate) -> str:
    """Format a figure, with two digits of its standard error where it has one: `32.46 ± 0.35`."""
    error = estimate.error
    if error is None or not math.isfinite(error) or error <= 0:
        return show_number(estimate.value)
    value, _, error_text = f"{ufloat(estimate.value, error):,.2ufP}".partition("±")
    if not any(digit in value for digit in "123456789"):
        value = value.removeprefix("-")  # no minus before zero
    return _with_minus(f"{value} ± {error_text}")


def show_number(value: float | None) -> str:
    """Format a number with four significant digits; whole numbers and thousands in full."""
    if value is None or math.isnan(value):
        return MISSING
    if isinstance(value, int) or abs(value) >= 1000:
        return _with_minus(f"{value:,.0f}")
    return _with_minus(f"{value + 0.0:.0f}" if float(value).is_integer() else f"{value:#.4g}")


def show_change(first: Estimate | None, last: Estimate | None) -> str:
    """Format the change between two figures: in per cent where it has a meaning."""
    if first is None or last is None:
        return MISSING
    counts = isinstance(first.value, int) and isinstance(last.value, int)
    if counts or first.difference or first.value <= 0:
        text = f"{last.value - first.value:+,.4g}"
    else:
        text = f"{100 * (last.value / first.value - 1):+,.1f} %"
    return _with_minus(text)


def _with_minus(number: str) -> str:
    """Replace hyphens by minus signs, but in exponents."""
    return number if "e" in number else number.replace("-", "−")
