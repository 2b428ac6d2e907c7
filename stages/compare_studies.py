"""All studies side by side into docs/findings.md, of their metrics alone."""

import logging
from pathlib import Path

from infini.console.stage import run
from infini.report.page import html, markdown
from infini.report.side_by_side import PAGE, build
from infini.report.studies import read_studies

FINDINGS = Path("docs/findings.md")

log = logging.getLogger(__name__)


def main() -> None:
    report = build(read_studies())
    for file, text in ((FINDINGS, markdown(report, "")), (Path(PAGE), html(report))):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    log.info("All studies side by side: %s", FINDINGS)


if __name__ == "__main__":
    run(main)
