"""Temporary directories that do not accumulate: the next process removes what a killed process left."""

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
"""Age in seconds at which a directory without a lock file counts as left over; a new process may still create one."""


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """Create a directory that is removed at the end; first remove those that this user's killed processes left."""
    remove_left_over(Path(tempfile.gettempdir()))
    with (
        tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as name,
        open(Path(name, LOCK), "w") as file,
    ):
        with suppress(OSError):  # if the file system has no locks, only this process ever removes the directory
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield Path(name)


def remove_left_over(parent: Path) -> None:
    """Remove raysweep's temporary directories in `parent` whose lock has ended with their process."""
    for directory in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):  # another process may be removing it, or it may belong to another user
            if directory.is_symlink() or directory.stat().st_uid != os.getuid():
                continue
            if is_left_over(directory):
                shutil.rmtree(directory, ignore_errors=True)


def is_left_over(directory: Path) -> bool:
    """Return whether no process uses the directory any more; raises OSError if that cannot be told."""
    try:
        with open(directory / LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return time.time() - directory.stat().st_mtime > OLD_SECONDS
