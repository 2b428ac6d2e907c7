"""Results of audits/dvc.yaml, which are in Git: are they of this run, or of another one?"""

from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml.error import YAMLError

from infini.errors import InputError
from infini.files import read_yaml
from infini.paths import AUDITS_LOCK, DOCUMENTS, INPUTS

# What decides an audit's or the costs' figures, beside the versions and what they are run on.
KEYS = ("seed", "base", "data.segment_length", "evaluate.documents", "evaluate.double_shift")
COST_KEYS = ("base", "data.segment_length", "cost")


class Ran(NamedTuple):
    """What a stage was last run on, by a lock of DVC's."""

    hashes: dict[str, str]  # of base, corpus and documents, by path
    params: dict[str, Any]  # as in params.yaml


def of_other_runs(folder: Path = Path(".")) -> set[str]:
    """Stages, as `audit@padding`, last run on another base, text or recipe than the versions.

    By the locks of the run in `folder` and its params.yaml. InputError for what is no lock.
    """
    now = _ran(folder / "dvc.lock").get("prepare_data")
    params = read_yaml(folder / "params.yaml")
    return {
        name
        for name, then in _ran(folder / AUDITS_LOCK).items()
        if (now and not then.hashes.items() <= now.hashes.items())
        or _differ(name, then.params, params)
    }


def _differ(name: str, then: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether a stage was run by other params, of those that it was recorded with."""
    audit = name.removeprefix("audit@")
    keys = [*KEYS, f"audits.{audit}"] if audit != name else list(COST_KEYS)
    versions = [
        f"{section}.{version}"
        for section in ("replacements", "adapters")
        for version in then.get(section) or ()
        if audit == name or version == _at(now, f"audits.{audit}.of")
    ]
    return any(
        (before := _at(then, key)) is not None and before != _at(now, key)
        for key in [*keys, *versions]
    )


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Params as params.yaml has them, of a lock's, whose keys are dotted."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *ways, last = key.split(".")
        place = tree
        for way in ways:
            place = place.setdefault(way, {})
        place[last] = value
    return tree


def _at(tree: Any, key: str) -> Any:
    """The value of a dotted key; None where there is none."""
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _ran(lock: Path) -> dict[str, Ran]:
    """Every stage in a lock of DVC's; none where there is no lock."""
    try:
        return {
            name: Ran(
                {
                    file["path"]: file["md5"]
                    for file in stage.get("deps", []) + stage.get("outs", [])
                    if Path(file["path"]).parent == INPUTS or Path(file["path"]) == DOCUMENTS
                },
                _nested(stage.get("params", {}).get("params.yaml", {})),
            )
            for name, stage in read_yaml(lock).get("stages", {}).items()
        }
    except (YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{lock}: not a lock of DVC's ({type(error).__name__})") from None
