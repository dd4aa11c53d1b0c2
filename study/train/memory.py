"""What a process does with the memory that it frees, where its C library is glibc.

A training step frees what the next one asks for again. Glibc hands blocks above 32 MiB back to the
system, and the end of its heap too, and the system gives them out anew page by page, filled with
zeros. On a CPU that takes some percent of a step at larger batches, and half of it where each image
has weights of its own: ``python -m benchmarks allocator``.
"""

import ctypes
import sys
from collections.abc import Callable

#: Numbers of malloc.h: how many free bytes at the end are handed back, from how many bytes on a
#: block lies apart, and how many blocks may.
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4


def mallopt() -> Callable[[int, int], int] | None:
    """Glibc's function of that name, or None where there is another C library."""
    return getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None


def keep_freed() -> None:
    """Let this process keep what it frees, for itself; elsewhere nothing is changed."""
    if option := mallopt():
        option(TRIM_THRESHOLD, -1)
        option(MMAP_MAX, 0)
