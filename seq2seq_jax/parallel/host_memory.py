"""The host's memory where the host computes: kept by the process, from one step to the next."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

import jax

# glibc's names for mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = -1  # as a size: the largest


def keep_memory() -> bool:
    """Lets a process that computes on a CPU use the memory of one step again in the next; elsewhere malloc stays as it
    is.

    XLA asks malloc for a program's temporaries each time it runs (2.1 GB in a training step of two BERT bases), and
    malloc gives blocks of that size back to the system as soon as they are free, which then clears their pages anew in
    every step. From here on malloc keeps what is freed: the process shrinks by `release_memory` alone. A program runs
    in the thread that calls it, so that its memory is free when the call returns, and comes from the heap: the arenas
    of other threads hold no blocks so large.

    To be called before anything else touches a device, since jax then settles in which thread programs run; later, the
    large blocks are given back as before, and the answer does not tell.

    Returns:
      Whether malloc took the settings: on a CPU, with glibc.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if jax.default_backend() != "cpu":
        return False
    mallopt = _glibc("mallopt")
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, NEVER))


def release_memory() -> None:
    """Gives back to the system what malloc holds of freed memory, which loading, compiling and a program's first run
    leave in pieces that the next one may not fit into."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _glibc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
