"""Memory of this process (Linux)."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path


def peak_memory() -> float:
    """Return the most memory that this process has held, in MiB.

    `getrusage` would count its parent's too.
    """
    return _status("VmHWM")


def reset_peak_memory(collect: bool = True) -> float:
    """Begin a new peak of `peak_memory`; return the memory that this process holds now, in MiB.

    Args:
        collect: Whether to collect garbage first, which takes tenths of a second.
    """
    if collect:
        gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # freed memory would be reused unseen
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    return _status("VmRSS")


def peak_added_by(work: Callable[[], object]) -> float:
    """Return the most memory held during `work` beyond what was held before, in MiB."""
    before = reset_peak_memory()
    work()
    return peak_memory() - before


def _status(field: str) -> float:
    """Return a field of this process's status in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 2**10
