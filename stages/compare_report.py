"""Gather every version's results into tables, plots and one page."""

import logging

from infini import params
from infini.console.stage import run
from infini.console.stopwatch import Stopwatch
from infini.corpus.config import Data
from infini.evaluation.config import FullProtocol
from infini.model.config import Base
from infini.paths import DOCUMENTS, PAGE, PLOTS, REPORTS, SAMPLES
from infini.report import provenance
from infini.report.page import html, markdown, save_drawings
from infini.report.results import Setup, leftovers, read_results, read_times
from infini.report.sections import build
from infini.training.config import Adapter, Replacement

log = logging.getLogger(__name__)


def main() -> None:
    watch = Stopwatch("compare_report")
    setup = Setup(
        base=params.read("base", Base),
        data=params.read("data", Data),
        full=params.read("evaluate.full", FullProtocol),
        replacements=params.read("replacements", dict[str, Replacement]),
        adapters=params.read("adapters", dict[str, Adapter]),
        audits={},
    )
    for file in leftovers(setup):
        log.warning("%s: of no version or audit in params.yaml: not shown, delete it", file)
    results = read_results(setup)
    report = build(
        results,
        origin=provenance.of_results(params.FILE, [SAMPLES, DOCUMENTS]),
        this_run=provenance.of_this_run(),
        times=read_times(setup),
    )
    save_drawings(report, PLOTS)
    for step, curves in results.curves.items():
        curves.to_csv(PLOTS / f"{step}.csv", index=False)
    results.metrics.rename_axis("version").to_csv(REPORTS / "compare.csv")
    (REPORTS / "compare.md").write_text(markdown(report, "plots"))
    PAGE.write_text(html(report))
    watch.write()
    log.info("The report: %s", PAGE)
    log.info("%s", report.summary[0].replace("**", ""))


if __name__ == "__main__":
    run(main)
