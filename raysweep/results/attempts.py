"""The attempts of one trial, and the lock that keeps two processes from running the same trial."""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from raysweep.config import Settings
from raysweep.results.result import attempts
from raysweep.system.files import (
    TEMPORARY_END,
    check_held,
    discard,
    holding,
    irregular,
    is_occupied,
    open_lock,
    same_file,
    set_aside,
    try_lock,
    write_json,
)

TEMPORARY = re.compile(rf"\..+{TEMPORARY_END.pattern}")
"""Names of the temporary files that remain when a process is killed inside `replacing`."""

HOLD_SECONDS = 60.0


@contextmanager
def hold_directory(directory: Path) -> Iterator[None]:
    """Lock a trial's directory for this process, and wait for any process that holds the lock.

    The lock is released when its process dies. The wait is needed because a worker survives a killed driver by some
    seconds, and the sweep may already be resumed by then.

    Raises:
        TimeoutError: Another process still holds the lock after `HOLD_SECONDS`.
        InputError: The file system cannot lock files.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path, end = directory / ".lock", time.monotonic() + HOLD_SECONDS
    while True:
        with open_lock(path) as file:
            # The previous holder may have removed this file after it was opened here.
            if try_lock(file, directory) and same_file(file.fileno(), path):
                try:
                    with holding(directory, file):
                        yield
                finally:
                    with suppress(OSError):  # the directory may be read-only by now; closing the file ends the lock
                        if same_file(file.fileno(), path):
                            path.unlink()
                return
        if time.monotonic() > end:
            raise TimeoutError(errno.ETIMEDOUT, "another process still runs the trial in it", str(directory))
        time.sleep(0.1)


def begin_attempt(directory: Path, settings: Settings) -> int:
    """Record in `attempt.json` that this process runs the trial with these settings.

    Anything that blocks the path of one of the trial's files is set aside.

    Returns:
        The number of this attempt, from 1.
    """
    check_held(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for left in ("result.json", "error.txt", "curves.csv"):  # left by a failed attempt
        discard(directory / left)
    for path in directory.iterdir():
        if TEMPORARY.fullmatch(path.name) and path.is_file():  # left by a process that was killed in `replacing`
            path.unlink(missing_ok=True)
        elif path.name.startswith("events.out.tfevents.") and irregular(path) is not None:
            set_aside(path, name=f"set-aside.{path.name}")  # under its old name it would count as an event file
    checkpoints = directory / "checkpoints"
    if is_occupied(checkpoints) and not checkpoints.is_dir():
        set_aside(checkpoints)
    attempt = attempts(directory) + 1
    write_json(
        directory / "attempt.json",
        {
            "attempt": attempt,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),  # the GPUs that Ray assigned; None means all GPUs
            "started": time.time(),
            "settings": settings.model_dump(),
        },
    )
    return attempt
