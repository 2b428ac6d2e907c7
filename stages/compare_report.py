"""Gather every version's metrics into tables, plots and one page."""

import pandas as pd

from infini import params, provenance, report
from infini.cells import flatten
from infini.cli import run
from infini.page import html, markdown, save_drawings
from infini.record import DOCUMENTS, METRICS, SAMPLES, Stopwatch
from infini.results import read_results

REPORTS = METRICS.parent


def main() -> None:
    watch = Stopwatch("compare_report")
    base, data, replacements, adapters, audits, sliding = params.read(
        "base", "data", "replacements", "adapters", "audits", "evaluate.sliding"
    )
    results = read_results({**replacements, **adapters}, audits, data.segment_length)
    page = report.build(
        results,
        base=base,
        data=data,
        sliding=sliding,
        audits=audits,
        replacements=list(replacements),
        provenance=provenance.provenance(params.FILE, [SAMPLES, DOCUMENTS]),
    )
    plots = REPORTS / "plots"
    save_drawings(page, plots)
    for step, curves in results.curves.items():
        curves.to_csv(plots / f"{step}.csv", index=False)
    table = pd.DataFrame({version: flatten(tree) for version, tree in results.metrics.items()}).T
    table.rename_axis("version").to_csv(REPORTS / "compare.csv")
    (REPORTS / "compare.md").write_text(markdown(page, "plots"))
    (REPORTS / "index.html").write_text(html(page))
    watch.write()


if __name__ == "__main__":
    run(main)
