"""The report's plots, drawn from its tables."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter


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
    axes.set(title=title, xlabel="epoch", ylabel=unit)
    axes.grid(alpha=0.3)
    if len(table):
        axes.legend()
    _save(figure, file)


def perplexity(table: pd.DataFrame, file: Path) -> None:
    """Long test documents: every version against the base by segments, in per cent."""
    base = table.loc["segmented.ppl", "base"]

    def against_base(ppl: float) -> float:
        return 100 * (ppl / base - 1)

    versions = [version for version in table.columns if version != "base"]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    rows = {"segmented.ppl": "with its memory", "memory_off.ppl": "memory kept empty"}
    for offset, (row, label) in zip((-0.2, 0.2), rows.items(), strict=True):
        heights = [against_base(table.loc[row, version]) for version in versions]
        at = [i + offset for i in range(len(versions))]
        bars = axes.bar(at, heights, width=0.38, label=label)
        axes.bar_label(bars, fmt="%+.1f %%", padding=2, fontsize=8)
    axes.axhline(0, color="black", linewidth=1)
    ceiling = against_base(table.loc["sliding.ppl", "base"])
    axes.axhline(ceiling, color="black", linestyle=":", label="base, full attention")
    # Linear near zero, logarithmic beyond: a version may be far off and another near.
    axes.set_yscale("symlog", linthresh=10)
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.margins(y=0.15)
    axes.set(
        title=f"Long test documents: perplexity against the base by segments ({base:.2f})",
        ylabel="above (+) or below (-) the base",
    )
    axes.set_xticks(range(len(versions)), versions)
    axes.legend()
    _save(figure, file)


def _save(figure: Figure, file: Path) -> None:
    # Without the software's version and date the same data gives the same file.
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130, metadata={"Software": None})
