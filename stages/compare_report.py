"""Gather every version's metrics into tables, plots and one page."""

import pandas as pd

from infini import params, plots, report
from infini.cli import run
from infini.record import METRICS, SUMMARY, TIMES, TRAINING, Stopwatch, read_json, write_json

REPORTS = METRICS.parent
UNITS = {"distill": "mean squared error", "finetune": "nats a token"}


def main() -> None:
    watch = Stopwatch("compare_report")
    base, data, replacements, adapters, sliding = params.read(
        "base", "data", "replacements", "adapters", "evaluate.sliding"
    )
    versions = {**replacements, **adapters}
    metrics = {v: read_json(METRICS / f"{v}.json") for v in ("base", *versions)}
    table = report.metrics_table(metrics)
    table.T.rename_axis("version").to_csv(REPORTS / "compare.csv")
    write_json(REPORTS / "compare.json", metrics)

    for step, unit in UNITS.items():
        done = [v for v in versions if (TRAINING / v / f"{step}.csv").is_file()]
        curves = report.curves_table(
            {v: pd.read_csv(TRAINING / v / f"{step}.csv") for v in done},
            {v: read_json(TRAINING / v / f"{step}.json") for v in done},
        )
        plots.curves(curves, f"{step}: loss by epoch", unit, REPORTS / f"plots/{step}.png")
        curves.to_csv(REPORTS / f"plots/{step}.csv", index=False)
    plots.perplexity(table, REPORTS / "plots/perplexity.png")

    page = report.compare_page(
        table,
        versions,
        list(replacements),
        base=base,
        data=data,
        sliding=sliding,
        prepared=read_json(SUMMARY),
        # Not tracked: of the last time that each stage really ran.
        times={
            file.stem: read_json(file)
            for file in sorted(TIMES.glob("*.json"))
            if file.stem.rpartition("-")[0] in ("prepare", "base", *versions)
        },
    )
    (REPORTS / "compare.md").write_text(page)
    watch.write()


if __name__ == "__main__":
    run(main)
