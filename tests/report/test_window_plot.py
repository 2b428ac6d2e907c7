"""The headline picture draws the curve, every version and its control, and squashes nothing."""

import math

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from infini.evaluation.estimates import difference, estimates_of
from infini.report import window_plot
from infini.report.page import Drawing
from report.toy_results import BASE, BASE_LOSSES, CURVE, METRICS, TOKEN, losses, version

BASE_LINES = ["base, its last tokens alone", "base, blind segments"]
LOSSES = {
    "base": losses(segmented=3.7, **BASE_LOSSES),
    "v1": losses(documents=math.log(44.0)),
    "v2": losses(documents=math.log(38.0), control=math.log(38.0) + 0.005),
}


def drawn(*far: str) -> tuple[Figure, Axes]:
    trees = dict(METRICS)
    found = LOSSES | {name: losses(documents=6.5, control=6.6) for name in far}
    for name in far:
        trees[name] = version(math.exp(6.5), 700.0, -2.9, 0.1)
    figures = {name: estimates_of(tree) for name, tree in trees.items()}
    figure = window_plot.carried(figures, found, CURVE)
    return figure, figure.axes[0]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def dot(axes: Axes, label: str) -> tuple[float, float, float, str]:
    """Bytes, nats, half the error bar and the filling of a version's point."""
    (bar,) = (c for c in axes.containers if c.get_label() == label)
    line, _, (stem,) = bar.lines
    low, high = stem.get_segments()[0][:, 1]
    return line.get_xdata()[0], line.get_ydata()[0], (high - low) / 2, line.get_markerfacecolor()


def test_the_curve_and_its_windows() -> None:
    figure, axes = drawn()
    (curve,) = (x for x in axes.get_lines() if x.get_label() == "base, its last tokens alone")
    assert list(curve.get_xdata()) == [20 * TOKEN, 68 * TOKEN, 260 * TOKEN, 1024 * TOKEN]
    assert list(curve.get_ydata()) == pytest.approx([3.9, 3.65, 3.6, math.log(36.0)])
    assert [text.get_text() for text in axes.texts] == ["16", "64", "256", "full"]
    assert axes.get_xscale() == "log"
    band = axes.collections[0].get_paths()[0].vertices
    full = LOSSES["base"].query("protocol == 'full'")
    error = difference(LOSSES["base"].query("protocol == 'window16'"), full).error
    at_16 = band[np.isclose(band[:, 0], 20 * TOKEN), 1]
    assert at_16.min() == pytest.approx(3.9 - error)
    assert at_16.max() == pytest.approx(3.9 + error)
    assert legend(figure) == [*BASE_LINES, "a version's control", "v1", "v2"]


def test_every_version_and_its_control() -> None:
    _, axes = drawn()
    full = LOSSES["base"].query("protocol == 'full'")
    for label, name, protocol, ppl in (
        ("v1", "v1", "documents", 44.0),
        ("v2", "v2", "documents", 38.0),
        ("_v2, its control", "v2", "control", 38.0 * math.exp(0.005)),
    ):
        carried, nats, error, filling = dot(axes, label)
        ours = LOSSES[name].query(f"protocol == '{protocol}'")
        assert carried == 60000
        assert nats == pytest.approx(math.log(ppl))
        assert error == pytest.approx(difference(ours, full).error)
        assert (filling == "none") == (protocol == "control")
    joints = [x for x in axes.get_lines() if len(x.get_xdata()) == 2]
    assert [list(x.get_ydata()) for x in joints] == [
        pytest.approx([math.log(38.0), math.log(38.0) + 0.005])
    ]
    low, high = axes.get_ylim()
    assert low < math.log(36.0) < 3.9 < high


def test_what_is_far_above_is_an_arrow_and_squashes_nothing() -> None:
    _, without = drawn()
    figure, axes = drawn("v8", "v9")
    assert axes.get_ylim() == pytest.approx(without.get_ylim(), abs=0.02)
    words = [text.get_text() for text in axes.texts]
    assert words[4:] == ["v8: 6.50", "v8, its control: 6.60", "v9: 6.50", "v9, its control: 6.60"]
    arrows = [line for line in axes.get_lines() if line.get_marker() == "^"]
    heights = [float(line.get_ydata()[0]) for line in arrows]
    assert {line.get_xdata()[0] for line in arrows} == {60000}
    assert sorted(heights, reverse=True) == heights
    assert len(set(heights)) == 4
    assert not {"v8", "v9"} & set(legend(figure))


def test_blind_segments_are_a_point() -> None:
    _, axes = drawn()
    (cross,) = (line for line in axes.get_lines() if line.get_label() == "base, blind segments")
    assert cross.get_xdata()[0] == 255 * TOKEN
    assert cross.get_ydata()[0] == pytest.approx(math.log(40.0))


def test_the_base_alone_is_a_curve() -> None:
    figure = window_plot.carried({"base": estimates_of(BASE)}, {"base": LOSSES["base"]}, CURVE)
    assert "<svg" in Drawing("bytes", figure, "alone").svg(inline=True)
