"""Compare the results of this working tree with those of another commit, bit for bit.

`python benchmarks/same_results.py COMMIT` runs small sweeps with both: every method and layer-wise mode, both encoders,
every policy, grids of probes, few labels, an image folder evaluated on another dataset, a resumed sweep, an ASHA sweep,
and a trial in two processes, all in fp32 on one thread. It compares every metric, every table, every TensorBoard scalar
and every weight of every encoder. It prints one line for each difference and their number, and fails if there are any.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
CLOCKS = {"wall_s", "attempts", "pretrain/images_per_s"}
"""Columns and metrics that differ from run to run."""
LOCAL_ONLY = ("local", "folder", "resumed")

BASE = {
    "dataset": "digits",
    "usl_epochs": 2,
    "le_epochs": 3,
    "precision": "fp32",
    "probe_every": 1,
    "images_every": 1,
    "batch_size": 100,
}
SPACES: dict[str, dict[str, Any]] = {
    "local": {
        "base": BASE,
        "search": [
            {
                "usl_type": ["ae_single", "ae_parallel", "simclr"],
                "layerwise": ["none", "greedy", "random"],
                "seed": [0],
            },
            {"emb_loss": ["l1", "simclr", "barlow", "hinge"], "seed": [1]},
            {"usl_type": ["ae_single"], "denoising": [True], "policy": ["affine", "noise", "mask", "noise+simclr"]},
            {"usl_type": ["simclr"], "blur": [True], "init": ["kaiming"], "strength": [0.3, 1.0], "seed": [2]},
            {"probe_bank": ["lr=1e-3+1e-2,layer=trunk+embedding"], "labels_per_class": [3], "seed": [2]},
            {"encoder": ["resnet18"], "usl_epochs": [1], "usl_type": ["simclr"], "seed": [0]},
            {"image_size": [12], "probe_layer": ["embedding"], "standardize": [False], "seed": [3]},
        ],
        "baseline": False,
    },
    "folder": {"base": {**BASE, "batch_size": 8, "knn_k": 3}, "search": {"usl_type": ["simclr"], "seed": [0, 1]}},
    "resumed": {"base": BASE, "search": {"alpha": [0.1], "seed": [0]}, "baseline": True},
    "asha": {
        "base": {**BASE, "usl_epochs": 4},
        "search": {"alpha": [0.01, 100, 10000], "seed": [0]},
        "tune": {
            "scheduler": "asha",
            "metric": "pretrain/loss",
            "mode": "min",
            "reduction_factor": 2,
            "max_concurrent": 1,
        },
    },
    "workers": {"base": {**BASE, "emb_loss": "barlow"}, "search": {"seed": [0]}, "resources": {"workers": 2}},
}


def main(arguments: list[str] | None = None) -> int:
    """Run both trees and compare; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="the commit to compare with")
    parser.add_argument("--only", nargs="+", choices=SPACES, default=list(SPACES), help="some of the sweeps")
    parsed = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="same-results-") as scratch, checked_out(parsed.commit) as old:
        folder = Path(scratch)
        make_images(folder / "images")
        for name, tree in (("old", old), ("new", ROOT)):
            for space in parsed.only:
                print(f"{name}: {space}", flush=True)
                run_space(tree, space, folder, folder / name)
        differences = [
            line for space in parsed.only for line in compare(folder / "old" / space, folder / "new" / space)
        ]
    for line in differences:
        print(line)
    print(f"{len(differences)} differences")
    return 1 if differences else 0


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A temporary directory with the files of a commit."""
    with tempfile.TemporaryDirectory(prefix="same-results-tree-") as scratch:
        tree = Path(scratch) / "tree"
        subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "--detach", "-q", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(tree)], check=True)


def make_images(folder: Path) -> None:
    """Write noise as an image folder of two classes."""
    from PIL import Image

    draws = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 6)):
        for label in ("a", "b"):
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = draws.integers(0, 256, (24, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{number}.png")


def run_space(tree: Path, name: str, folder: Path, output: Path) -> None:
    """Run a sweep with the code of `tree`."""
    space = json.loads(json.dumps(SPACES[name]))
    if name == "folder":
        space["base"] |= {"dataset": f"folder:{folder / 'images'}", "probe_dataset": "digits", "image_size": 16}
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps({"name": name, **space}))
    options = ["--local"] if name in LOCAL_ONLY else []
    command(tree, file, "--output", output, *options)
    if name == "resumed":
        command(tree, "--resume", output / name, "--set", "alpha=[0.1, 1]", "--set", "seed=[0, 1]", *options)


def command(tree: Path, *arguments: object) -> None:
    """The real command of a tree."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "RAY_prestart_worker_first_driver": "0"}
    words = [sys.executable, str(tree / "run_sweep.py"), *map(str, arguments)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)}\n{done.stdout}\n{done.stderr}")


def compare(old: Path, new: Path) -> Iterator[str]:
    """A line for each difference between two results directories."""
    trials = sorted(path.parent.name for path in old.glob("*/result.json"))
    others = sorted(path.parent.name for path in new.glob("*/result.json"))
    if trials != others:
        yield f"{old.name}: trials {sorted(set(trials) ^ set(others))} are in one of the two only"
    for trial in sorted(set(trials) & set(others)):
        where = f"{old.name}/{trial}"
        yield from compare_results(where, old / trial / "result.json", new / trial / "result.json")
        yield from compare_weights(where, old / trial, new / trial)
        if scalars_of(old / trial) != scalars_of(new / trial):
            yield f"{where}: TensorBoard's scalars differ"
    for table in ("results.csv", "summary.csv", "differences.csv"):
        yield from compare_tables(f"{old.name}/{table}", old / table, new / table)


def compare_results(where: str, old: Path, new: Path) -> Iterator[str]:
    """Compare the status, the metrics and the protocol of one trial."""
    one, other = (json.loads(path.read_text()) for path in (old, new))
    for key in ("status", "error", "protocol", "linear_probe"):
        if one[key] != other[key]:
            yield f"{where}: {key}: {one[key]!r} became {other[key]!r}"
    for name in sorted((one["metrics"].keys() | other["metrics"].keys()) - CLOCKS):
        values = [result["metrics"].get(name) for result in (one, other)]
        if values[0] is None or values[1] is None or struct.pack("d", values[0]) != struct.pack("d", values[1]):
            yield f"{where}: {name}: {values[0]!r} became {values[1]!r}"


def weights_of(trial: Path) -> dict[str, Any]:
    """The weights of a trial's encoder, from a file of this or of an older version; empty for a stopped trial."""
    import torch
    from safetensors.torch import load_file

    if (trial / "encoder.safetensors").exists():
        return dict(load_file(trial / "encoder.safetensors"))
    if (trial / "encoder.pt").exists():
        return dict(torch.load(trial / "encoder.pt", weights_only=True)["encoder"])
    return {}


def compare_weights(where: str, old: Path, new: Path) -> Iterator[str]:
    """Compare the encoders of one trial."""
    one, other = weights_of(old), weights_of(new)
    for name in sorted(one.keys() ^ other.keys()):
        yield f"{where}: weight {name} is in one of the two encoders only"
    for name in sorted(one.keys() & other.keys()):
        if one[name].numpy().tobytes() != other[name].numpy().tobytes():
            yield f"{where}: weight {name} differs"


def scalars_of(trial: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of every scalar that TensorBoard shows of a trial."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trial), size_guidance={"scalars": 0}).Reload()
    tags = set(events.Tags()["scalars"]) - CLOCKS
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in tags}


def compare_tables(where: str, old: Path, new: Path) -> Iterator[str]:
    """Compare the columns that both tables have; a column that is gone is a difference, a new one is not."""
    tables = []
    for path in (old, new):
        with open(path, newline="") as file:
            tables.append(list(csv.DictReader(file)))
    if len(tables[0]) != len(tables[1]):
        yield f"{where}: {len(tables[0])} rows became {len(tables[1])}"
    for number, (row, other) in enumerate(zip(*tables, strict=False)):
        for column, value in row.items():
            is_clock = any(column.startswith(clock) or column == clock for clock in CLOCKS)
            if not is_clock and value != other.get(column):
                yield f"{where}: row {number}: {column}: {value!r} became {other.get(column)!r}"


if __name__ == "__main__":
    sys.exit(main())
