"""`compare`: two revisions side by side, printed and kept."""

import re
from argparse import Namespace
from pathlib import Path

from infini.report.revisions import compare

FOLDER = Path("reports/revisions")


def run(words: Namespace) -> None:
    """Print the table of revisions words.a and words.b, and write it below `FOLDER`."""
    text = compare(words.a, words.b)
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = FOLDER / (re.sub(r"[^\w.~^-]", "_", f"{words.a}..{words.b}") + ".md")
    file.write_text(text)
    print(text)
    print(f"written to {file}")
