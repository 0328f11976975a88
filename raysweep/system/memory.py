"""Settings of glibc's allocator for trial processes. Imports nothing heavy, as it must run before a trial's thread."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8  # constants of glibc's malloc.h


def keep_memory() -> None:
    """Let glibc keep the memory that this process frees; without glibc this does nothing.

    By default, glibc returns blocks above 32 MiB (such as an activation of 500 32×32 images) and the end of the heap to
    the system at every step. It then fetches them again page by page, and each page is cleared first. This costs up to
    a fifth of a step in fp32 and half of the augmentation's time (`benchmarks/means.py`). Threads that start after the
    first call use the main thread's heap, because glibc always returns the memory of other threads' heaps.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    libc.mallopt(M_ARENA_MAX, 1)
    libc.mallopt(M_TOP_PAD, 2**27)
    # Older glibc accepts 32 MiB at most. If both fail, the last call would make glibc refetch all blocks above 128 KiB.
    if libc.mallopt(M_MMAP_THRESHOLD, 2**30) or libc.mallopt(M_MMAP_THRESHOLD, 2**25):
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def kept_memory() -> Iterator[None]:
    """Keep freed memory inside the block, and return free memory to the system at its end."""
    keep_memory()
    try:
        yield
    finally:
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)
