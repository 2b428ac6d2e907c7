"""Memory of this process: how much it has held, and keeping what it has."""

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path


def high_water() -> float:
    """MiB it has held at most (getrusage would count its parent's too)."""
    return _status("VmHWM")


def added_by(work: Callable[[], object]) -> float:
    """MiB that it holds at most during `work`, beyond what it held before."""
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _status("VmRSS")
    work()
    return high_water() - before


def _status(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 2**10


def keep_heap() -> None:
    """Let malloc keep freed memory: tensors over 32 MiB would fault in page by page every time.

    With glibc's own settings a step's time depends on the sizes that went before it.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: none by mmap
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: nothing given back
