"""Two revisions side by side: A | B | change of all metrics that differ, and of the settings.

A and B are Git revisions or DVC experiments; in a study's folder, of that study.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from dvc.exceptions import DvcException
from dvc.scm import resolve_rev
from ruamel.yaml import YAML
from scmrepo.exceptions import SCMError
from scmrepo.git import Git

from infini.errors import InputError
from infini.evaluation.estimates import Estimate, estimates_of, flatten
from infini.paths import METRICS
from infini.report.cells import LEGEND, Cell, Change
from infini.report.page import Table
from infini.report.tables import HEADLINE

Names = tuple[str, str]


def metrics_of(revision: str) -> dict[str, Estimate]:
    """`<version>: <metric>` → estimate, of every version's metrics file. InputError without any."""
    with _reading(revision) as (files, here):
        trees = {
            Path(name).stem: json.loads(files.read_text(name))
            for name in sorted(files.glob(str(here / METRICS / "*.json")))
        }
    if not trees:
        raise InputError(f"{revision}: no {METRICS}/*.json there; run `dvc repro` at it first")
    return {
        f"{version}: {key}": estimate
        for version, tree in trees.items()
        for key, estimate in estimates_of(tree).items()
    }


def settings_of(revision: str) -> dict[str, Any]:
    """Dotted key → value of the params. InputError for an unknown revision."""
    with _reading(revision) as (files, here):
        return flatten(YAML(typ="safe").load(files.read_text(str(here / "params.yaml"))))


@contextmanager
def _reading(revision: str) -> Iterator[tuple[Any, Path]]:
    """Its files, and where in them this folder is.

    Git's alone: DVC does not read, of a revision, the link that a study's dvc.yaml is.
    """
    try:
        repository = Git(".")
        files = repository.get_fs(resolve_rev(repository, revision))
        yield files, "/" / Path.cwd().resolve().relative_to(Path(repository.root_dir).resolve())
    except (DvcException, SCMError) as error:
        raise InputError(
            f"{revision}: no such revision or experiment ({str(error).splitlines()[0]}); "
            "`git log` and `dvc exp list` name them"
        ) from None


def table(first: dict[str, Estimate], last: dict[str, Estimate], names: Names) -> Table:
    """A row a metric that differs: both figures and the change."""
    keys = sorted(_differing(first, last), key=_is_minor)
    columns: dict[str, list[Cell]] = {
        name: [found.get(key) for key in keys]
        for name, found in zip(_distinct(names), (first, last), strict=True)
    }
    columns["change"] = [Change(first.get(key), last.get(key)) for key in keys]
    return Table(pd.DataFrame(columns, index=keys, dtype=object), "metric", "Metrics that differ")


def settings(first: dict[str, Any], last: dict[str, Any], names: Names) -> Table:
    """A row a setting that differs."""
    keys = _differing(first, last)
    columns = {
        name: [str(found[key]) if key in found else None for key in keys]
        for name, found in zip(_distinct(names), (first, last), strict=True)
    }
    return Table(pd.DataFrame(columns, index=keys, dtype=object), "setting", "Settings that differ")


def _is_minor(key: str) -> bool:
    """Whether a metric, `<version>: <name>`, is none of those that say whether a memory pays."""
    return key.partition(": ")[2] not in HEADLINE.values()


def _differing(first: dict[str, Any], last: dict[str, Any]) -> list[str]:
    both = {key: (first.get(key), last.get(key)) for key in [*first, *last]}
    return [key for key, (a, b) in both.items() if a != b or (key in first) != (key in last)]


def _distinct(names: Names) -> Names:
    return names if names[0] != names[1] else (names[0], f"{names[1]} ")


def compare(a: str, b: str) -> str:
    """The comparison in Markdown; InputError for what is no revision with metrics."""
    first, last = metrics_of(a), metrics_of(b)
    differing = table(first, last, (a, b))
    same = len(first.keys() | last.keys()) - len(differing.cells)
    changed = settings(settings_of(a), settings_of(b), (a, b))
    parts = [f"# {a} against {b}", f"{len(differing.cells)} metrics differ, {same} are equal."]
    if len(differing.cells):
        parts += [LEGEND, differing.markdown()]
    if len(changed.cells):
        parts.append(changed.markdown())
    return "\n\n".join(parts) + "\n"
