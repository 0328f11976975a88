"""The memory that this process may use, and settings of glibc's allocator for trial processes.

It imports nothing heavy, because the settings must be made before a trial's thread starts.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from raysweep.system.cgroups import cgroups

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8  # constants of glibc's malloc.h

LIMITS = {1: "memory.limit_in_bytes", 2: "memory.max"}
"""For each version of cgroups, the file with the largest number of bytes that the processes of a cgroup may use."""


def allowed_memory(proc: Path = Path("/proc/self")) -> int:
    """Return the bytes of memory that this process may use: the machine's memory, or a smaller limit of its cgroups.

    Args:
        proc: The process's directory in /proc.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder, version in cgroups(proc, "memory"):
        with suppress(OSError, ValueError):  # there may be no such file, and `max` in it means no limit
            limits.append(int((folder / LIMITS[version]).read_text()))
    return min(limits)


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
