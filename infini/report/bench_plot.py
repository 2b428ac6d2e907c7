"""Plot of a table of `infini.bench`: state bytes against nats per token."""

from itertools import cycle

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from infini.report.plots import add_legend_below, new_figure, scale_bytes


def bench_plot(table: pd.DataFrame, saved: list[str]) -> Figure:
    """Plot a line for each policy and the window, a point for each saved model.

    Error bars are of the gain over the window, which is paired by text.

    Args:
        table: What `infini.bench` returned.
        saved: Names of its saved models.
    """
    figure, axes = new_figure(4.2)
    colors = cycle(matplotlib.colormaps["tab10"].colors)  # type: ignore[attr-defined]
    markers = cycle("osD^vX*p")
    for name, rows in table[table["budget"].notna()].groupby("policy", sort=False):
        x, y = rows["state_bytes"].astype(float), rows["nats"]
        if name == "window":
            axes.plot(x, y, color="black", marker=".", label="sliding window with sinks")
            continue
        style = {"color": next(colors), "marker": next(markers), "markersize": 5}
        line = "" if name in saved else "-"
        axes.errorbar(x, y, rows["gain_se"], label=name, linestyle=line, **style)
    full = table.loc[table["policy"] == "full", "nats"].iloc[0]
    axes.axhline(full, color="black", linestyle=":", label="full attention")
    scale_bytes(axes)
    axes.margins(y=0.1)
    axes.set(xlabel="state bytes", ylabel="nats per token")
    add_legend_below(figure)
    return figure
