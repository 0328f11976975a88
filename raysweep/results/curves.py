"""The file `curves.csv` of a trial: every metric by step, read from the trial's event files."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from raysweep.config import METRICS
from raysweep.results.events import read_scalars
from raysweep.system.files import write_atomically

CURVES = "curves.csv"


def write_curves(directory: Path) -> None:
    """Write `curves.csv`: a row per step and a column per metric, as Tune's `progress.csv`, without empty columns.

    Values have the shortest digits that restore them in single precision, in which the event files hold them. A metric
    that was not measured at a step stays empty there. Without any metric in the event files, nothing is written.

    Args:
        directory: The trial's directory, which holds its event files.

    Raises:
        OSError: A file cannot be read or written.
    """
    steps = read_scalars(directory)
    measured = dict.fromkeys(name for values in steps.values() for name in values)
    columns = [*(name for name in METRICS if name in measured), *(name for name in measured if name not in METRICS)]
    if not columns:
        return
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, ["step", *columns], lineterminator="\n")
    writer.writeheader()
    for step, values in steps.items():
        writer.writerow({"step": step, **{name: str(np.float32(value)) for name, value in values.items()}})
    write_atomically(directory / CURVES, buffer.getvalue().encode())
