"""Where a report comes from: code, params, data, software, hardware."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import psutil

PACKAGES = ("torch", "transformers", "datasets", "accelerate", "dvc", "pandas", "matplotlib")


def provenance(params: Path, data: Iterable[Path]) -> dict[str, str]:
    """Label → text; data: folders whose files are hashed."""
    return {
        "commit": _commit(),
        params.name: _hash([params]),
        "prepared data": _hash(sorted(f for folder in data for f in folder.rglob("*.parquet"))),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "hardware": _hardware(),
    }


def _commit() -> str:
    """The commit that the run started from; empty outside a Git repository."""
    options = {"capture_output": True, "text": True, "check": False}
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **options).stdout.strip()  # type: ignore[call-overload]
    changed = ["git", "diff", "--quiet", "HEAD", "--", "infini", "stages", "params.yaml"]
    dirty = bool(commit) and subprocess.run(changed, **options).returncode != 0  # type: ignore[call-overload]
    return f"{commit}, with changes" if dirty else commit


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
