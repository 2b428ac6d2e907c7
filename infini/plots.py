"""The report's plots, drawn from its tables."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter


def curves(table: pd.DataFrame, title: str, unit: str, file: Path) -> None:
    """Loss against epoch, one colour a version; train dashed, a dot on the best epoch."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
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
    axes.set(title=title, xlabel="epoch", ylabel=unit, yscale="log")
    axes.yaxis.set_major_formatter(FormatStrFormatter("%.3g"))
    axes.yaxis.set_minor_formatter(FormatStrFormatter("%.3g"))
    axes.grid(alpha=0.3)
    if len(table):
        axes.legend()
    _save(figure, file)


def perplexity(table: pd.DataFrame, file: Path) -> None:
    """Every version on long documents, with memory and without, and the base's two marks."""
    shown = table.reindex(["segmented.ppl", "memory_off.ppl"])
    versions = [v for v in table.columns if v != "base"]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for offset, (row, label) in enumerate(
        {"segmented.ppl": "memory", "memory_off.ppl": "memory kept empty"}.items()
    ):
        at = [i + 0.4 * (offset - 0.5) for i in range(len(versions))]
        bars = axes.bar(at, shown.loc[row, versions].astype(float), width=0.38, label=label)
        axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
    for row, label, style in (
        ("segmented.ppl", "base by segments", "--"),
        ("sliding.ppl", "base, full attention", ":"),
    ):
        axes.axhline(table.loc[row, "base"], color="black", linestyle=style, label=label)
    axes.set(title="Perplexity on long test documents", ylabel="perplexity (lower is better)")
    values = pd.concat(
        [shown[versions].stack(), table.loc[["segmented.ppl", "sliding.ppl"], "base"]]
    )
    axes.set_ylim(0.8 * values.min(), 1.12 * values.max())
    axes.set_xticks(range(len(versions)), versions)
    axes.legend(loc="upper right")
    _save(figure, file)


def _save(figure: Figure, file: Path) -> None:
    # Without the software's version and date the same data gives the same file.
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130, metadata={"Software": None})
