"""Plots of the report: what they draw, and in which colours."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import same_color
from matplotlib.figure import Figure

from infini.report import plots
from infini.report.results import Results
from report.toy_results import SETUP, TOKEN, V3, toy_results, version_metrics


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Results:
    return toy_results(tmp_path, monkeypatch)


def lines(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """Return x and y of every line with a label."""
    return {
        str(line.get_label()): (line.get_xdata().tolist(), line.get_ydata().tolist())
        for line in axes.get_lines()
        if not str(line.get_label()).startswith("_") and len(line.get_xdata())
    }


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def all_figures(results: Results) -> dict[str, Figure]:
    styles = plots.version_styles(results)
    return {
        "state_bytes": plots.state_bytes_plot(results, styles),
        "position": plots.position_plot(results.curves, "segment", "segment", styles),
        "gates": plots.gates_plot(results.curves, styles),
        "training": plots.training_plot(results.training["finetune"], "nats", styles),
        "costs": plots.cost_plot(results.costs, styles),
    }


def test_state_bytes_plot_has_windows_versions_and_controls(results: Results) -> None:
    figure = plots.state_bytes_plot(results, plots.version_styles(results))
    (axes,) = figure.axes
    x, y = lines(axes)["base, sliding window with sinks"]
    assert x == [TOKEN * 20, TOKEN * 68, TOKEN * 260, TOKEN * 1024]
    assert y[:3] == [3.9, 3.65, 3.6]
    assert {"v1", "v2", "v3", "shuffled-memory control"} <= set(legend(figure))
    v3 = next(bar for bar in axes.containers if bar.get_label() == "v3")
    point, _, (error,) = v3.lines
    metrics = version_metrics(38.0, 0.05, 0.005)
    assert point.get_xydata().tolist() == [[60000, metrics["documents"]["nats"]]]
    low, high = error.get_segments()[0][:, 1]
    assert high - low == pytest.approx(0.04)  # two errors of the distance to full attention
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("state bytes", "nats per token")


def test_state_bytes_plot_points_at_versions_far_above(results: Results) -> None:
    far = results.metrics | {"v1": version_metrics(100.0, -1.0)}
    figure = plots.state_bytes_plot(replace(results, metrics=far), plots.version_styles(results))
    (axes,) = figure.axes
    assert "v1: 4.61" in [text.get_text() for text in axes.texts]
    assert "v1" not in legend(figure)
    assert axes.get_ylim()[1] < 4.1


def test_position_plot_shows_paired_differences(results: Results) -> None:
    figure = plots.position_plot(
        results.curves, "distance", "tokens", plots.version_styles(results)
    )
    drawn = lines(figure.axes[0])
    assert drawn["base, full attention"] == ([1, 64, 256], [-0.1] * 3)  # 0 has no logarithm
    assert drawn["v3"][1] == pytest.approx([-0.4] * 3)
    assert figure.axes[0].get_xscale() == "log"


def test_retrieval_plot_has_a_map_a_version(results: Results) -> None:
    figure = plots.retrieval_plot(results.curves)
    maps = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in maps] == ["v1", "v2", "v3"]
    assert [text.get_text() for text in maps[0].get_xticklabels()] == ["2", "8"]
    assert [text.get_text() for text in maps[0].get_yticklabels()] == ["0 %", "100 %"]
    assert [text.get_text() for text in maps[0].texts] == ["+0.20", "+0.20", "+0.40", "+0.40"]
    assert figure.axes[-1].get_ylabel() == "gain over memory off, nats"


def test_gates_plot_has_a_point_a_head(results: Results) -> None:
    (axes,) = plots.gates_plot(results.curves, plots.version_styles(results)).axes
    assert [len(points.get_offsets()) for points in axes.collections] == [2, 2, 2]
    assert axes.collections[0].get_offsets()[:, 1].tolist() == [0.3, 0.4]


def test_training_plot_names_several_seeds_once(results: Results) -> None:
    table = results.training["finetune"]
    rows = table[table["version"] == "v3"]
    seeds = [rows.assign(version=f"v3 seed {seed}") for seed in (0, 1)]
    table = pd.concat([table[table["version"] != "v3"], *seeds])
    figure = plots.training_plot(table, "nats per token", plots.version_styles(results))
    assert legend(figure)[-2:] == ["v3 train", "v3 val"]
    assert figure.axes[0].get_ylabel() == "nats per token"


def test_cost_plot_has_a_panel_a_figure(results: Results) -> None:
    figure = plots.cost_plot(results.costs, plots.version_styles(results))
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels == ["state bytes", "tokens per second", "peak memory, MiB"]
    assert lines(figure.axes[0])["v1"] == ([1024, 16384], [2048, 32768])
    assert legend(figure) == ["base, full attention", "v1", "v2", "v3"]


def test_a_version_has_one_colour_in_all_plots(results: Results) -> None:
    style = plots.version_styles(results)["v3"]
    for name, figure in all_figures(results).items():
        handles, labels = figure.axes[0].get_legend_handles_labels()
        handle: Any = handles[labels.index("v3 val" if name == "training" else "v3")]
        if name == "gates":
            color = handle.get_facecolor()[0, :3]
        else:
            color = (handle.lines[0] if name == "state_bytes" else handle).get_color()
        assert same_color(color, style["color"]), name


def test_many_versions_have_different_styles(results: Results) -> None:
    many = replace(SETUP, adapters={f"a{i}": V3 for i in range(20)})
    styles = plots.version_styles(replace(results, setup=many))
    assert len(styles) == 23
    assert len({(style["color"], style["marker"]) for style in styles.values()}) == 23
