"""The attempts of one trial, and the lock that keeps two processes from working on it."""

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
    check_held,
    discard,
    holding,
    irregular,
    lies,
    open_lock,
    same_file,
    set_aside,
    try_lock,
    write_json,
)

TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")
"""What a process leaves that is killed in `replacing`."""

HOLD_SECONDS = 60.0


@contextmanager
def hold_directory(directory: Path) -> Iterator[None]:
    """Hold a trial's directory for this process, waiting for the process that has it: it dies with that process.

    A worker whose driver was killed lives on for seconds, in which the sweep may be resumed already.

    Raises:
        TimeoutError: another process still has it after `HOLD_SECONDS`.
        InputError: the file system cannot lock files.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path, end = directory / ".lock", time.monotonic() + HOLD_SECONDS
    while True:
        with open_lock(path) as file:
            # The file may be one that its last holder has removed.
            if try_lock(file, directory) and same_file(file.fileno(), path):
                try:
                    with holding(directory, file):
                        yield
                finally:
                    with suppress(OSError):  # read-only by now; the lock itself goes with the open file
                        if same_file(file.fileno(), path):
                            path.unlink()
                return
        if time.monotonic() > end:
            raise TimeoutError(errno.ETIMEDOUT, "another process still runs the trial in it", str(directory))
        time.sleep(0.1)


def begin_attempt(directory: Path, settings: Settings) -> int:
    """Note that this process now runs the trial with these settings; returns which attempt this is, from 1.

    What does not belong where a file of the trial will be written is set aside.
    """
    check_held(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for left in ("result.json", "error.txt"):  # of an attempt that failed
        discard(directory / left)
    for path in directory.iterdir():
        if TEMPORARY.fullmatch(path.name) and path.is_file():  # of a process that was killed in `replacing`
            path.unlink()
        elif path.name.startswith("events.out.tfevents.") and irregular(path) is not None:
            set_aside(path, name=f"set-aside.{path.name}")  # its own name would count as an event file
    checkpoints = directory / "checkpoints"
    if lies(checkpoints) and not checkpoints.is_dir():
        set_aside(checkpoints)
    attempt = attempts(directory) + 1
    write_json(
        directory / "attempt.json",
        {
            "attempt": attempt,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),  # the GPUs that Ray gave this process; None means all
            "started": time.time(),
            "settings": settings.model_dump(),
        },
    )
    return attempt
