"""Gather every version's results into tables, plots and one page."""

import logging

import pandas as pd

from infini import params
from infini.console.stage import run_stage
from infini.console.stopwatch import Stopwatch
from infini.corpus.config import Data
from infini.evaluation.config import FullProtocol
from infini.evaluation.rounding import write_rounded_csv
from infini.files import flatten
from infini.model.config import Base
from infini.paths import PAGE, PLOTS, REPORTS
from infini.report.page import render_html, render_markdown, save_plots
from infini.report.policies import summarize_policies
from infini.report.provenance import costs_are_stale, run_provenance
from infini.report.results import Setup, read_results, read_times, stale_files
from infini.report.sections import build_report
from infini.training.config import Adapter, Replacement

log = logging.getLogger(__name__)


def main() -> None:
    watch = Stopwatch("compare_report")
    setup = Setup(
        base=params.get("base", Base),
        data=params.get("data", Data),
        full=params.get("evaluate.full", FullProtocol),
        replacements=params.get("replacements", dict[str, Replacement]),
        adapters=params.get("adapters", dict[str, Adapter]),
    )
    for file in stale_files(setup):
        log.warning("%s: no version of params.yaml, not shown; delete it", file)
    results = read_results(setup)
    report = build_report(
        results, run_provenance(), read_times(setup), costs_are_stale=costs_are_stale()
    )
    save_plots(report, PLOTS)
    for step, curves in results.training.items():
        curves.to_csv(PLOTS / f"{step}.csv", index=False)
    if results.policies:
        table = summarize_policies(results.policies)
        keys = ["policy", "policy_window", "window_size", "retained", "state_bytes"]
        file = PLOTS / "policy_curves.csv"
        write_rounded_csv(file, table, keys, {"test_nats": "test_nats_se"})
    rows = {name: flatten(tree) for name, tree in results.metrics.items()}
    pd.DataFrame(rows).T.rename_axis("version").to_csv(REPORTS / "compare.csv")
    (REPORTS / "compare.md").write_text(render_markdown(report, "plots"))
    PAGE.write_text(render_html(report))
    watch.write()
    for line, _ in report.verdicts:
        log.info("%s", line.replace("**", ""))
    log.info("The report: %s", PAGE)


if __name__ == "__main__":
    run_stage(main)
