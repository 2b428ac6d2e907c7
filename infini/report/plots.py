"""The report's plots, drawn from its results.

Axes and text stay black and nothing is filled white: a page turns black into its text colour.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from infini.evaluation.estimates import Estimate, difference_curve
from infini.report.results import Figures

COSTS = {
    "state_bytes": "bytes carried",
    "tokens_per_second": "tokens a second",
    "peak_mib": "peak memory, MiB",
}
FULL_ATTENTION = "base, full attention"
FEW = 8  # names that find room within the axes, or side by side
HEADS = 64  # that are named, side by side
MAPS = 3  # of retrieval, side by side
COLUMNS, LINE = 3, 0.22  # of a legend below, and a line's height in inches


def training_curves(table: pd.DataFrame, unit: str) -> Figure:
    """Loss against epoch, one colour a version; train dashed, a dot on the best epoch."""
    figure, axes = _figure()
    for i, (version, rows) in enumerate(table.groupby("version", sort=False)):
        for split, curve in rows.groupby("split"):
            axes.plot(
                curve["epoch"],
                curve["loss"],
                color=f"C{i}",
                linestyle="-" if split == "val" else "--",
                label=f"{version} {split}",
                marker="." if len(curve) == 1 else None,
            )
            best = curve[curve["event"] == "best"]
            axes.plot(best["epoch"], best["loss"], "o", color=f"C{i}")
    axes.set(xlabel="epoch", ylabel=unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    _legend(figure, axes)
    return figure


def perplexity(figures: dict[str, Figures]) -> Figure:
    """Long test documents: every version against the base in blind segments, in per cent."""
    base = figures["base"]["segmented.ppl"].value
    versions = [version for version in figures if version != "base"]
    figure, axes = _figure()
    crowded = len(versions) > FEW
    rows = {"documents.ppl": "with its memory", "memory_off.ppl": "memory kept empty"}
    for offset, (row, label) in zip((-0.2, 0.2), rows.items(), strict=True):
        heights = [100 * (figures[version][row].value / base - 1) for version in versions]
        at = [i + offset for i in range(len(versions))]
        bars = axes.bar(at, heights, width=0.38, label=label)
        axes.bar_label(bars, fmt="%+.1f %%", padding=2, fontsize=8, rotation=90)
    ceiling = 100 * (figures["base"]["full.ppl"].value / base - 1)
    axes.axhline(ceiling, color="black", linestyle=":", label=FULL_ATTENTION)
    _relative_scale(axes)
    low, high = axes.get_ylim()
    axes.set_ylim(2 * low, 4 * high)  # room for the labels, on a logarithmic scale
    slanted: dict[str, Any] = {"rotation": 30, "ha": "right"} if crowded else {}
    axes.set_xticks(range(len(versions)), versions, **slanted)
    axes.legend(framealpha=0)
    return figure


def perplexity_by(losses: dict[str, pd.DataFrame], place: str, label: str) -> Figure:
    """Perplexity against the base in blind segments, by place; a band of one error."""
    figure, axes = _figure()
    base = losses["base"].query("protocol == 'segmented'")
    lines = {FULL_ATTENTION: losses["base"].query("protocol == 'full'")}
    lines |= {v: t.query("protocol == 'documents'") for v, t in losses.items() if v != "base"}
    for i, (name, table) in enumerate(lines.items()):
        style = _style(i)
        nats = difference_curve(table, base, place)
        low, middle, high = ([_per_cent(n, errors) for n in nats] for errors in (-1, 0, 1))
        axes.plot(nats.index, middle, marker=".", label=name, **style)
        axes.fill_between(nats.index, low, high, alpha=0.2, linewidth=0, color=style["color"])
    if place == "distance":
        axes.set_xscale("log", base=2)
    _relative_scale(axes)
    axes.set_ylim(bottom=max(-100, axes.get_ylim()[0]))  # no perplexity is less than none
    axes.set_xlabel(label)
    axes.grid(alpha=0.3)
    _legend(figure, axes)
    return figure


def retrieval(tables: dict[str, pd.DataFrame]) -> Figure:
    """Nats that the memory adds to the key's log-probability, by depth and length; a map each."""
    maps = {}
    for version, cases in tables.items():
        table = cases[cases["task"] == "passkey"]
        if version != "base" and len(table):
            gain = table.assign(gain=table["log_prob"] - table["log_prob_off"])
            by_place = gain.pivot_table("gain", "depth", "segments", aggfunc="mean")
            maps[version] = by_place.rename(columns=int)  # a mean over seeds has made it 5.0
    rows = max(1, math.ceil(len(maps) / MAPS))  # no version: one empty row
    figure, panels = _figure(1.9 * rows + 0.6, nrows=rows, ncols=MAPS, sharey=True, squeeze=False)
    largest = max((table.abs().max().max() for table in maps.values()), default=0) or 1.0
    mesh = None
    for axes, (version, table) in zip(panels.flat, maps.items(), strict=False):
        mesh = axes.pcolormesh(table, cmap="RdBu", vmin=-largest, vmax=largest, edgecolors="none")
        axes.set_xticks(np.arange(table.shape[1]) + 0.5, table.columns)
        axes.set_yticks(np.arange(len(table)) + 0.5, [f"{100 * d:.0f} %" for d in table.index])
        axes.set(title=version, ylim=(len(table), 0))
        _write_values(axes, table.to_numpy(), dark_from=0.6 * largest)
    for axes in panels.flat[len(maps) :]:
        axes.set_visible(False)
    figure.supxlabel("segments", fontsize="medium")
    figure.supylabel("depth of the key", fontsize="medium")
    if mesh is not None:
        figure.colorbar(mesh, ax=panels, label="nats with the memory")
    return figure


def gates(tables: dict[str, pd.DataFrame]) -> Figure:
    """How far every head lets its memory in: a dot a seed."""
    figure, axes = _figure(3.0)
    at: list[str] = []
    for i, (version, table) in enumerate(tables.items()):
        for (layer, head), rows in table.groupby(["layer", "head"]):
            label = version if head == 0 and layer == table["layer"].min() else None
            axes.scatter([len(at)] * len(rows), rows["gate"], color=f"C{i}", label=label, zorder=2)
            at.append(f"{layer}.{head}")
    if len(at) <= HEADS:
        axes.set_xticks(range(len(at)), at, rotation=90, fontsize=8)
    axes.set(xlabel="layer.head" if len(at) <= HEADS else "heads", ylabel="gate of the memory")
    axes.grid(alpha=0.3)
    if at:
        _legend(figure, axes)
    return figure


def costs(table: pd.DataFrame) -> Figure:
    """State, speed and peak memory by length, a line a version."""
    figure, panels = _figure(6.0, nrows=3, sharex=True)
    for axes, (column, label) in zip(panels, COSTS.items(), strict=True):
        for i, (version, rows) in enumerate(table.groupby("version", sort=False)):
            axes.plot(rows["length"], rows[column], marker=".", label=version, **_style(i))
        axes.set_xscale("log", base=2)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    panels[0].set_yscale("log")
    lengths = sorted(set(table["length"]))
    panels[-1].set_xticks(lengths, [f"{length:,}" for length in lengths])
    panels[-1].set_xlabel("tokens read")
    panels[0].legend(framealpha=0, ncols=4)
    return figure


def legend_below(figure: Figure) -> None:
    """The figure grows by a legend of any length."""
    legend = figure.legend(loc="outside lower center", ncols=COLUMNS, frameon=False)
    lines = math.ceil(len(legend.get_texts()) / COLUMNS)
    figure.set_figheight(figure.get_figheight() + LINE * lines)


def _figure(height: float = 3.6, **axes: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(7, height), layout="constrained")
    return figure, figure.subplots(**axes)


def _legend(figure: Figure, axes: Axes) -> None:
    """Within the axes where there is room, else below."""
    if len(axes.get_legend_handles_labels()[1]) > FEW:
        legend_below(figure)
    else:
        axes.legend(framealpha=0)


def _style(i: int) -> dict[str, str]:
    """The base is first and dotted; the versions keep their colours in all plots."""
    if i == 0:
        return {"color": "black", "linestyle": ":"}
    return {"color": f"C{i - 1}"}


def _relative_scale(axes: Axes) -> None:
    """Linear near zero, logarithmic beyond: a version may be far off and another near."""
    axes.set_yscale("symlog", linthresh=10)
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.set_ylabel("perplexity against blind segments")
    axes.axhline(0, color="black", linewidth=1)


def _per_cent(nats: Estimate, errors: int) -> float:
    """Nats a token as a change of perplexity, so many errors above."""
    return 100 * math.expm1(nats.value + errors * (nats.error or 0))


def _write_values(axes: Axes, table: "np.ndarray[Any, Any]", dark_from: float) -> None:
    """A map's values in its fields, light where the field is dark."""
    for (row, column), value in np.ndenumerate(table):
        color = "#111111" if abs(value) < dark_from else "#fefefe"
        at: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8}
        axes.text(column + 0.5, row + 0.5, f"{value:+.2f}", color=color, **at)
