"""Memory that this process holds (Linux)."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path


def high_water() -> float:
    """MiB it has held at most (getrusage would count its parent's too)."""
    return _status("VmHWM")


def added_by(work: Callable[[], object]) -> float:
    """MiB that it holds at most during `work`, beyond what it held before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is not held: `work` would take it up unseen
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _status("VmRSS")
    work()
    return high_water() - before


def _status(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 2**10
