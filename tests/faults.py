"""Stages killed and on a full disk, for tests/test_faults.py; a script of its own.

`python faults.py STAGES`, as JSON: module, words, outputs of each. Everything is imported once,
and every attempt is a fork, in which nothing has run yet. Prints a line of JSON for every stage.
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

from infini.console.stage import run

MOMENTS = 20
LIMITS = (0, 1_000, 10_000, 50_000)  # bytes of a file that the disk still takes
OTHERWISE = ("costs.csv",)  # hold times


class End(NamedTuple):
    """How an attempt ended."""

    code: int  # negative: the signal
    said: str  # on stderr


def attempt(
    module: str, words: list[str], *, kill: float | None = None, limit: int | None = None
) -> End:
    """The stage in a fork: killed after so many seconds, or with files of `limit` bytes at most."""
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
    os.setpgid(child, child)  # whoever comes first: a kill may be sooner than the child's own
    os.close(writer)
    if kill is not None:
        time.sleep(kill)
        os.killpg(child, signal.SIGKILL)
    with open(reader, "rb") as stream:
        said = stream.read().decode()
    return End(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said)


def _stage(module: str, words: list[str]) -> None:
    """What `python -m MODULE WORDS` does; never returns."""
    sys.argv = [module, *words]
    code = 1
    try:
        run(importlib.import_module(module).main)
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def outputs(places: list[Path]) -> dict[str, str]:
    """SHA-256 of every file in these places; of what holds times, that it is there."""
    files = [file for p in places for file in ([p] if p.is_file() else sorted(p.rglob("*")))]
    return {
        str(file): hashlib.sha256(b"" if file.name in OTHERWISE else file.read_bytes()).hexdigest()
        for file in files
        if file.is_file()
    }


def clear(places: list[Path]) -> None:
    """As DVC does before it runs a stage."""
    for place in places:
        if place.is_dir():
            shutil.rmtree(place)
        place.unlink(missing_ok=True)


def faults(module: str, words: list[str], places: list[Path]) -> dict[str, object]:
    """A stage undisturbed, killed, on a full disk, and undisturbed again; its outputs stay."""
    importlib.import_module(module)
    clear(places)
    began = time.perf_counter()
    whole = attempt(module, words)
    seconds = time.perf_counter() - began
    assert whole.code == 0, whole.said
    right, killed, full, wrong = outputs(places), [], [], []
    for moment in range(MOMENTS):
        clear(places)
        killed.append(attempt(module, words, kill=seconds * (moment + 0.5) / MOMENTS))
    for limit in LIMITS:
        clear(places)
        full.append(attempt(module, words, limit=limit))
        if not full[-1].code and outputs(places) != right:
            wrong.append(limit)
    clear(places)
    again = attempt(module, words)
    return {
        "killed": killed,
        "full": full,
        "wrong": wrong,
        "again": again,
        "files": len(right),
        "same": outputs(places) == right,
        "left": [str(file) for file in Path(".checkpoints").rglob("*")],
    }


if __name__ == "__main__":
    for module, words, places in json.loads(sys.argv[1]):
        print(json.dumps(faults(module, words, list(map(Path, places)))), flush=True)
