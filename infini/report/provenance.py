"""Where a report comes from: what its results were computed from, and the run that made it."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import psutil

PACKAGES = ("torch", "transformers", "datasets", "accelerate", "dvc", "pandas", "matplotlib")
CODE = ("infini", "stages", "params.yaml")


def of_results(params: Path, data: Iterable[Path]) -> dict[str, str]:
    """Label → hash, of params.yaml and of the prepared text in the folders `data`."""
    return {
        params.name: _hash([params]),
        "prepared data": _hash(sorted(f for folder in data for f in folder.rglob("*.parquet"))),
    }


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
