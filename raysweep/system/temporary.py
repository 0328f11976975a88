"""Temporary directories that do not pile up: one that a killed process left is removed by the next process."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "raysweep-"
LOCK = ".in-use"
OLD_SECONDS = 24 * 3600.0
"""A directory without a lock file is left over only after this time: its process may be about to make the file."""


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """A new directory, removed at the end; those that killed processes of this user left are removed first."""
    remove_left_over(Path(tempfile.gettempdir()))
    with (
        tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as name,
        open(Path(name, LOCK), "w") as file,
    ):
        with suppress(OSError):  # a file system without locks: then nobody removes the directory but this process
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield Path(name)


def remove_left_over(parent: Path) -> None:
    """Remove our temporary directories in `parent` whose process has ended: its lock has ended with it."""
    for directory in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):  # another process removes it at this moment, or it belongs to another user
            if directory.is_symlink() or directory.stat().st_uid != os.getuid():
                continue
            if is_left_over(directory):
                shutil.rmtree(directory, ignore_errors=True)


def is_left_over(directory: Path) -> bool:
    """Whether no process uses the directory any more; raises OSError where that cannot be told."""
    try:
        with open(directory / LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return time.time() - directory.stat().st_mtime > OLD_SECONDS
