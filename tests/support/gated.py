"""A learning-rate schedule that holds trials before a step until a test lets them go on; see `tests.support.gate`."""

import os
import time
from pathlib import Path
from typing import Annotated

import raysweep

LONGEST = 900.0
"""Longest time in seconds that a trial waits. It is longer than any test waits for something."""


@raysweep.schedule(reads_total=False)
def gated(
    step: int,
    steps: int,
    epoch_steps: int,
    *,
    gate: Annotated[str, "File with the step before which trials wait. They do not wait without it."] = "gate",
) -> float:
    """Return the constant factor 1. A trial that waits creates a file whose name ends with its process id."""
    note, end = Path(f"{gate}.{os.getpid()}"), time.monotonic() + LONGEST
    while read(Path(gate)) == str(step):
        if time.monotonic() > end:  # the test has failed and left its trials behind
            raise TimeoutError(f"nobody opened the gate for {LONGEST} s")
        if not note.exists():
            note.touch()
        time.sleep(0.02)
    note.unlink(missing_ok=True)
    return 1.0


def read(file: Path) -> str:
    """Return the content of a file, or an empty text if there is no such file."""
    try:
        return file.read_text()
    except FileNotFoundError:
        return ""
