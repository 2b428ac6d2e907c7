"""Every plot draws what its table says, with one version and with several."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from infini.report import plots
from infini.report.page import Drawing
from report.toy_results import FIGURES, costs, curves, gates, losses, passkey

EITHER = pytest.mark.parametrize("names", [("v1",), ("v1", "v2")])


def points(axes: Axes, label: str) -> list[tuple[float, float]]:
    """The one line of that label."""
    (line,) = (line for line in axes.get_lines() if line.get_label() == label)
    x, y = (np.asarray(data, float).tolist() for data in line.get_data())
    return list(zip(x, y, strict=True))


def labels(axes: Axes) -> list[str]:
    """What the legend says."""
    legend = axes.get_legend()
    return [text.get_text() for text in legend.get_texts()] if legend else []


@EITHER
def test_training_curves(names: tuple[str, ...]) -> None:
    table = curves(*names)
    axes = plots.training_curves(table, "nats a token").axes[0]
    assert labels(axes) == [f"{name} {split}" for name in names for split in ("train", "val")]
    for (name, split), rows in table.groupby(["version", "split"]):
        drawn = points(axes, f"{name} {split}")
        assert drawn == list(zip(rows["epoch"], rows["loss"], strict=True))
    best = [line for line in axes.get_lines() if line.get_marker() == "o"]
    rows = table[table["event"] == "best"]
    assert sorted(float(line.get_ydata()[0]) for line in best) == sorted(rows["loss"])
    assert axes.get_ylabel() == "nats a token"
    assert len({line.get_color() for line in axes.get_lines()}) == len(names)


@EITHER
def test_perplexity(names: tuple[str, ...]) -> None:
    axes = plots.perplexity({name: FIGURES[name] for name in ("base", *names)}).axes[0]
    with_memory, empty = (
        [bar.get_height() for bar in container.patches] for container in axes.containers
    )
    assert with_memory == pytest.approx([10.0, -5.0][: len(names)])  # 44 and 38 against 40
    assert empty == pytest.approx([10.0, 0.0][: len(names)])
    assert [text.get_text() for text in axes.get_xticklabels()] == list(names)
    assert [y for _, y in points(axes, "base, full attention")] == pytest.approx([-10.0] * 2)
    assert labels(axes) == ["base, full attention", "with its memory", "memory kept empty"]


@EITHER
@pytest.mark.parametrize(("place", "at"), [("segment", [0, 1]), ("distance", [64, 256])])
def test_perplexity_by_place(names: tuple[str, ...], place: str, at: list[int]) -> None:
    nats = {"v1": 3.1, "v2": 2.9}
    found = {"base": losses(segmented=3.0, full=2.95, window16=9.0)}
    found |= {name: losses(documents=nats[name], memory_off=9.0) for name in names}
    axes = plots.perplexity_by(found, place, "somewhere").axes[0]
    assert labels(axes) == ["base, full attention", *names]
    for label, value in {"base, full attention": 2.95, **{n: nats[n] for n in names}}.items():
        x, y = zip(*points(axes, label), strict=True)
        assert list(x) == at
        assert list(y) == pytest.approx([100 * math.expm1(value - 3.0)] * 2)
    bands = [band.get_paths()[0].vertices[:, 1] for band in axes.collections]
    assert len(bands) == 1 + len(names)
    # v1: the residuals of four texts' differences are 2 · 0.1 · (−3, −1, 1, 3) · 10 · 0.01 nats
    error = math.sqrt(4 / 3 * sum((0.01 * k) ** 2 for k in (-3, -1, 1, 3))) / 40
    assert bands[1].min() == pytest.approx(100 * math.expm1(0.1 - error))
    assert bands[1].max() == pytest.approx(100 * math.expm1(0.1 + error))
    assert axes.get_xlabel() == "somewhere"
    assert axes.get_xscale() == ("log" if place == "distance" else "linear")


@EITHER
def test_retrieval(names: tuple[str, ...]) -> None:
    gain = {"base": 0.0, "v1": 0.5, "v2": -1.0}
    figure = plots.retrieval({name: passkey(gain[name]) for name in ("base", *names)})
    panels = figure.axes[: len(names)]
    assert [axes.get_title() for axes in panels] == list(names)
    for name, axes in zip(names, panels, strict=True):
        g = gain[name]
        assert np.allclose(axes.collections[0].get_array(), [[g, g], [2 * g, 2 * g]])
        assert [text.get_text() for text in axes.texts] == [
            f"{x:+.2f}" for x in (g, g, 2 * g, 2 * g)
        ]
        assert [text.get_text() for text in axes.get_xticklabels()] == ["2", "4"]
    assert [text.get_text() for text in panels[0].get_yticklabels()] == ["0 %", "100 %"]
    limits = {axes.collections[0].get_clim() for axes in panels}
    largest = 2 * max(abs(gain[name]) for name in names)
    assert limits == {(-largest, largest)}  # one scale, none in the middle


@EITHER
def test_gates(names: tuple[str, ...]) -> None:
    tables = {"v1": gates(0.4, 0.6), "v2": gates(0.1, 0.2, 0.3)}
    two = tables["v1"].assign(seed=1, gate=tables["v1"]["gate"] + 0.05)
    tables["v1"] = pd.concat([tables["v1"], two])
    axes = plots.gates({name: tables[name] for name in names}).axes[0]
    drawn = [dots.get_offsets().tolist() for dots in axes.collections]
    expected: list[Any] = [[[0, 0.4], [0, 0.45]], [[1, 0.6], [1, 0.65]]]
    expected += [[[2, 0.1]], [[3, 0.2]], [[4, 0.3]]] if "v2" in names else []
    for dots, wanted in zip(drawn, expected, strict=True):
        assert np.allclose(dots, wanted)
    ticks = [text.get_text() for text in axes.get_xticklabels()]
    assert ticks == ["0.0", "0.1", "0.0", "0.1", "0.2"][: len(expected)]
    assert labels(axes) == list(names)


@EITHER
def test_a_version_without_passkey_or_gates_is_left_out(names: tuple[str, ...]) -> None:
    cases = {name: passkey(0.5) for name in ("base", *names)} | {"v9": passkey(0.5).iloc[:0]}
    assert [axes.get_title() for axes in plots.retrieval(cases).axes[: len(names)]] == list(names)
    heads = {"v9": gates(0.4).iloc[:0]} | {name: gates(0.4) for name in names}
    axes = plots.gates(heads).axes[0]
    assert labels(axes) == list(names)
    assert len(axes.collections) == len(names)


@EITHER
def test_costs(names: tuple[str, ...]) -> None:
    table = costs("base", *names)
    panels = plots.costs(table).axes
    for axes, column in zip(panels, plots.COSTS, strict=True):
        for name, rows in table.groupby("version"):
            assert points(axes, name) == list(zip(rows["length"], rows[column], strict=True))
    assert labels(panels[0]) == ["base", *names]
    assert [text.get_text() for text in panels[-1].get_xticklabels()] == ["1,024", "16,384"]


def test_without_a_version_there_is_still_a_file_to_draw() -> None:
    figures = [plots.perplexity({"base": FIGURES["base"]}), plots.gates({})]
    figures += [plots.retrieval({"base": passkey(0.0)})]
    figures += [plots.perplexity_by({"base": losses(segmented=3.0, full=2.9)}, "segment", "s")]
    for figure in figures:
        assert "<svg" in Drawing("empty", figure, "nothing").svg(inline=True)
