"""How a process of trials keeps its memory. Imports nothing heavy: the thread of a trial begins after it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8  # of glibc's malloc.h


def keep_memory() -> None:
    """Let glibc keep the memory that this process frees; elsewhere nothing happens.

    Blocks above 32 MiB, such as an activation of 500 32×32 images, and the end of the heap it would give back to the
    system at every step, and fetch anew page by page, each cleared first: up to a fifth of a step in fp32, and half of
    the augmentation's time (`benchmarks/means.py`). Threads that begin after the first call use the main one's heap:
    glibc gives back those of other threads whatever it is told.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    libc.mallopt(M_ARENA_MAX, 1)
    libc.mallopt(M_TOP_PAD, 2**27)
    # Older ones take 32 MiB at most; without either the last call would have all above 128 KiB fetched anew.
    if libc.mallopt(M_MMAP_THRESHOLD, 2**30) or libc.mallopt(M_MMAP_THRESHOLD, 2**25):
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def kept_memory() -> Iterator[None]:
    """Keep freed memory, and give back what is free when this ends."""
    keep_memory()
    try:
        yield
    finally:
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)
