"""Whole sweeps compared with common alternatives: a plain Ray Tune script of equal work, and lightly's SimCLR recipe.

    python benchmarks/sweeps.py
    python benchmarks/sweeps.py --quick --part digits

`digits` and `cifar` time two commands from start to exit, in turns, with one core per trial: `run_sweep.py` on a file
in `benchmarks/search_spaces/` (at the default precision and at the other of fp32 and bf16), and
`benchmarks/peers/plain_tune.py`. `lightly` compares images per second in one process on one thread. `cifar` uses random
images of CIFAR's shape, or the first images of each class below `--folder`. The script writes
`benchmarks/results/sweep-digits.json`, `sweep-cifar.json` and `lightly.json`, and takes half an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import measure
import numpy as np
import yaml
from PIL import Image

SPACES = measure.ROOT / "benchmarks" / "search_spaces"
LAUNCHER = measure.ROOT / "run_sweep.py"
PEERS = measure.ROOT / "benchmarks" / "peers"
CLASSES = 10
PLAIN, OURS = "plain script", "raysweep"


def environment() -> dict[str, str]:
    """Return the environment of both commands, in which they find no existing Ray cluster."""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(measure.ROOT), os.environ.get("PYTHONPATH", "")])}
    variables.pop("RAY_ADDRESS", None)
    return variables


def call(command: Sequence[object], log: Path) -> None:
    """Run a command to its end; if it fails, raise SystemExit with the end of its output."""
    with open(log, "wb") as stream:
        child = subprocess.Popen(list(map(str, command)), env=environment(), stdout=stream, stderr=subprocess.STDOUT)
    try:
        status = child.wait()
    except BaseException:  # before this process ends, SIGTERM lets the child stop its own Ray
        child.terminate()
        child.wait()
        raise
    if status != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{log.read_text(errors='replace')[-2000:]}")


def precisions() -> dict[str, list[str]]:
    """Return the names of raysweep's runs, the default first, with their flags."""
    from raysweep.config import Settings
    from raysweep.methods.precision import precision_of

    default = precision_of(Settings(), "cpu")
    others = [name for name in ("fp32", "bf16") if name != default]
    return {f"{OURS}, {default} (default)": [], **{f"{OURS}, {name}": ["--precision", name] for name in others}}


class Sweeps:
    """Runs of the two commands on one search space, each into a new directory below `folder`.

    Args:
        space: the file in `search_spaces/`.
        dataset: `digits`, or a folder of images.
        changes: settings that override the settings of the file, for `--quick`.
        folder: an empty directory.
    """

    def __init__(self, space: Path, dataset: str, changes: dict[str, Any], folder: Path) -> None:
        self.space, self.dataset, self.folder, self.runs = space, dataset, folder, 0
        content = yaml.safe_load(space.read_text())
        self.alphas = changes.pop("alpha", content["search"]["alpha"]["grid"])
        self.changes, self.base = changes, {**content["base"], **changes}
        self.trials: dict[str, list[dict[str, Any]]] = {}

    def plain(self) -> None:
        """Run the plain script."""
        self.runs += 1
        root = self.folder / str(self.runs)
        root.mkdir()
        names = ("usl_epochs", "usl_lr", "le_epochs", "batch_size")
        flags = [item for name in names for item in (f"--{name.replace('_', '-')}", self.base[name])]
        flags += ["--alpha", *self.alphas, "--cores", measure.machine()["cores"], "--storage", root]
        script = PEERS / "plain_tune.py"
        call([sys.executable, script, "--dataset", self.dataset, *flags, "--out", root / "out.json"], root / "log")
        self.trials[PLAIN] = json.loads((root / "out.json").read_text())

    def ours(self, name: str, flags: Sequence[str]) -> None:
        """Run the real command."""
        self.runs += 1
        root = self.folder / str(self.runs)
        root.mkdir()
        changes = [item for key, value in self.changes.items() for item in ("--set", f"{key}={value}")]
        changes += ["--set", f"alpha={list(self.alphas)}"]
        if self.dataset != "digits":
            changes += ["--dataset", f"folder:{self.dataset}"]
        call(
            [sys.executable, LAUNCHER, self.space, *changes, *flags, "--output", root, "--name", "sweep"], root / "log"
        )
        results = [json.loads(path.read_text()) for path in sorted((root / "sweep").glob("*/result.json"))]
        assert len(results) == len(self.alphas)
        self.trials[name] = [
            {
                "alpha": result["settings"]["alpha"],
                "wall_s": result["wall_s"],
                "test_accuracy": result["metrics"]["linear/test_accuracy"],
            }
            for result in results
        ]
        shutil.rmtree(root / "sweep")

    def compare(self, repeats: int) -> dict[str, Any]:
        """Run both in turns; each ratio is the plain script's time over ours within a turn."""
        work: dict[str, Callable[[], object]] = {PLAIN: self.plain}
        for name, flags in precisions().items():
            work[name] = lambda name=name, flags=flags: self.ours(name, flags)  # type: ignore[misc]
        seconds = measure.alternate(work, repeats, warm_up=False)
        default = next(iter(precisions()))
        return {
            "work": {**self.base, "alpha": self.alphas, "trials": len(self.alphas)},
            "seconds": seconds,
            "times faster than the plain script": {
                name: measure.ratio(seconds[PLAIN], values) for name, values in seconds.items() if name != PLAIN
            },
            "default": default,
            "trials of the last turn": self.trials,
        }


def make_folder(root: Path, images: int, source: Path | None) -> Path:
    """Create a folder of classes with random images of CIFAR's shape, or links to the first images below `source`."""
    draws = np.random.RandomState(0)
    for split, count in (("train", images), ("test", images // 5)):
        if source is not None:
            classes = sorted(path for path in (source / split).iterdir() if path.is_dir())
            for label in classes:
                (root / split / label.name).mkdir(parents=True)
                for path in sorted(label.iterdir())[: count // len(classes)]:
                    (root / split / label.name / path.name).symlink_to(path.resolve())
            continue
        for number in range(CLASSES):
            (root / split / f"class{number}").mkdir(parents=True)
            for i in range(count // CLASSES):
                pixels = draws.randint(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / f"class{number}" / f"{i:05}.png")
    return root


def compare_lightly(images: int, repeats: int) -> dict[str, Any] | None:
    """Measure SimCLR's images per second at batch 250 on one thread; return None if lightly is not installed."""
    import torch

    sys.path.insert(0, str(PEERS))
    try:
        from lightly_simclr import Recipe
    except ModuleNotFoundError as fault:
        if fault.name is None or fault.name.partition(".")[0] != "lightly":
            raise
        print("lightly is not installed (pip install 'raysweep[bench]'): left out")
        return None
    from raysweep.config import Settings
    from raysweep.system.memory import keep_memory
    from raysweep.training.loop import pretrain
    from raysweep.training.state import fresh_state

    torch.set_num_threads(1)
    keep_memory()
    pixels = np.random.RandomState(0).randint(0, 256, (images, 32, 32, 3), dtype=np.uint8)
    recipe = Recipe(pixels, 250)
    work: dict[str, Callable[[], object]] = {"lightly": recipe.epoch}
    resident = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    for name, flags in precisions().items():
        chosen = {"precision": flags[1]} if flags else {}
        # Strength 1 applies as many operations as lightly's defaults: colour changes with probability 0.8.
        settings = Settings.model_validate(
            {"usl_type": "simclr", "usl_lr": 1e-3, "strength": 1.0, "usl_epochs": repeats + 1, **chosen}
        )
        epochs = pretrain(settings, fresh_state(settings, 3, 32, torch.device("cpu")), resident)
        work[name] = lambda epochs=epochs: next(epochs)  # type: ignore[misc]
    seconds = measure.alternate(work, repeats)
    counted = len(recipe.loader) * 250
    return {
        "work": {"images per epoch": counted, "batch_size": 250, "threads": 1, "encoder": "conv6", "size": "32×32×3"},
        "seconds": seconds,
        "images per second": {name: measure.summary([counted / s for s in values]) for name, values in seconds.items()},
        "times faster than lightly": {
            name: measure.ratio(seconds["lightly"], values) for name, values in seconds.items() if name != "lightly"
        },
        "default": next(iter(precisions())),
    }


def show(title: str, content: dict[str, Any]) -> None:
    """Print medians and ratios."""
    print(f"\n{title}")
    ratios = next(value for key, value in content.items() if key.startswith("times faster"))
    for name, values in measure.load(title)["seconds"].items():  # type: ignore[index]
        factor = f"{ratios[name]['median']:6.2f} ×" if name in ratios else ""
        print(f"  {name:28} {values['median']:8.2f} s  {factor}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Whole sweeps against a plain script and lightly.")
    parser.add_argument("--part", choices=["digits", "cifar", "lightly"], action="append", help="default: all")
    parser.add_argument("--folder", type=Path, help="train/<class>/*, test/<class>/*; default: random images")
    parser.add_argument("--images", type=int, default=3000, help="training images of the cifar sweep (3000)")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of each sweep (3); lightly has at least five")
    parser.add_argument("--quick", action="store_true", help="small and once: for development, no measurement")
    given = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parts = given.part or ["digits", "cifar", "lightly"]
    repeats = 1 if given.quick else given.repeats
    small = {"usl_epochs": 1, "le_epochs": 2, "alpha": [0.1, 1.0]} if given.quick else {}
    with tempfile.TemporaryDirectory(prefix="raysweep-sweeps-") as scratch:
        if "digits" in parts:
            (folder := Path(scratch, "digits")).mkdir()
            content = Sweeps(SPACES / "digits.yaml", "digits", dict(small), folder).compare(repeats)
            measure.save("sweep-digits", {"quick": given.quick, **content})
            show("sweep-digits", content)
        if "cifar" in parts:
            images = 500 if given.quick else given.images
            pictures = make_folder(Path(scratch, "pictures"), images, given.folder)
            (folder := Path(scratch, "cifar")).mkdir()
            content = Sweeps(SPACES / "cifar.yaml", str(pictures), dict(small), folder).compare(repeats)
            kind = "random" if given.folder is None else "first of each class of a folder"
            content["work"].update(dataset=kind, images=images)
            measure.save("sweep-cifar", {"quick": given.quick, **content})
            show("sweep-cifar", content)
    if "lightly" in parts:
        figures = compare_lightly(500 if given.quick else 750, 2 if given.quick else max(5, repeats))
        if figures is not None:
            measure.save("lightly", {"quick": given.quick, **figures})
            show("lightly", figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
