"""The cost of a sweep beyond its trials' own work: start-up, each trial, memory, checkpoints and TensorBoard.

    python benchmarks/overhead.py                                                  # 9 minutes on two cores
    python benchmarks/overhead.py --trials 7 20 --short 1 --long 1 --turns 1       # a try: 2 minutes

There are three parts, each with runs in turns:

- sweeps: the real command on Ray with one core per trial. A trial takes a quarter of a second (digits, a random
  encoder, one epoch of the linear probe). Time beyond the trials' own seconds is overhead.
- memory: the workers' memory, according to the kernel, while all trials read one dataset.
- records: one trial of the α experiment (digits, end to end) with and without TensorBoard and checkpoints, and the time
  of each call to them.

The script writes `benchmarks/results/overhead.json`. It needs Linux (`/proc`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import load
import measure
import numpy as np
from PIL import Image

IMAGES, SIDE = 12_000, 16  # the size of the shared dataset, whose files are made and read in seconds
DEFAULT_SECONDS = 30.0  # between two checkpoints of a trial
OFTEN_SECONDS = 1.0  # the same in the run that measures the cost of a checkpoint
SAMPLE_SECONDS = 0.25


@dataclass(frozen=True)
class Span:
    """The times of one trial, in seconds since the Unix epoch."""

    begun: float
    ended: float
    own: float
    """The duration that the trial itself reports."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="What a sweep costs beside its trials' own work.")
    parser.add_argument("--trials", type=int, nargs="+", default=[7, 100, 500], help="numbers of trials of the sweeps")
    parser.add_argument("--short", type=int, default=5, help="runs of each sweep except the longest (5)")
    parser.add_argument("--long", type=int, default=3, help="runs of the longest sweep (3)")
    parser.add_argument("--turns", type=int, default=5, help="runs of a trial with and without records (5)")
    parser.add_argument(
        "--epochs", type=int, default=20, help="pretraining epochs of that trial; its probe gets 1.5 times as many"
    )
    parsed = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="raysweep-overhead-"))
    try:
        content = {
            "sweeps": sweeps(sorted(parsed.trials), parsed.short, parsed.long, folder),
            "memory": memory(folder),
            "records": records(parsed.epochs, parsed.turns, folder),
        }
    finally:
        shutil.rmtree(folder)
    print(json.dumps(content, indent=1, ensure_ascii=False))
    print(measure.save("overhead", content))
    return 0


def sweeps(counts: Sequence[int], short: int, long: int, folder: Path) -> dict[str, Any]:
    """Return the figures of sweeps with these numbers of trials, by number."""
    figures: dict[int, list[dict[str, float]]] = {count: [] for count in counts}

    def one(count: int) -> Callable[[], None]:
        return lambda: figures[count].append(tiny_sweep(count, folder))

    both = min(short, long)
    measure.alternate({str(count): one(count) for count in counts}, both, warm_up=False)
    if short > both and len(counts) > 1:
        measure.alternate({str(count): one(count) for count in counts[:-1]}, short - both, warm_up=False)
    return {
        f"{count} trials": {name: measure.summary([run[name] for run in runs]) for name in runs[0]}
        for count, runs in figures.items()
    }


def tiny_sweep(trials: int, folder: Path) -> dict[str, float]:
    """Run a sweep of tiny trials, and compute its figures from the times in its files."""
    space = folder / "tiny.yaml"
    base = "base: {dataset: digits, usl_epochs: 0, le_epochs: 1}"
    space.write_text(f"name: tiny\n{base}\nsearch: {{seed: {{grid: {list(range(trials))}}}}}\n")
    output = Path(tempfile.mkdtemp(dir=folder))
    began = time.time()
    with sweeping(space, output) as driver:
        driver.wait()
    took = time.time() - began
    output_text = (output / "driver.log").read_text()
    slots = re.search(r"(\d+) at a time", output_text)
    if driver.returncode != 0 or slots is None:
        raise SystemExit(f"the sweep failed: {output_text[-2000:]}")
    root = output / "tiny"
    workers = spans(root)
    firsts = [spans_of_worker[0] for spans_of_worker in workers]
    later = [(before, span) for spans_of_worker in workers for before, span in itertools.pairwise(spans_of_worker)]
    up = (root / "sweep.yaml").stat().st_mtime
    begun, ended = min(span.begun for span in firsts), max(spans_of_worker[-1].ended for spans_of_worker in workers)
    own_seconds = sum(span.own for spans_of_worker in workers for span in spans_of_worker)
    shutil.rmtree(output)
    return {
        "total, s": took,
        "total / (trials' own seconds / slots)": took * int(slots[1]) / own_seconds,
        "from the command to data read and Ray up, s": up - began,
        "from there to the first trial's start, s": begun - up,
        "a worker's first trial, own s": statistics.mean(span.own for span in firsts),
        "each further trial, own s": statistics.mean(span.own for _, span in later),
        "each further trial, overhead s": statistics.mean(
            span.ended - before.ended - span.own for before, span in later
        ),
        "from the last trial's end to the command's, s": began + took - ended,
    }


@contextmanager
def sweeping(space: Path, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the real command on a search space until the block ends; its output goes to `driver.log`."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment.pop("RAY_ADDRESS", None)
    with open(output / "driver.log", "wb") as log:
        driver = subprocess.Popen(
            [sys.executable, str(load.ROOT / "run_sweep.py"), str(space), "--output", str(output)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield driver
        finally:
            driver.terminate()
            driver.wait()


def spans(root: Path) -> list[list[Span]]:
    """Return the trials of each worker in order."""
    workers: dict[int, list[Span]] = {}
    for path in root.glob("*/attempt.json"):
        begun, result = json.loads(path.read_text()), path.with_name("result.json")
        span = Span(begun["started"], result.stat().st_mtime, json.loads(result.read_text())["wall_s"])
        workers.setdefault(begun["pid"], []).append(span)
    return [sorted(worker, key=lambda span: span.begun) for worker in workers.values()]


def memory(folder: Path) -> dict[str, Any]:
    """Measure the peak memory, in MiB, of two trials at a time on one dataset."""
    images = folder / "images" / "train" / "all"
    images.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (IMAGES, SIDE, SIDE, 3), dtype=np.uint8)
    for number, image in enumerate(noise):
        Image.fromarray(image).save(images / f"{number}.png")
    space = folder / "memory.yaml"
    space.write_text(
        f"name: memory\nbase: {{dataset: 'folder:{images.parents[1]}', image_size: {SIDE}, probe_dataset: digits,\n"
        "  usl_epochs: 1, le_epochs: 1}\nsearch: {seed: {grid: [0, 1]}}\n"
    )
    largest: dict[int, dict[str, float]] = {}
    driver_mib = 0.0
    with sweeping(space, folder) as driver:
        while driver.poll() is None:
            with suppress(OSError):
                driver_mib = max(driver_mib, load.pss_mib(driver.pid))
            for pid in load.workers(driver.pid):
                with suppress(OSError):
                    now = mapped(pid)
                    if now["resident"] > largest.get(pid, now)["resident"] or pid not in largest:
                        largest[pid] = now
            time.sleep(SAMPLE_SECONDS)
    if driver.returncode != 0 or not largest:
        raise SystemExit(f"the sweep failed: {(folder / 'driver.log').read_text()[-2000:]}")
    return {
        "the dataset that both read, MiB": round(noise.nbytes / load.MEBIBYTE, 1),
        "workers, MiB": [{name: round(value, 1) for name, value in sizes.items()} for sizes in largest.values()],
        "driver, MiB": round(driver_mib, 1),
    }


def mapped(pid: int) -> dict[str, float]:
    """Return a process's resident and proportional memory in MiB, and the part of each in Ray's object store."""
    sums = {"resident": 0.0, "proportional": 0.0, "of the object store": 0.0, "of that, its proportional part": 0.0}
    in_store = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("Rss", "Pss"):
            mib = int(value.split()[0]) / 1024
            sums["resident" if name == "Rss" else "proportional"] += mib
            if in_store:
                sums["of the object store" if name == "Rss" else "of that, its proportional part"] += mib
        elif "-" in line.split()[0]:
            in_store = "plasma" in line
    return sums


def records(epochs: int, turns: int, folder: Path) -> dict[str, Any]:
    """Measure the cost of TensorBoard and checkpoints: in turns with and without them, and by timing their calls."""
    import raysweep.trial
    from raysweep import space
    from raysweep.data import selection
    from raysweep.data.selection import select_data
    from raysweep.trial import run_trial

    datasets: selection.Datasets = {}

    def run(kept: bool, checkpoint_seconds: float) -> dict[str, list[float]]:
        """Run a trial; return the seconds of each call to its records, by kind."""
        base = {"usl_epochs": epochs, "le_epochs": epochs * 3 // 2}
        base |= {} if kept else {"images_every": 0, "projector_images": 0}
        trial = space.build({"name": "records", "base": base}, {}, "records").trials[0]
        data = select_data(trial.settings, datasets, load=True)
        assert data.probe.labelled
        directory = Path(tempfile.mkdtemp(dir=folder))
        with ExitStack() as stack:
            if not kept:
                stack.enter_context(mock.patch.object(raysweep.trial, "Events", Silent))
            clock = stack.enter_context(clocked())
            run_trial(trial, datasets, directory, threads=1, gpu=False, checkpoint_seconds=checkpoint_seconds)
        shutil.rmtree(directory)
        return clock

    clocks: list[dict[str, list[float]]] = []
    often: list[dict[str, list[float]]] = []
    work = {
        "with TensorBoard": lambda: clocks.append(run(True, DEFAULT_SECONDS)),
        "without": lambda: run(False, 1e9),
        f"and a checkpoint every {OFTEN_SECONDS:g} s": lambda: often.append(run(True, OFTEN_SECONDS)),
    }
    took = measure.alternate(work, turns)
    trial_s = statistics.median(took["with TensorBoard"])
    calls = {
        kind: statistics.median(sum(clock[kind]) for clock in clocks[-turns:]) for kind in clocks[0] if kind != "save"
    }
    saves = [each for clock in often[-turns:] for each in clock["save"]]
    checkpoint_s = statistics.median(saves) if saves else 0.0
    logging, saving = sum(calls.values()) / trial_s, checkpoint_s / DEFAULT_SECONDS
    return {
        "trial": f"α experiment on digits, {epochs} epochs, probe {epochs * 3 // 2}, one thread",
        "seconds": took,
        "TensorBoard's calls in a trial, s": {kind: measure.significant(value) for kind, value in calls.items()},
        "TensorBoard's share by its calls": measure.significant(logging),
        "TensorBoard's share by turns": measure.ratio(took["with TensorBoard"], took["without"]),
        "a checkpoint, s": measure.significant(checkpoint_s),
        "checkpoints timed": len(saves),
        f"checkpoints' share, one every {DEFAULT_SECONDS:g} s": measure.significant(saving),
        "both": measure.significant(logging + saving),
    }


class Silent:
    """Events that are not written."""

    def __init__(self, *given: object) -> None:
        pass

    def positions(self) -> dict[str, int]:
        """Return the positions of no files."""
        return {}

    def scalars(self, *given: object) -> None:
        """Nothing."""

    def hyperparameters(self, *given: object) -> None:
        """Nothing."""

    def end(self, finished: bool) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


@contextmanager
def clocked() -> Iterator[dict[str, list[float]]]:
    """Time every recording call of the trials in the block; yield the seconds by kind."""
    from raysweep import trial_run
    from raysweep.results import events

    clock: dict[str, list[float]] = {"scalars": [], "pictures": [], "projector": [], "save": []}

    def timed(kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*given: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            try:
                return call(*given, **named)
            finally:
                clock[kind].append(time.perf_counter() - begun)

        return wrapper

    with ExitStack() as stack:
        for kind, owner, name in (
            ("scalars", events.Events, "scalars"),
            ("pictures", trial_run, "draw_views"),  # including the views
            ("projector", trial_run, "project"),
            ("save", trial_run, "save_checkpoint"),
        ):
            stack.enter_context(mock.patch.object(owner, name, timed(kind, getattr(owner, name))))
        yield clock


if __name__ == "__main__":
    sys.exit(main())
