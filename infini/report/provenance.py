"""Where a report comes from: what its results were computed from, and the run that made it."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import psutil
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from infini.errors import InputError
from infini.paths import AUDITS_LOCK, INPUTS

PACKAGES = ("torch", "transformers", "datasets", "accelerate", "dvc", "pandas", "matplotlib")
CODE = ("infini", "stages", "params.yaml")


def of_results(params: Path, data: Iterable[Path]) -> dict[str, str]:
    """Label → hash, of params.yaml and of the prepared text in the folders `data`."""
    return {
        params.name: _hash([params]),
        "prepared data": _hash(sorted(f for folder in data for f in folder.rglob("*.parquet"))),
    }


def of_other_inputs() -> set[str]:
    """Stages of audits/dvc.yaml, as `audit@padding`, last run on another base or corpus.

    Their results are in Git: they may be there while this run is of something else.
    """
    if not AUDITS_LOCK.is_file():
        return set()
    try:
        stages = YAML(typ="safe").load(AUDITS_LOCK)["stages"].items()
        ran_on = {(name, Path(d["path"]), d["md5"]) for name, s in stages for d in s["deps"]}
    except (YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{AUDITS_LOCK}: not a lock of DVC's ({type(error).__name__})") from None
    return {name for name, file, md5 in ran_on if file.parent == INPUTS and _md5(file) != md5}


def _md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()


def of_this_run() -> dict[str, str]:
    """Label → text: commit, versions of software, hardware."""
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "hardware": _hardware(),
    }


def _commit() -> str:
    """The commit that the run started from; empty outside a Git repository."""
    commit = _git("rev-parse", "--short=12", "HEAD").stdout.strip()
    changed = commit and _git("diff", "--quiet", "HEAD", "--", *CODE).returncode != 0
    return f"{commit}, with changes" if changed else commit


def _git(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["git", *words], capture_output=True, text=True, check=False)


def _hash(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def _hardware() -> str:
    cores, memory = len(os.sched_getaffinity(0)), psutil.virtual_memory().total / 2**30
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{cores} cores of {names[0] if names else platform.machine()}, {memory:.0f} GiB"
