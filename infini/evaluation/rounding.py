"""Committed figures, rounded to what a rerun on another CPU reproduces.

A figure with an error (over texts, seeds or both) ends at the third significant digit of that
error, at most at the fifth decimal; one without has four significant digits, and in the curves at
most four decimals. Whole numbers stay.
A figure within one unit of the last digit of the one committed at Git's HEAD is written as
committed, so that a rerun leaves the working tree clean.
"""

import json
import math
import subprocess
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from infini.files import flatten, read_csv, write_json

ERROR_DIGITS, MOST_DECIMALS = 3, 5  # of a figure with an error


class Digits(NamedTuple):
    """Digits of a figure without an error."""

    significant: int = 4
    decimals: int | None = None  # at most; None: as many as the significant digits have


DEFAULT_DIGITS = Digits()


def write_metrics(file: Path, metrics: dict[str, Any]) -> None:
    """Write rounded metrics as JSON.

    Raises:
        InputError: If a figure is not finite; nothing is written.
    """
    committed: Any = {}
    with suppress(ValueError):  # the committed file is no JSON: nothing to compare with
        committed = json.loads(committed_text(file) or "{}")
    write_json(file, round_metrics(metrics, committed if isinstance(committed, dict) else {}))


def write_rounded_csv(
    file: Path,
    table: pd.DataFrame,
    keys: list[str],
    errors: dict[str, str] | None = None,
    digits: Digits = DEFAULT_DIGITS,
) -> None:
    """Write a rounded table as CSV.

    Args:
        file: Path of the file; missing folders are created.
        table: The table; an empty cell is no figure.
        keys: Columns that identify a row and are not rounded.
        errors: Name of a column of figures -> name of the column of their errors.
        digits: Of a figure without an error.
    """
    committed = table[:0]
    with suppress(ValueError):  # the committed file is no CSV: nothing to compare with
        committed = read_csv(StringIO(committed_text(file) or ""))
    file.parent.mkdir(parents=True, exist_ok=True)
    rounded = round_table(table, committed, keys, errors or {}, digits)
    rounded.to_csv(file, index=False)


def committed_text(file: Path) -> str | None:
    """Return the content that a file has at Git's HEAD; None without Git or if it is new."""
    command = ["git", "show", f"HEAD:./{file.as_posix()}"]
    try:
        shown = subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return shown.stdout.decode()


def round_metrics(metrics: dict[str, Any], committed: dict[str, Any]) -> dict[str, Any]:
    """Round nested metrics, whose errors are <name>_se and the same name below `spread`.

    Args:
        metrics: What a stage computed.
        committed: The same metrics as they are committed; empty: none are.

    Returns:
        `metrics` with the figures as they are to be written.
    """
    flat, known = flatten(metrics), flatten(committed)
    written = dict(flat)
    for name, value in flat.items():
        if name.startswith("spread.") or name.removesuffix("_se") in flat.keys() - {name}:
            continue  # an error, which is rounded with its figure
        names = [key for key in (f"{name}_se", f"spread.{name}") if key in flat]
        figures = round_figures(
            [value, *(flat[key] for key in names)], [known.get(key) for key in (name, *names)]
        )
        written |= zip((name, *names), figures, strict=True)
    return _with_values(metrics, written)


def round_table(
    table: pd.DataFrame,
    committed: pd.DataFrame,
    keys: list[str],
    errors: dict[str, str],
    digits: Digits = DEFAULT_DIGITS,
) -> pd.DataFrame:
    """Round a table's figures, row by row; see `write_rounded_csv`."""
    known = {}
    if set(table.columns) == set(committed.columns):
        known = {tuple(map(str, _numbers(row, keys))): row for row in committed.to_dict("records")}
    rows = table.to_dict("records")
    for row in rows:
        before = known.get(tuple(map(str, _numbers(row, keys))), {})
        for name in table.columns:
            if name in keys or name in errors.values() or _missing(row[name]):
                continue
            names = [name, *([errors[name]] if not _missing(row.get(errors.get(name))) else [])]
            figures = round_figures(
                [row[key] for key in names],
                [None if _missing(before.get(key)) else before[key] for key in names],
                digits,
            )
            row |= zip(names, figures, strict=True)
    return pd.DataFrame(rows, columns=table.columns, dtype=object)  # whole numbers stay int


def round_figures(
    figures: list[Any],
    committed: list[Any],
    digits: Digits = DEFAULT_DIGITS,
) -> list[Any]:
    """Round a figure and its errors to the same decimal place.

    Args:
        figures: The figure, then its errors, if any.
        committed: The same as they are committed; None: not committed.
        digits: Of a figure without an error.

    Returns:
        Each as committed where it is within one unit of the last digit, else rounded. What is no
        finite float stays.
    """
    value, *errors = figures
    if not isinstance(value, float) or not all(map(math.isfinite, figures)):
        return figures
    error = math.hypot(*errors)
    known = math.hypot(*(x for x in committed[1:] if isinstance(x, int | float)))
    if known > 0 and abs(error - known) <= _unit(value, error, digits):
        error = known  # or errors of 0.0999 and 0.1001 would end at different places
    unit = _unit(value, error, digits)
    return [
        before
        if isinstance(before, int | float) and abs(figure - before) <= unit * (1 + 1e-6)
        else round(figure, -round(math.log10(unit))) + 0.0  # no minus before zero
        for figure, before in zip(figures, committed, strict=True)
    ]


def _unit(value: float, error: float, digits: Digits) -> float:
    """Return the unit of the last digit that is written."""
    if error > 0:
        return 10.0 ** max(-MOST_DECIMALS, _exponent(error, ERROR_DIGITS) - ERROR_DIGITS + 1)
    exponent = _exponent(value, digits.significant) - digits.significant + 1
    return 10.0 ** (exponent if digits.decimals is None else max(-digits.decimals, exponent))


def _exponent(number: float, digits: int) -> int:
    """Return the decimal exponent of a number rounded to so many significant digits."""
    return int(f"{number:.{digits - 1}e}".partition("e")[2])


def _with_values(tree: dict[str, Any], flat: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the tree with its leaves taken from `flat`, keys joined by dots."""
    return {
        key: _with_values(value, flat, f"{prefix}{key}.")
        if isinstance(value, dict)
        else flat[f"{prefix}{key}"]
        for key, value in tree.items()
    }


def _numbers(row: dict[Any, Any], keys: list[str]) -> list[Any]:
    """Return a row's keys; a whole number is the same as int and as float."""
    return [float(row[key]) if isinstance(row[key], int) else row[key] for key in keys]


def _missing(cell: Any) -> bool:
    """Return whether a cell is empty."""
    return cell is None or cell != cell
