"""Results of audits/dvc.yaml, which are in Git: are they of this run, or of another one?"""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from infini.errors import InputError
from infini.paths import AUDITS_LOCK, DOCUMENTS, INPUTS

# What decides an audit's or the costs' figures, beside the versions and what they are run on.
KEYS = ("seed", "base", "data.segment_length", "evaluate.documents", "evaluate.double_shift")
COST_KEYS = ("base", "data.segment_length", "cost")


def of_other_runs(folder: Path = Path(".")) -> set[str]:
    """Stages, as `audit@padding`, last run on another base, text or recipe than the versions.

    By the locks of the run in `folder` and its params.yaml. InputError for what is no lock.
    """
    ran = _stages(folder / AUDITS_LOCK)
    prepared = _stages(folder / "dvc.lock").get("prepare_data", {})
    now = _hashes(prepared, "deps") | _hashes(prepared, "outs")
    params = _yaml(folder / "params.yaml")
    return {
        name
        for name, stage in ran.items()
        if (now and not _hashes(stage, "deps").items() <= now.items())
        or _differ(name, stage.get("params", {}).get("params.yaml", {}), params)
    }


def _differ(name: str, then: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether a stage was run by other params, of those that it was recorded with."""
    audit = name.removeprefix("audit@")
    then = _nested(then)
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


def _hashes(stage: dict[str, Any], kind: str) -> dict[str, str]:
    """Of base, corpus and documents, by path, among a stage's `deps` or `outs`."""
    known = {dep["path"]: dep["md5"] for dep in stage.get(kind, []) if "md5" in dep}
    return {p: md5 for p, md5 in known.items() if Path(p).parent == INPUTS or Path(p) == DOCUMENTS}


def _stages(lock: Path) -> dict[str, Any]:
    """What a lock of DVC's holds; empty where there is none."""
    try:
        stages = _yaml(lock).get("stages", {})
        for stage in stages.values():
            _hashes(stage, "deps"), _hashes(stage, "outs"), stage.get("params", {}).items()
    except (YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{lock}: not a lock of DVC's ({type(error).__name__})") from None
    return dict(stages)


def _yaml(file: Path) -> dict[str, Any]:
    return (YAML(typ="safe").load(file) or {}) if file.is_file() else {}
