"""A small race of seeds, an interrupt inside it, and the comparison of two races."""

from __future__ import annotations

import csv
import io

from raysweep.backends.progress import Silence, SilentTrials

SAME = ("race.json", "results.csv", "summary.md", "differences.csv")
"""The files that are equal for two runs of one race."""
CLOCKS = ("pretrain/images_per_s", "wall_s", "attempts")
"""The columns of `results.csv` that differ from run to run."""


def race_of(few, most=5):
    """Return the content of a search-space file with two points, each pretraining for one epoch on few images."""
    base = {**few, "usl_epochs": 1, "le_epochs": 2, "probe_every": 0, "images_every": 0}
    search = {"alpha": [0.01, 10]}
    return {"name": "race", "base": base, "search": search, "seeds": {"most": most, "until": "separated"},
            "baseline": True}  # fmt: skip


def content(root, name):
    """Return the content of a file of a results directory, without the columns in `CLOCKS`."""
    text = (root / name).read_text()
    if name != "results.csv":
        return text
    return [{key: row[key] for key in row if key not in CLOCKS} for row in csv.DictReader(io.StringIO(text))]


class Interrupting(Silence, SilentTrials):
    """A display in which the user interrupts the race at one of its moments.

    Args:
        moment: The round that has just been recorded ("round"), or the end of the first trial of a round ("trial").
    """

    def __init__(self, moment):
        self.moment, self.rounds = moment, 0

    def trials(self, sweep, kept):
        return self

    def extend(self, sweep):
        self.rounds += 1
        if self.moment == "round":
            raise KeyboardInterrupt

    def end(self, result):
        if self.moment == "trial" and self.rounds:
            raise KeyboardInterrupt
