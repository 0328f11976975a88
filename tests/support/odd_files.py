"""Sweeps with made-up results, and files that are not regular files."""

from __future__ import annotations

import os
import socket

from raysweep import space
from raysweep.results.attempts import begin_attempt
from raysweep.results.result import make_result, write_result
from raysweep.results.store import Store

SWEEP = space.build({"name": "a", "base": {"usl_epochs": 0, "le_epochs": 1}, "search": {"seed": [0, 1]}}, {}, "s.yaml")
METRICS = {"linear/val_accuracy": 0.5, "kmeans/nmi": 1.0 + 2e-16, "kmeans/ari": -0.2, "pretrain/loss": -3.5}


def make(folder):
    """Create a sweep whose two trials have both finished."""
    store = Store(folder / "a").create(SWEEP, {})
    for trial in SWEEP.trials:
        directory = store.trial(trial.name)
        begin_attempt(directory, trial.settings)
        result = make_result(
            trial,
            "digest",
            directory,
            status="finished",
            error=None,
            metrics=METRICS,
            wall_s=1.5,
            device="cpu",
            warnings=["one"],
        )
        write_result(directory, result)
    return store


def a_directory(path):
    path.mkdir()
    (path / "notes").write_text("mine")


def a_socket(path):
    before = os.getcwd()
    os.chdir(path.parent)  # the path of a socket must be short
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path.name)
    listening.close()
    os.chdir(before)


ODD = {
    "a directory": a_directory,
    "a named pipe": os.mkfifo,
    "a socket": a_socket,
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to a directory": lambda path: path.symlink_to("/"),
    "a device": lambda path: path.symlink_to("/dev/zero"),
}
