"""Cells: how they are printed, and what they are sorted by."""

import pytest

from infini.evaluation.estimates import Estimate
from infini.report.cells import Cell, Change, Rounded, show, show_estimate, sort_key


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (12345, "12,345"),
        (-3, "−3"),
        (0.01, "0.01"),
        (0.0, "0"),
        (1e-5, "1e-05"),
        (1234.5, "1,234.5"),
        (True, "yes"),
        (False, "no"),
        ("a word", "a word"),
        (Rounded(12.3, 2), "12.30"),
        (Rounded(1234.56, 1), "1,234.6"),
    ],
)
def test_plain_cells(cell: Cell, shown: str) -> None:
    assert show(cell) == shown


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (float("nan"), None, "–"),
        (12345, None, "12,345"),
        (1e-5, None, "1e-05"),
        (19701.123, None, "19,701.1"),
        (-0.5, None, "−0.5000"),
        (32.4613, 0.3512, "32.46 ± 0.35"),
        (12508.7, 310.0, "12,510 ± 310"),
        (-0.012345, 0.00234, "−0.0123 ± 0.0023"),
        (1.0, float("nan"), "1.0000"),
        (2.0, 0.0, "2.0000"),
        (-0.00002, 0.0011, "0.0000 ± 0.0011"),
    ],
)
def test_estimates(value: float, error: float | None, shown: str) -> None:
    assert show(Estimate(value, error)) == shown


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (3.029, 0.0995, "3.03 ± 0.10"),
        (3.029, 0.0994, "3.029 ± 0.099"),
        (31.06, 0.996, "31.1 ± 1.0"),
        (31.06, 9.96, "31 ± 10"),
        (12508.7, 996.0, "12,500 ± 1,000"),
    ],
)
def test_an_error_that_rounds_up_to_a_new_digit_shows_two(
    value: float, error: float, shown: str
) -> None:
    assert show(Estimate(value, error)) == shown


def test_only_differences_are_marked_as_noise() -> None:
    assert show(Estimate(0.1, 0.2, difference=True)) == "0.10 ± 0.20 ~"
    assert show(Estimate(0.5, 0.2, difference=True)) == "0.50 ± 0.20"
    assert show(Estimate(0.1, 0.2)) == "0.10 ± 0.20"
    assert show(Estimate(float("nan"), difference=True)) == "–"
    assert show_estimate(Estimate(0.1, 0.2, difference=True)) == "0.10 ± 0.20"


@pytest.mark.parametrize(
    ("first", "last", "shown"),
    [
        (Estimate(10), Estimate(50), "+40"),
        (Estimate(20.0), Estimate(10.0), "−50.0 %"),
        (Estimate(10.0, 1.0), Estimate(11.0, 1.0), "+10.0 %"),
        (Estimate(0.01, 0.1, True), Estimate(0.03, 0.1, True), "+0.02"),
        (Estimate(-100.0, 1.0, True), Estimate(1900.0, 1.0, True), "+2,000"),
        (Estimate(-1.0, 0.1), Estimate(-2.0, 0.1), "−1"),
        (None, Estimate(1.0), "–"),
    ],
)
def test_changes(first: Estimate | None, last: Estimate | None, shown: str) -> None:
    assert show(Change(first, last)) == shown


@pytest.mark.parametrize(
    ("cell", "key"),
    [
        (Estimate(32.4613, 0.35), "32.4613"),
        (Estimate(-0.0123, 0.0017, difference=True), "-0.0123"),
        (Estimate(float("nan")), ""),
        (Change(Estimate(200.0), Estimate(189.0)), "-5.5"),
        (Change(Estimate(10), Estimate(13)), "3.0"),
        (Change(None, Estimate(13)), ""),
        (1234.5, "1234.5"),
        (float("inf"), ""),
        (Rounded(12.345, 1), "12.345"),
        (25165824, "25165824.0"),
        (True, "1.0"),
        (None, ""),
        ("2.13.0+cpu", "2.13.0+cpu"),
    ],
)
def test_cells_are_sorted_by_their_values(cell: Cell, key: str) -> None:
    assert sort_key(cell) == key
