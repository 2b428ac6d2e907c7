"""The headline picture: bytes carried against nats a token, the base's window curve and versions.

Errors are those of the distance to full attention on the same documents: what makes one text
harder than another moves all points alike. As in plots.py black follows the page's text.
"""

import math
from itertools import groupby
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from infini.evaluation.estimates import difference
from infini.report.plots import legend_below
from infini.report.results import Figures
from infini.report.window_curve import WindowCurve

FAR = 0.5  # nats above the curve: out of the picture
APART = 1.3  # times the bytes, between two windows whose sizes are written
SHAPES = "osDv"  # of points: the next one where the ten colours begin again


class Mark(NamedTuple):
    """A version or its control."""

    version: str
    is_control: bool
    color: str
    shape: str
    carried: float  # bytes
    nats: float  # a token
    error: float

    @property
    def label(self) -> str:
        """What it is called outside of the legend."""
        return f"{self.version}, its control" if self.is_control else self.version


def carried(
    figures: dict[str, Figures], losses: dict[str, pd.DataFrame], curve: WindowCurve
) -> Figure:
    """A point a version, a hollow one its control; what is far above the curve is an arrow."""
    marks = _marks(figures, losses)
    far = [mark for mark in marks if mark.nats > curve.nats_at(mark.carried) + FAR]
    near = [mark for mark in marks if mark not in far]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    _draw_curve(axes, curve, [_error(losses, "base", point.protocol) for point in curve.points])
    blind = figures["base"]["bytes.total"].value, figures["base"]["segmented.nats"].value
    axes.plot(*blind, "x", color="black", label="base, blind segments")
    _draw_near(axes, near)
    axes.margins(y=0.08)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter("B"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="bytes carried from one token to the next", ylabel="nats a token")
    axes.grid(alpha=0.3)
    _draw_far(axes, far)
    legend_below(figure)
    return figure


def _marks(figures: dict[str, Figures], losses: dict[str, pd.DataFrame]) -> list[Mark]:
    versions = [version for version in figures if version != "base"]
    return [
        Mark(
            version,
            protocol == "control",
            f"C{i % 10}",
            SHAPES[i // 10 % len(SHAPES)],
            carried=figures[version]["bytes.total"].value,
            nats=figures[version][key].value,
            error=_error(losses, version, protocol),
        )
        for i, version in enumerate(versions)
        for protocol, key in (("documents", "documents.nats"), ("control", "control.nats"))
        if key in figures[version]
    ]


def _error(losses: dict[str, pd.DataFrame], name: str, protocol: str) -> float:
    """Of the distance to full attention."""
    ours, base = losses[name], losses["base"]
    full = base[base["protocol"] == "full"]
    return difference(ours[ours["protocol"] == protocol], full).error or 0.0


def _draw_curve(axes: Axes, curve: WindowCurve, errors: list[float]) -> None:
    """A dot a window with the number of its tokens; a light band of one error."""
    x = [point.carried for point in curve.points]
    y = [point.nats.value for point in curve.points]
    low, high = ([v + sign * e for v, e in zip(y, errors, strict=True)] for sign in (-1, 1))
    axes.plot(x, y, color="black", marker=".", label="base, its last tokens alone")
    axes.fill_between(x, low, high, color="black", alpha=0.15, linewidth=0)
    at: dict[str, Any] = {"xytext": (4, 4), "textcoords": "offset points", "fontsize": 9}
    named = 0.0
    for point in curve.points:
        if point.carried > APART * named:  # else one name would lie on the other
            axes.annotate(point.name, (point.carried, point.nats.value), **at)
            named = point.carried


def _draw_near(axes: Axes, marks: list[Mark]) -> None:
    for mark in marks:
        axes.errorbar(
            mark.carried,
            mark.nats,
            mark.error,
            fmt=mark.shape,
            color=mark.color,
            markersize=9 if mark.is_control else 5,
            markerfacecolor="none" if mark.is_control else mark.color,
            # the legend leaves out what begins with _
            label=f"_{mark.label}" if mark.is_control else mark.version,
        )
    if any(mark.is_control for mark in marks):
        hollow: dict[str, Any] = {"markersize": 9, "markerfacecolor": "none"}
        axes.plot([], [], "o", color="gray", label="a version's control", **hollow)
    for _, pair in groupby(marks, key=lambda mark: mark.version):
        ends = list(pair)
        axes.plot(
            [mark.carried for mark in ends],
            [mark.nats for mark in ends],
            color=ends[0].color,
            linewidth=0.8,
        )


def _draw_far(axes: Axes, marks: list[Mark]) -> None:
    """One below the other at the upper edge, the name on the side where there is more room."""
    left, right = axes.get_xlim()
    for i, mark in enumerate(marks):
        on_the_left = mark.carried > math.sqrt(left * right)
        at = (mark.carried, 0.95 - 0.07 * i)
        edge = axes.get_xaxis_transform()
        axes.plot(*at, "^", color=mark.color, transform=edge)
        axes.annotate(
            f"{mark.label}: {mark.nats:.2f}",
            at,
            xycoords=edge,
            xytext=(-8 if on_the_left else 8, 0),
            textcoords="offset points",
            ha="right" if on_the_left else "left",
            va="center",
            fontsize=9,
        )
