"""Setting of the C library's memory allocator for benchmarks."""

import ctypes
import sys


def keep_heap() -> None:
    """Let malloc keep freed memory: tensors over 32 MiB would fault in page by page every time.

    With glibc's own settings a step's time depends on earlier steps' sizes.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: none by mmap
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: nothing given back
