"""Temporary directories that do not accumulate: the next process removes what a killed process left."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "raysweep-"
LOCK, NEW_LOCK = ".in-use", ".in-use.new"
"""The name of the lock file of a directory, and its name until it is locked."""


@contextmanager
def temporary_directory(parent: Path | None = None, prefix: str = PREFIX) -> Iterator[Path]:
    """Create a directory, and remove it when the block ends.

    A killed process cannot remove its directory. Therefore each call first removes such directories of this user.

    Args:
        parent: The directory in which it is created; None stands for the system's directory for temporary files.
        prefix: The beginning of its name.
    """
    parent = parent or Path(tempfile.gettempdir())
    remove_left_over(parent, prefix)
    with (
        tempfile.TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True) as name,
        open(Path(name, NEW_LOCK), "w") as file,
    ):
        with suppress(OSError):  # if the file system has no locks, only this process ever removes the directory
            file.write(os.uname().nodename)
            file.flush()
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another process would take a directory with an unlocked file of this name for left over.
            Path(name, NEW_LOCK).rename(Path(name, LOCK))
        yield Path(name)


def remove_left_over(parent: Path, prefix: str = PREFIX) -> None:
    """Remove raysweep's temporary directories of this machine in `parent` whose lock has ended with their process.

    A directory without a lock file stays, whatever its age and name, because it may be the user's.
    """
    for directory in parent.glob(f"{prefix}*"):
        with suppress(OSError):  # another process may be removing it, or it may belong to another user
            if directory.is_symlink() or directory.stat().st_uid != os.getuid():
                continue
            if is_left_over(directory):
                shutil.rmtree(directory, ignore_errors=True)


def is_left_over(directory: Path) -> bool:
    """Return whether the directory has a lock file that no process holds; raises OSError if that cannot be told.

    On some network file systems a lock holds on one machine only, so the directories of other machines stay.
    """
    try:
        with open(directory / LOCK, "r+") as file:  # NFS locks only files that are open for writing
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file.read() in ("", os.uname().nodename)  # older versions wrote no name
    except (BlockingIOError, FileNotFoundError):
        return False
