"""The base's window curve: what it reads at so many bytes, and what bytes a reading needs."""

import math

import pytest

from infini.evaluation.estimates import estimates_of
from infini.report.window_curve import WindowCurve
from report.toy_results import BASE, CURVE, TOKEN, window


def test_its_points_go_from_the_smallest_window_to_full_attention() -> None:
    assert [(p.name, p.carried, p.nats.value) for p in CURVE.points] == [
        ("16", 20 * TOKEN, 3.9),
        ("64", 68 * TOKEN, 3.65),
        ("256", 260 * TOKEN, 3.6),
        ("full", 1024 * TOKEN, math.log(36.0)),
    ]
    assert [p.protocol for p in CURVE.points] == ["window16", "window64", "window256", "full"]


def test_between_two_windows_it_is_straight_in_the_logarithm_of_bytes() -> None:
    middle = math.sqrt(20 * 68) * TOKEN
    assert CURVE.nats_at(middle) == pytest.approx((3.9 + 3.65) / 2)
    assert CURVE.bytes_to_read((3.9 + 3.65) / 2) == pytest.approx(middle)
    assert [CURVE.nats_at(x) for x in (1, 1e12)] == pytest.approx([3.9, math.log(36.0)])
    for point in CURVE.points:
        assert CURVE.bytes_to_read(point.nats.value) == pytest.approx(point.carried)


def test_what_no_window_reads_like_has_no_bytes() -> None:
    assert CURVE.bytes_to_read(3.91) == 0
    assert CURVE.bytes_to_read(3.5) == math.inf


def test_bytes_are_so_many_tokens() -> None:
    assert CURVE.tokens(60 * TOKEN) == 60


def test_a_window_that_is_worse_than_a_smaller_one_is_not_needed() -> None:
    base = {**BASE, "window": {"w16": window(16, 3.7), "w64": window(64, 3.75)}}
    assert WindowCurve(estimates_of(base), 1024).bytes_to_read(3.7) == pytest.approx(20 * TOKEN)
