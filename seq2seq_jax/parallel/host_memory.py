"""How this process takes memory from the operating system, where XLA computes on the CPU."""

from __future__ import annotations

import ctypes
import os

# mallopt's names for its parameters (malloc.h).
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Lets the process keep the memory that it frees; call it before jax first touches a device.

    XLA on CPU allocates the temporaries of a compiled call on every call, and glibc takes large blocks from the system
    and gives them back each time: a page fault for every 4 KiB that is written, which can cost several times the
    computation. The price is that freed memory stays with the process until it ends.

    Returns:
      Whether that is so now: False where there is no glibc, or the environment variable MALLOC_ARENA_MAX says that
      somebody else has decided.
    """
    if "MALLOC_ARENA_MAX" in os.environ:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # Nothing is mapped block by block, the end of the heap is never trimmed, and all threads share that one heap.
    return all([mallopt(MMAP_MAX, 0), mallopt(TRIM_THRESHOLD, -1), mallopt(ARENA_MAX, 1)])
