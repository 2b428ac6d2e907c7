"""Provenance of a report: the run that made it, and whether costs are of the present settings."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import psutil

from infini.paths import COSTS_LOCK

PACKAGES = ("torch", "transformers", "datasets", "accelerate", "dvc", "pandas", "matplotlib")
CODE = ("infini", "stages", "params.yaml")
COSTS_PIPELINE = "reports/dvc.yaml"


def run_provenance() -> dict[str, str]:
    """Return commit, versions of software and hardware of this run."""
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "hardware": _hardware(),
    }


def costs_are_stale() -> bool:
    """Return whether params have changed since the costs were measured, by DVC's lock of them.

    Outside a DVC repository nothing is known to have changed.
    """
    if not COSTS_LOCK.is_file():
        return False
    from dvc.dependency.param import ParamsDependency
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        repository = Repo()
    except NotDvcRepoError:
        return False
    with repository as repo:
        dependencies = [dep for stage in repo.stage.collect(COSTS_PIPELINE) for dep in stage.deps]
        params = [dep for dep in dependencies if isinstance(dep, ParamsDependency)]
        return any(dep.workspace_status() for dep in params)


def _commit() -> str:
    """Return the commit that the run started from; empty outside a Git repository."""
    commit = _git("rev-parse", "--short=12", "HEAD").stdout.strip()
    changed = commit and _git("diff", "--quiet", "HEAD", "--", *CODE).returncode != 0
    return f"{commit}, with changes" if changed else commit


def _git(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["git", *words], capture_output=True, text=True, check=False)


def _hardware() -> str:
    cores, memory = len(os.sched_getaffinity(0)), psutil.virtual_memory().total / 2**30
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{cores} cores of {names[0] if names else platform.machine()}, {memory:.0f} GiB"
