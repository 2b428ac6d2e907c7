"""Formatting of figures."""

import pytest

from infini.evaluation.estimates import Estimate
from infini.report.cells import Cell, show, show_change, show_estimate


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (32.4567, 0.3512, "32.46 ± 0.35"),
        (0.00533866, 0.00132778, "0.0053 ± 0.0013"),
        (5, 0.0995, "5.00 ± 0.10"),
        (-3.077, 0.051, "−3.077 ± 0.051"),
        (-0.002, 0.16, "0.00 ± 0.16"),
        (12508.7, 1873.11, "12,509 ± 1,873"),
        (1566720, None, "1,566,720"),
        (12508.7, None, "12,509"),
        (235.042, None, "235.0"),
        (64.0, float("nan"), "64"),
        (0.0, 0.0, "0"),
        (-0.16, None, "−0.1600"),
        (1.5e-7, None, "1.500e-07"),
        (float("nan"), None, "–"),
    ],
)
def test_show_estimate_rounds_to_the_error(value: float, error: float | None, text: str) -> None:
    assert show_estimate(Estimate(value, error)) == text


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, "–"),
        ("words", "words"),
        (True, "yes"),
        (7, "7"),
        (Estimate(0.05, 0.01, difference=True), "0.050 ± 0.010"),
        (Estimate(0.0199, 0.01, difference=True), "0.020 ± 0.010 ~"),
        (Estimate(-0.0199, 0.01, difference=True), "−0.020 ± 0.010 ~"),
        (Estimate(0.02, 0.01, difference=False), "0.020 ± 0.010"),
        (Estimate(0.5, None, difference=True), "0.5000 ~"),
        (Estimate(0.0, 0.0, difference=True), "0"),
    ],
)
def test_show_marks_differences_within_two_errors(cell: Cell, text: str) -> None:
    assert show(cell) == text


@pytest.mark.parametrize(
    ("first", "last", "text"),
    [
        (Estimate(40.0), Estimate(30.0), "−25.0 %"),
        (Estimate(10), Estimate(25), "+15"),
        (Estimate(0.1, difference=True), Estimate(0.3, difference=True), "+0.2"),
        (Estimate(-2.0), Estimate(1.0), "+3"),
        (None, Estimate(1.0), "–"),
        (Estimate(1.0), None, "–"),
    ],
)
def test_show_change_is_relative_where_it_has_a_meaning(
    first: Estimate | None, last: Estimate | None, text: str
) -> None:
    assert show_change(first, last) == text
