"""Compare the results of this working tree with the results of another commit, bit for bit.

`python benchmarks/same_results.py COMMIT` runs small sweeps with the command of both trees: every method and layer-wise
mode, both encoders, every policy, grids of probes, few labels, an image folder evaluated on another dataset, a resumed
sweep, an ASHA sweep, and a trial in two processes, all in fp32 on one thread. It compares every metric, every table,
every TensorBoard scalar and every weight of every encoder, except clocks. It prints one line for each difference and
the number of differences; the exit status is 1 if there are any. Settings that only the working tree has are listed but
not compared.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from raysweep.config import with_present_names

ROOT = Path(__file__).resolve().parents[1]
RENAMED = {"probe_grid": "probe_bank"}
"""Settings that have another name in the older commit: a mapping from new to old names."""
CLOCKS = {"wall_s", "continued_s", "attempts", "pretrain/images_per_s", "fingerprint"}
"""Columns and metrics that are not compared: clocks, and the hash of the protocol, whose entries are compared."""
TABLES = ("results.csv", "summary.csv", "differences.csv")
LOCAL_ONLY = ("local", "grid", "folder", "resumed")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

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
            {"usl_type": ["ae_single"], "denoising": [True], "layerwise": ["greedy"], "seed": [1]},
            {"usl_type": ["simclr"], "blur": [True], "init": ["kaiming"], "strength": [0.3, 1.0], "seed": [2]},
            {"encoder": ["resnet18"], "usl_epochs": [1], "usl_type": ["simclr"], "seed": [0]},
            {"image_size": [12], "probe_layer": ["embedding"], "standardize": [False], "seed": [3]},
        ],
        "baseline": False,
    },
    "grid": {
        "base": {**BASE, "probe_grid": {"lr": [1e-3, 1e-2], "layer": ["trunk", "embedding"]}, "labels_per_class": 3},
        "search": {"seed": [2]},
    },
    "folder": {"base": {**BASE, "batch_size": 8, "knn_k": 3}, "search": {"usl_type": ["simclr"], "seed": [0, 1]}},
    "resumed": {"base": BASE, "search": {"alpha": [0.1], "seed": [0]}, "baseline": True},
    "asha": {
        "base": {**BASE, "usl_epochs": 4},
        "search": {"usl_lr": [1e-3, 1e-5, 1e-6], "seed": [0]},
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
    """Run both trees and compare the results; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="the commit to compare with")
    parser.add_argument("--only", nargs="+", choices=SPACES, default=list(SPACES), help="some of the sweeps")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a new directory for the results, which is kept")
    parsed = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # removes the temporary checkout
    with scratch_directory(parsed.keep) as folder, checked_out(parsed.commit) as old:
        make_images(folder / "images")
        for name, tree, renamed in (("old", old, RENAMED), ("new", ROOT, {})):
            check_imports(tree)
            for space in parsed.only:
                started = time.monotonic()
                run_space(tree, space, folder, folder / name, renamed)
                print(f"{name}: {space}: {time.monotonic() - started:.0f} s", flush=True)
        differences = []
        for space in parsed.only:
            one, other = folder / "old" / space, folder / "new" / space
            added = added_settings(one, other)
            lines = list(compare(one, other))
            count = len(list(other.glob("*/result.json")))
            names = f"; settings that only the working tree has: {', '.join(sorted(added))}" if added else ""
            print(f"{space}: {count} trials, {len(lines)} differences{names}")
            differences += lines
    for line in differences:
        print(line)
    print(f"{len(differences)} differences")
    return 1 if differences else 0


@contextmanager
def scratch_directory(kept: Path | None) -> Iterator[Path]:
    """Yield a directory for the results: `kept` or a temporary one."""
    if kept is not None:
        kept.mkdir(parents=True)
        yield kept.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="same-results-") as scratch:
        yield Path(scratch)


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """Yield a temporary directory with the files of a commit."""
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


def run_space(tree: Path, name: str, folder: Path, output: Path, renamed: Mapping[str, str]) -> None:
    """Run a sweep with the code of `tree`.

    Args:
        tree: the root of a checkout.
        name: the sweep, one of `SPACES`.
        folder: the directory of the search-space files and of the image folder.
        output: the directory of the results.
        renamed: the settings that have another name in this tree, by their new names.
    """
    space = json.loads(json.dumps(SPACES[name]))
    if name == "folder":
        space["base"] |= {"dataset": f"folder:{folder / 'images'}", "probe_dataset": "digits", "image_size": 16}
    space["base"] = with_old_names(space["base"], renamed)
    search = space["search"]
    space["search"] = (
        [with_old_names(part, renamed) for part in search]
        if isinstance(search, list)
        else with_old_names(search, renamed)
    )
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps({"name": name, **space}))
    options = ["--local"] if name in LOCAL_ONLY else []
    run_command(tree, folder, file, "--output", output, *options)
    if name == "resumed":
        alpha, seed = renamed.get("alpha", "alpha"), renamed.get("seed", "seed")
        more = ("--set", f"{alpha}=[0.1, 1]", "--set", f"{seed}=[0, 1]")
        run_command(tree, folder, "--resume", output / name, *more, *options)


def with_old_names(settings: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings under their names in the older tree."""
    return {renamed.get(name, name): value for name, value in settings.items()}


def as_renamed(text: str) -> str:
    """Replace old setting names in a text by new ones: in a trial's name (`name=`), or as the whole text."""
    for new, old in RENAMED.items():
        text = re.sub(rf"(?<![\w/.]){re.escape(old)}(?==|\Z)", new, text) if old in text else text
    return text


def environment_of(tree: Path) -> dict[str, str]:
    """Return the environment in which the code of `tree` runs: one thread, and a Ray started only for the sweep."""
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(tree), "RAY_prestart_worker_first_driver": "0"}
    environment.pop("RAY_ADDRESS", None)
    return environment


def check_imports(tree: Path) -> None:
    """Raise SystemExit if `import raysweep` finds another copy, so that no tree is compared with itself."""
    words = [sys.executable, "-c", "import raysweep; print(raysweep.__file__)"]
    process = subprocess.run(words, env=environment_of(tree), cwd=tree, capture_output=True, text=True, check=True)
    package = Path(process.stdout.strip()).resolve()
    if not package.is_relative_to(tree.resolve()):
        raise SystemExit(f"the code of {tree} cannot be run: Python imports {package}")


def run_command(tree: Path, folder: Path, *arguments: object) -> None:
    """Run `run_sweep.py` of a tree in `folder`; raises SystemExit with its output if a trial or the command fails."""
    words = [sys.executable, str(tree / "run_sweep.py"), *map(str, arguments)]
    process = subprocess.run(words, env=environment_of(tree), cwd=folder, capture_output=True, text=True)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(words)}\n{process.stdout}\n{process.stderr}")


def compare(old: Path, new: Path) -> Iterator[str]:
    """Yield a line for each difference between two results directories."""
    trials, others = ({path.parent.name for path in root.glob("*/result.json")} for root in (old, new))
    by_name = {as_renamed(trial): trial for trial in trials}
    if not trials and not others:
        yield f"{old.name}: neither directory has a trial"
    for trial in sorted(by_name.keys() - others):
        yield f"{old.name}/{trial}: is missing in the working tree's results"
    for trial in sorted(others - by_name.keys()):
        yield f"{old.name}/{trial}: is in the working tree's results only"
    added = added_settings(old, new)
    for trial in sorted(by_name.keys() & others):
        where = f"{old.name}/{trial}"
        one, other = old / by_name[trial], new / trial
        yield from compare_results(where, one / "result.json", other / "result.json", added)
        finished = json.loads((other / "result.json").read_text())["status"] == "finished"
        yield from compare_weights(where, one, other, finished)
        yield from compare_scalars(where, one, other)
    for table in TABLES:
        yield from compare_tables(f"{old.name}/{table}", old / table, new / table, added)
    yield from compare_texts(f"{old.name}/summary.md", old / "summary.md", new / "summary.md")


def added_settings(old: Path, new: Path) -> set[str]:
    """Return the settings that only the results in `new` have."""
    one, other = (
        {name for path in root.glob("*/result.json") for name in json.loads(path.read_text())["settings"]}
        for root in (old, new)
    )
    return other - {as_renamed(name) for name in one}


def compare_results(where: str, old: Path, new: Path, added: set[str]) -> Iterator[str]:
    """Compare all fields of one trial's `result.json` except clocks."""
    one, other = (json.loads(path.read_text()) for path in (old, new))
    for key in sorted((one.keys() | other.keys()) - CLOCKS):
        values = [one.get(key), other.get(key)]
        if isinstance(values[0], str):
            values[0] = as_renamed(values[0])
        if not isinstance(values[0], dict) or not isinstance(values[1], dict):
            if bits(values[0]) != bits(values[1]):
                yield f"{where}: {key}: {values[0]!r} became {values[1]!r}"
            continue
        before = {as_renamed(name): value for name, value in with_present_names(values[0]).items()}
        new_names = added if key == "settings" else set()
        for name in sorted((before.keys() | values[1].keys()) - CLOCKS - new_names):
            pair = [part.get(name, "no such value") for part in (before, values[1])]
            if bits(pair[0]) != bits(pair[1]):
                label = name if key == "metrics" else f"{key}: {name}"
                yield f"{where}: {label}: {pair[0]!r} became {pair[1]!r}"


def bits(value: Any) -> Any:
    """Return a form of `value` in which floats are equal if their bits are: NaN equals NaN, 0.0 differs from -0.0."""
    return ("float", struct.pack("<d", value)) if isinstance(value, float) else (type(value).__name__, value)


def weights_of(trial: Path) -> dict[str, Any]:
    """Read the weights of a trial's encoder from a file of this or an older version; empty for a stopped trial."""
    import torch
    from safetensors.torch import load_file

    if (trial / "encoder.safetensors").exists():
        return dict(load_file(trial / "encoder.safetensors"))
    if (trial / "encoder.pt").exists():
        return dict(torch.load(trial / "encoder.pt", weights_only=True)["encoder"])
    return {}


def compare_weights(where: str, old: Path, new: Path, finished: bool) -> Iterator[str]:
    """Compare the encoders of one trial; a finished trial must have one."""
    one, other = weights_of(old), weights_of(new)
    if finished and not one and not other:
        yield f"{where}: neither directory has the weights of its encoder"
    for name in sorted(one.keys() ^ other.keys()):
        yield f"{where}: weight {name} is in one of the two encoders only"
    for name in sorted(one.keys() & other.keys()):
        (before, shape), (after, new_shape) = (
            (weights[name].contiguous().numpy(), (tuple(weights[name].shape), str(weights[name].dtype)))
            for weights in (one, other)
        )
        if shape != new_shape:
            yield f"{where}: weight {name}: {shape} became {new_shape}"
        elif before.tobytes() != after.tobytes():
            yield f"{where}: weight {name} differs"


def scalars_of(trial: Path) -> dict[str, list[tuple[int, float]]]:
    """Return steps and values of every TensorBoard scalar of a trial, except clocks."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trial), size_guidance={"scalars": 0}).Reload()
    tags = set(events.Tags()["scalars"]) - CLOCKS
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in tags}


def compare_scalars(where: str, old: Path, new: Path) -> Iterator[str]:
    """Compare TensorBoard's scalars of one trial: a line for each tag, with the first point that differs."""
    one, other = scalars_of(old), scalars_of(new)
    if not one and not other:
        yield f"{where}: neither directory has a TensorBoard scalar"
    for tag in sorted(one.keys() | other.keys()):
        for before, after in itertools.zip_longest(one.get(tag, []), other.get(tag, [])):
            if before is None or after is None or (before[0], bits(before[1])) != (after[0], bits(after[1])):
                yield f"{where}: TensorBoard's {tag}: (step, value) {before} became {after}"
                break


def compare_tables(where: str, old: Path, new: Path, added: set[str]) -> Iterator[str]:
    """Compare two CSV files cell by cell, except the columns of clocks and of added settings."""
    if not old.exists() or not new.exists():
        if old.exists() != new.exists():
            yield f"{where}: is in one of the two directories only"
        return
    tables = []
    for path in (old, new):
        with open(path, newline="") as file:
            tables.append(list(csv.reader(file)))
    (header, *rows), (new_header, *new_rows) = tables
    header = [as_renamed(column) for column in header]
    places, new_places = ({c: i for i, c in enumerate(names)} for names in (header, new_header))
    if len(header) > len(places) or len(new_header) > len(new_places):
        yield f"{where}: two columns have the same name"
    for column in sorted(places.keys() ^ (new_places.keys() - (added - places.keys()))):
        yield f"{where}: column {column} is in one of the two tables only"
    if len(rows) != len(new_rows):
        yield f"{where}: {len(rows)} rows became {len(new_rows)}"
    # "pretrain/images_per_s mean" is a column of summary.csv.
    columns = [column for column in places if column in new_places and column.split(" ")[0] not in CLOCKS]
    scores = places.get("score")  # differences.csv has a row for each score
    for number, (row, new_row) in enumerate(zip(rows, new_rows, strict=False), start=1):
        if scores is not None and row[scores] in CLOCKS and new_row[new_places["score"]] in CLOCKS:
            continue
        for column in columns:
            before, after = as_renamed(row[places[column]]), new_row[new_places[column]]
            if column in RENAMED:
                before = with_present_names({RENAMED[column]: before}).get(column, before)
            if before != after:
                yield f"{where}: row {number}: {column}: {before!r} became {after!r}"


def is_row(line: str) -> bool:
    """Whether a line of a summary is a row of a table, without clocks."""
    return line.startswith("|") and not any(clock in line for clock in CLOCKS)


def compare_texts(where: str, old: Path, new: Path) -> Iterator[str]:
    """Compare the tables in two texts line by line, except lines with clocks. Sentences may be rewritten."""
    if not old.exists() or not new.exists():
        if old.exists() != new.exists():
            yield f"{where}: is in one of the two directories only"
        return
    one, other = ([line for line in path.read_text().splitlines() if is_row(line)] for path in (old, new))
    for number, (before, after) in enumerate(itertools.zip_longest(map(as_renamed, one), other), start=1):
        if before != after:
            yield f"{where}: table row {number}: {before!r} became {after!r}"


if __name__ == "__main__":
    sys.exit(main())
