"""Plots of the report. Every version has one colour and marker in all of them.

Axes and text stay black: the page replaces black by its own text colour, in light and in dark.
"""

import math
from collections import Counter
from collections.abc import Callable
from itertools import cycle
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from infini.evaluation.config import ORACLE, PLAIN_WINDOW
from infini.evaluation.estimates import Estimate
from infini.report import tables
from infini.report.policies import summarize_policies
from infini.report.results import Figures, Results
from infini.report.tables import COST_LABELS, FULL, base_windows

WIDTH = 7.0  # inches
LEGEND_COLUMNS, LEGEND_LINE = 3, 0.22  # of a legend below the axes; inches a line
ABOVE = 0.5  # nats above the window curve: versions beyond are arrows at the edge
LABEL_RATIO = 1.3  # between the state bytes of two windows whose sizes are written
MAPS_A_ROW = 3

Style = dict[str, Any]


def version_styles(results: Results) -> dict[str, Style]:
    """Return colour and marker by version; the base is black and dotted."""
    names = list(results.setup.versions)
    colors = matplotlib.colormaps["tab10" if len(names) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    styles: dict[str, Style] = {"base": {"color": "black", "linestyle": ":", "marker": "."}}
    for name, color, marker in zip(names, cycle(colors), cycle("osD^v*Xp"), strict=False):
        styles[name] = {"color": color, "linestyle": "-", "marker": marker}
    return styles


def state_bytes_plot(results: Results, styles: dict[str, Style]) -> Figure:
    """Plot nats per token against state bytes: the base's windows, versions and their controls.

    Errors are those of the distance to full attention on the same documents: what makes one text
    harder than another moves all points alike.
    """
    figure, axes = new_figure(4.2)
    figures, errors = results.figures, {n: _errors(t) for n, t in results.curves.items()}
    nats_at = _plot_window_curve(axes, figures["base"], errors.get("base", {}))
    far: list[tuple[str, float, float]] = []
    for name, version_figures in figures.items():
        if name == "base":
            continue
        x, y = version_figures["state_bytes.total"].value, version_figures["documents.nats"].value
        if y > nats_at(x) + ABOVE:
            far.append((name, x, y))
            continue
        style = _point_style(styles[name])
        error = errors.get(name, {})
        axes.errorbar(x, y, error.get("documents"), label=name, markersize=6, **style)
        if "control.nats" in version_figures:
            control = version_figures["control.nats"].value
            hollow = style | {"markerfacecolor": "none", "markersize": 9}
            axes.errorbar(x, control, error.get("control"), **hollow)
            axes.plot([x, x], [y, control], color=style["color"], linewidth=0.8)
    if any("control.nats" in version_figures for version_figures in figures.values()):
        hollow = {"color": "gray", "markerfacecolor": "none", "markersize": 9}
        axes.plot([], [], "o", label="shuffled-memory control", **hollow)
    scale_bytes(axes)
    axes.margins(y=0.1)
    axes.set(xlabel="state bytes", ylabel="nats per token")
    _plot_far(axes, far, styles)
    add_legend_below(figure)
    return figure


def policy_gains_plot(results: Results) -> Figure:
    """Plot gains over the plain window of equal state bytes: policies, then trained versions.

    A row a policy or version, a colour a budget; the best policies come first. Budgets at which
    less than half of the policies were scored are left to `policy_curves_plot`.
    """
    scored = {(x.window_size, x.name) for x in results.policies}
    num_policies = Counter(size for size, _ in scored)
    windows = {
        x.window_size: x
        for x in results.policies
        if x.name == PLAIN_WINDOW and 2 * num_policies[x.window_size] >= max(num_policies.values())
    }
    gains: dict[tuple[str, int], Estimate] = {
        (tables.policy_label(policy.name), policy.window_size): policy.gain_over(
            windows[policy.window_size]
        )
        for policy in results.policies
        if policy.window_size in windows and policy.name != PLAIN_WINDOW
    }
    for name, figures in results.figures.items():
        policy = results.opponent(name)
        if policy is not None and policy.window_size in windows:
            gains[f"{name} (trained)", policy.window_size] = figures["window.gain"]
    rows: dict[str, float] = {}
    for (name, _), gain in gains.items():
        rows[name] = max(gain.value, rows.get(name, -math.inf))
    names = sorted(rows, key=lambda name: rows[name])
    figure, axes = new_figure(0.22 * len(names) + 1.2)
    axes.axvline(0, color="black", linewidth=1)
    colors = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]
    for number, size in enumerate(sorted(windows)):
        own = {name: gain for (name, budget), gain in gains.items() if budget == size}
        x = [gain.value for gain in own.values()]
        y = [names.index(name) + 0.15 * number for name in own]
        errors = [gain.error or 0.0 for gain in own.values()]
        used = {x.window for x in results.policies if x.window_size == size}
        behind = " and ".join(map(str, sorted(used)))
        label = f"bytes of {size} tokens, policies' window {behind}"
        marks: Style = {"fmt": "os^Dv"[number % 5], "color": colors[number % 10], "label": label}
        axes.errorbar(x, y, xerr=errors, markersize=4, linewidth=1, **marks)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.2)
    axes.set(xlabel="nats per token below the plain window of equal state bytes")
    add_legend_below(figure)
    return figure


def policy_curves_plot(results: Results) -> Figure:
    """Plot nats per token against state bytes: policies as lines, trained versions as points.

    A colour a policy, a line style a window of the policies. Policies scored at one size only are
    left out, but for the oracle, a star; versions above all lines are arrows at the edge.
    """
    figure, axes = new_figure(4.2)
    table, styles = summarize_policies(results.policies), version_styles(results)
    is_window, is_oracle = table["policy"] == PLAIN_WINDOW, table["policy"] == ORACLE
    window = table[is_window].drop_duplicates("state_bytes")
    axes.plot(window["state_bytes"], window["test_nats"], ".-", color="black", label="plain window")
    lines = (
        table[~is_window & ~is_oracle]
        .groupby(["policy", "policy_window"])
        .filter(lambda x: len(x) > 1)
    )
    # versions have the first colours
    colors = cycle(reversed(matplotlib.colormaps["tab10"].colors))  # type: ignore[attr-defined]
    for name, of_policy in lines.groupby("policy"):
        color, dashes = next(colors), cycle(("-", "--", ":", "-."))
        for size, rows in of_policy.groupby("policy_window"):
            style = {"color": color, "linestyle": next(dashes), "label": f"{name}, window {size}"}
            axes.plot(rows["state_bytes"], rows["test_nats"], marker=".", linewidth=1, **style)
    top = max(window["test_nats"].max(), lines["test_nats"].max())
    far: list[tuple[str, float, float]] = []
    for name, figures in results.figures.items():
        if name == "base":
            continue
        x, y = figures["state_bytes.total"].value, figures["documents.nats"].value
        if y > top:
            far.append((name, x, y))
        else:
            style = _point_style(styles[name])
            axes.plot(x, y, label=f"{name} (trained)", **style)
    if is_oracle.any():
        oracle = table[is_oracle]
        label = tables.policy_label(ORACLE)
        axes.plot(oracle["state_bytes"], oracle["test_nats"], "*", color="black", label=label)
    if "base" in results.figures:
        full = results.figures["base"]["full.nats"].value
        axes.axhline(full, color="black", linestyle=":", label="full attention")
    scale_bytes(axes)
    axes.set(xlabel="state bytes", ylabel="nats per token")
    _plot_far(axes, far, styles)
    add_legend_below(figure)
    return figure


def scale_bytes(axes: Axes) -> None:
    """Make x a logarithmic scale of bytes."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter("B"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _point_style(style: Style) -> Style:
    """Return a version's colour and marker without its line."""
    return {"color": style["color"], "marker": style["marker"], "linestyle": ""}


def _errors(curves: pd.DataFrame) -> dict[str, float]:
    """Return standard errors of the distance to full attention, by protocol."""
    rows = curves[curves["curve"] == "nats_vs_full_by_state_bytes"]
    return {str(s): se for s, se in zip(rows["series"], rows["se"], strict=True) if se == se}


def _plot_window_curve(
    axes: Axes, base: Figures, errors: dict[str, float]
) -> Callable[[float], float]:
    """Plot the base's windows and full attention; return nats by state bytes."""
    names = base_windows(base)
    x = [base[f"{name}.state_bytes"].value for name in names]
    y = np.array([base[f"{name}.nats"].value for name in names])
    error = np.array([errors.get(name, 0.0) for name in names])
    axes.plot(x, y, color="black", marker=".", label="base, sliding window with sinks")
    axes.fill_between(x, y - error, y + error, color="black", alpha=0.15, linewidth=0)
    written = 0.0
    for name, at in zip(names, zip(x, y, strict=True), strict=True):
        if at[0] > LABEL_RATIO * written:
            offset: Style = {"xytext": (4, 5), "textcoords": "offset points", "fontsize": 9}
            axes.annotate(name.removeprefix("window_"), at, **offset)
            written = at[0]
    segmented = base["state_bytes.total"].value, base["segmented.nats"].value
    axes.plot(*segmented, "x", color="black", label="base, segments without memory")
    return lambda state_bytes: float(np.interp(math.log(state_bytes), np.log(x), y))


def _plot_far(axes: Axes, far: list[tuple[str, float, float]], styles: dict[str, Style]) -> None:
    """Write versions far above the curve at the upper edge, one below the other."""
    left, right = axes.get_xlim()
    edge = axes.get_xaxis_transform()
    for i, (name, x, y) in enumerate(far):
        at = (x, 0.96 - 0.08 * i)
        to_left = x > math.sqrt(left * right)  # more room on that side
        axes.plot(*at, "^", color=styles[name]["color"], transform=edge)
        axes.annotate(
            f"{name}: {y:.2f}",
            at,
            xycoords=edge,
            xytext=(-8 if to_left else 8, 0),
            textcoords="offset points",
            ha="right" if to_left else "left",
            va="center",
            fontsize=9,
        )


def position_plot(
    curves: dict[str, pd.DataFrame], by: str, label: str, styles: dict[str, Style]
) -> Figure:
    """Plot nats per token above segments without memory, by `segment` or `distance`."""
    figure, axes = new_figure()
    values = []
    for name, table in curves.items():
        rows = table[table["curve"] == f"nats_vs_segmented_by_{by}"]
        if rows.empty:
            continue
        x, y, se = (rows[column].to_numpy(float) for column in ("x", "value", "se"))
        x = np.maximum(x, 1) if by == "distance" else x
        axes.plot(x, y, label=FULL if name == "base" else name, markersize=4, **styles[name])
        band: Style = {"color": styles[name]["color"], "alpha": 0.2, "linewidth": 0}
        axes.fill_between(x, y - np.nan_to_num(se), y + np.nan_to_num(se), **band)
        values += y.tolist()
    if by == "distance":
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(ScalarFormatter())
    if values and max(map(abs, values)) > 1:
        axes.set_yscale("symlog", linthresh=0.2)  # one version may be far off, another near
        axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.axhline(0, color="black", linewidth=1)
    axes.set(xlabel=label, ylabel="nats per token above\nsegments without memory")
    add_legend_below(figure)
    return figure


def retrieval_plot(curves: dict[str, pd.DataFrame]) -> Figure:
    """Plot the gain over memory off for pass keys, by depth and length: a map a version."""
    maps = {}
    for name, table in curves.items():
        rows = table[table["curve"] == "passkey_gain_by_depth"]
        if name != "base" and len(rows):
            table = rows.pivot_table("value", "x", "series", sort=False).sort_index()
            maps[name] = table.rename(columns=lambda series: str(series).removesuffix(" segments"))
    lines = max(1, math.ceil(len(maps) / MAPS_A_ROW))
    figure, panels = new_figure(
        2.1 * lines + 0.5, nrows=lines, ncols=MAPS_A_ROW, sharey=True, squeeze=False
    )
    limit = max((table.abs().max().max() for table in maps.values()), default=0) or 1.0
    mesh = None
    for axes, (name, table) in zip(panels.flat, maps.items(), strict=False):
        mesh = axes.pcolormesh(table, cmap="RdBu", vmin=-limit, vmax=limit)
        axes.set_xticks(np.arange(table.shape[1]) + 0.5, table.columns)
        axes.set_yticks(np.arange(len(table)) + 0.5, [f"{100 * x:.0f} %" for x in table.index])
        axes.set_title(name, fontsize="medium")
        axes.set_ylim(len(table), 0)
        axes.grid(False)
        for (row, column), value in np.ndenumerate(table.to_numpy()):
            color = "#fefefe" if abs(value) > 0.6 * limit else "#111111"
            at = (column + 0.5, row + 0.5)
            axes.text(*at, f"{value:+.2f}", color=color, ha="center", va="center", fontsize=8)
    for axes in panels.flat[len(maps) :]:
        axes.set_visible(False)
    figure.supxlabel("length of the text, segments", fontsize="medium")
    figure.supylabel("depth of the key", fontsize="medium")
    if mesh is not None:
        figure.colorbar(mesh, ax=panels, aspect=20 * lines, label="gain over memory off, nats")
    return figure


def gates_plot(curves: dict[str, pd.DataFrame], styles: dict[str, Style]) -> Figure:
    """Plot the gate of every head by layer, the versions side by side."""
    figure, axes = new_figure(3.2)
    tables = {name: table[table["curve"] == "gate"] for name, table in curves.items()}
    tables = {name: table for name, table in tables.items() if len(table)}
    for i, (name, table) in enumerate(tables.items()):
        layers = table["series"].str.removeprefix("layer ").astype(int)
        shift = 0.6 * ((i + 0.5) / len(tables) - 0.5)
        style = {"color": styles[name]["color"], "marker": styles[name]["marker"]}
        axes.scatter(layers + shift, table["value"], s=14, label=name, alpha=0.7, **style)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="layer", ylabel="gate of the memory, a point a head")
    add_legend_below(figure)
    return figure


def training_plot(table: pd.DataFrame, unit: str, styles: dict[str, Style]) -> Figure:
    """Plot loss against epoch: validation solid, training dashed, a dot on the best epoch."""
    figure, axes = new_figure()
    named = set()
    for (version, split), curve in table.groupby(["version", "split"], sort=False):
        name = version.partition(" seed ")[0]
        label = f"{name} {split}"
        color = styles[name]["color"]
        axes.plot(
            curve["epoch"],
            curve["loss"],
            color=color,
            linestyle="-" if split == "val" else "--",
            marker="." if len(curve) == 1 else None,
            label="_" * (label in named) + label,  # once for all seeds: the legend leaves out _
        )
        named.add(label)
        best = curve[curve["event"] == "best"]
        axes.plot(best["epoch"], best["loss"], "o", color=color)
    axes.set(xlabel="epoch", ylabel=unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    add_legend_below(figure)
    return figure


def cost_plot(costs: pd.DataFrame, styles: dict[str, Style]) -> Figure:
    """Plot state bytes, speed and peak memory by length, a line a version."""
    figure, panels = new_figure(6.0, nrows=3, sharex=True)
    for axes, (column, label) in zip(panels, COST_LABELS.items(), strict=True):
        for name, rows in costs.groupby("version", sort=False):
            line = FULL if name == "base" else str(name)
            axes.plot(rows["length"], rows[column], label=line, markersize=4, **styles[str(name)])
        axes.set_xscale("log", base=2)
        axes.set_ylabel(label)
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    panels[0].set_yscale("log")
    lengths = sorted(set(costs["length"]))
    panels[-1].set_xticks(lengths, [f"{length:,}" for length in lengths])
    panels[-1].set_xlabel("tokens read")
    add_legend_below(figure, panels[0])
    return figure


def new_figure(height: float = 3.6, **grid: Any) -> tuple[Figure, Any]:
    """Return a figure of a height in inches, and its axes; `grid` as of `Figure.subplots`."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels = figure.subplots(**grid)
    for axes in np.atleast_1d(panels).flat:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def add_legend_below(figure: Figure, axes: Axes | None = None) -> None:
    """Add a legend below the axes and grow the figure by its lines."""
    handles, labels = (axes or figure.axes[0]).get_legend_handles_labels()
    if labels:
        place: Style = {"loc": "outside lower center", "ncols": LEGEND_COLUMNS, "frameon": False}
        figure.legend(handles, labels, fontsize=9, **place)
        lines = math.ceil(len(labels) / LEGEND_COLUMNS)
        figure.set_figheight(figure.get_figheight() + LEGEND_LINE * lines)
