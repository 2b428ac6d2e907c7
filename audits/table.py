"""Write the table of all audits into audits/README.md, from audits/results/."""

import logging
from pathlib import Path

from infini.console.stage import run_stage
from infini.evaluation.estimates import estimates_of
from infini.files import read_json, read_yaml
from infini.report.page import ReportTable
from infini.report.tables import row_of_figures, text_frame

FOLDER = Path("audits")
PAGE = FOLDER / "README.md"
START, END = "<!-- table: python -m audits.table -->\n", "\n<!-- end of table -->"
COLUMNS = {
    "next token, before": "before.segmented.ppl",
    "after": "after.segmented.ppl",
    "after, memory off": "after.memory_off.ppl",
    "token after next, before": "before.double_shift.ppl",
    "token after next, after": "after.double_shift.ppl",
    "nats per token above the version": "vs_version.nats",
}

log = logging.getLogger(__name__)


def audit_table() -> ReportTable:
    """Return a row an audit of params.yaml: perplexities, and the distance from its version."""
    rows = {}
    for name, audit in read_yaml(FOLDER / "params.yaml")["audits"].items():
        file = FOLDER / "results" / f"{name}.json"
        figures = estimates_of(read_json(file)) if file.is_file() else {}
        cells = row_of_figures(figures, COLUMNS)
        rows[audit["question"]] = {"audit": f"`{name}`", "version": audit["version"], **cells}
    return ReportTable(text_frame(rows), "question", "Audits")


def main() -> None:
    before, _, rest = PAGE.read_text().partition(START)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + START + "\n" + audit_table().markdown() + "\n" + END + after)
    log.info("The audits: %s", PAGE)


if __name__ == "__main__":
    run_stage(main)
