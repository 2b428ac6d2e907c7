"""Two revisions side by side: `python -m infini.compare A B`, Git revisions or DVC experiments.

Prints the table A | B | change of all metrics that differ, and of the settings, as Markdown,
and writes it to reports/revisions/<A>..<B>.md.
"""

import argparse
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from dvc import api
from dvc.exceptions import DvcException
from scmrepo.exceptions import SCMError

from infini.cells import Figure, change, figures, flatten, show
from infini.errors import InputError
from infini.record import METRICS

FOLDER = Path("reports/revisions")

Names = tuple[str, str]


def metrics_of(revision: str) -> dict[str, Figure]:
    """`<version>: <metric>` → figure, of every version's metrics file. InputError without any."""
    with _reading(revision):
        files = api.DVCFileSystem(rev=revision)
        trees = {
            Path(name).stem: json.loads(files.read_text(name))
            for name in sorted(files.glob(f"{METRICS}/*.json"))
        }
    if not trees:
        raise InputError(f"{revision}: no {METRICS}/*.json there; run `dvc repro` at it first")
    return {
        f"{version}: {key}": figure
        for version, tree in trees.items()
        for key, figure in figures(tree).items()
    }


def settings_of(revision: str) -> dict[str, Any]:
    """Dotted key → value of the params. InputError for an unknown revision."""
    with _reading(revision):
        return flatten(api.params_show(rev=revision))


@contextmanager
def _reading(revision: str) -> Iterator[None]:
    try:
        yield
    except (DvcException, SCMError) as error:
        raise InputError(
            f"{revision}: no such revision or experiment ({str(error).splitlines()[0]}); "
            "`git log` and `dvc exp list` name them"
        ) from None


def table(first: dict[str, Figure], last: dict[str, Figure], names: Names) -> pd.DataFrame:
    """A row a metric that differs: both figures and the change."""
    keys = [key for key in dict.fromkeys([*first, *last]) if first.get(key) != last.get(key)]
    columns = {
        name: [show(*found[key]) if key in found else "–" for key in keys]
        for name, found in zip(_distinct(names), (first, last), strict=True)
    }
    changes = [change(first.get(key), last.get(key)) for key in keys]
    return pd.DataFrame(columns | {"change": changes}, index=pd.Index(keys, name="metric"))


def settings(first: dict[str, Any], last: dict[str, Any], names: Names) -> pd.DataFrame:
    """A row a setting that differs."""
    keys = [key for key in dict.fromkeys([*first, *last]) if first.get(key) != last.get(key)]
    columns = {
        name: [str(found.get(key, "–")) for key in keys]
        for name, found in zip(_distinct(names), (first, last), strict=True)
    }
    return pd.DataFrame(columns, index=pd.Index(keys, name="setting"))


def _distinct(names: Names) -> Names:
    return names if names[0] != names[1] else (names[0], f"{names[1]} ")


def compare(a: str, b: str) -> str:
    """The comparison in Markdown."""
    first, last = metrics_of(a), metrics_of(b)
    differing = table(first, last, (a, b))
    same = len(first.keys() | last.keys()) - len(differing)
    changed = settings(settings_of(a), settings_of(b), (a, b))
    parts = [f"# {a} against {b}", f"{len(differing)} metrics differ, {same} are equal."]
    parts += [
        shown.to_markdown(disable_numparse=True) for shown in (differing, changed) if len(shown)
    ]
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Print it, and keep it."""
    parser = argparse.ArgumentParser(prog="python -m infini.compare", description=__doc__)
    parser.add_argument("a", help="Git revision or DVC experiment")
    parser.add_argument("b", help="Git revision or DVC experiment")
    words = parser.parse_args(arguments)
    try:
        text = compare(words.a, words.b)
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = FOLDER / (re.sub(r"[^\w.~^-]", "_", f"{words.a}..{words.b}") + ".md")
    file.write_text(text)
    print(text)
    print(f"written to {file}")


if __name__ == "__main__":
    main()
