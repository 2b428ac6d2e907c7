"""Script of tests/test_faults.py: stages killed and on a full disk.

`python faults.py STAGES`, as JSON: module, words and outputs of each. Modules are imported once,
and every attempt is a fork of this process. Prints a line of JSON per stage.
"""

import hashlib
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

from infini.console.stage import run_stage

MOMENTS = 20
LIMITS = (0, 1_000, 10_000, 50_000)  # largest file that the disk takes, in bytes
WITH_TIMES = ("costs.csv",)  # files whose content differs from run to run


class End(NamedTuple):
    """End of an attempt."""

    code: int  # exit code; negative: the signal
    errors: str  # stderr


def attempt(
    module: str, words: list[str], *, kill: float | None = None, limit: int | None = None
) -> End:
    """Run a stage in a fork: killed after `kill` seconds, or with files of ≤ `limit` bytes."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        os.dup2(writer, 2)
        os.close(reader)
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        _stage(module, words)
    os.setpgid(child, child)  # here too: the kill may come before the child's own call
    os.close(writer)
    if kill is not None:
        time.sleep(kill)
        os.killpg(child, signal.SIGKILL)
    with open(reader, "rb") as stream:
        errors = stream.read().decode()
    return End(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), errors)


def _stage(module: str, words: list[str]) -> None:
    """Do what `python -m MODULE WORDS` does; never returns."""
    sys.argv = [module, *words]
    code = 1
    try:
        run_stage(importlib.import_module(module).main)
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def hash_files(paths: list[Path]) -> dict[str, str]:
    """Return SHA-256 of every file in these paths; of nothing for files with times."""
    files = [file for p in paths for file in ([p] if p.is_file() else sorted(p.rglob("*")))]
    return {
        str(file): hashlib.sha256(b"" if file.name in WITH_TIMES else file.read_bytes()).hexdigest()
        for file in files
        if file.is_file()
    }


def remove_outputs(paths: list[Path]) -> None:
    """Remove a stage's outputs, as DVC does before it runs the stage."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)


def run_with_faults(module: str, words: list[str], paths: list[Path]) -> dict[str, object]:
    """Run a stage undisturbed, killed, on a full disk, and undisturbed again; outputs stay."""
    importlib.import_module(module)
    remove_outputs(paths)
    began = time.perf_counter()
    whole = attempt(module, words)
    seconds = time.perf_counter() - began
    assert whole.code == 0, whole.errors
    right, killed, full, wrong = hash_files(paths), [], [], []
    for moment in range(MOMENTS):
        remove_outputs(paths)
        killed.append(attempt(module, words, kill=seconds * (moment + 0.5) / MOMENTS))
    for limit in LIMITS:
        remove_outputs(paths)
        full.append(attempt(module, words, limit=limit))
        if not full[-1].code and hash_files(paths) != right:
            wrong.append(limit)
    remove_outputs(paths)
    again = attempt(module, words)
    return {
        "killed": killed,
        "full": full,
        "wrong": wrong,
        "again": again,
        "files": len(right),
        "same": hash_files(paths) == right,
        "left": [str(file) for file in Path(".checkpoints").rglob("*")],
    }


if __name__ == "__main__":
    for module, words, paths in json.loads(sys.argv[1]):
        print(json.dumps(run_with_faults(module, words, list(map(Path, paths)))), flush=True)
