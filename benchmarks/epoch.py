"""One pretraining epoch compared with the bare step, and the bare step compared with the machine's peak.

    python benchmarks/epoch.py

On one thread, for 8×8×1 and 32×32×3 images and in both precisions, the script times in turns an epoch of a trial's
loop, an epoch within a whole experiment (metrics, TensorBoard, checkpoints, measures while training), and the same
number of bare steps (forward, backward and optimiser on prepared tensors). It then measures the time of each part of an
epoch and of each operation in the bare step, and the step's floating-point operations per second as a share of the rate
of matrix products on this machine. It writes `benchmarks/results/epoch.json` and takes 4 minutes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import measure
import torch
from steps import (
    SHAPES,
    BareSteps,
    epochs,
    multiplication_rate,
    precisions,
    random_datasets,
    random_images,
    seeded,
    settings_for,
)
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from raysweep.augment.simclr import draw_simclr
from raysweep.augment.views import augment
from raysweep.config import Settings
from raysweep.space import Trial
from raysweep.system.memory import keep_memory
from raysweep.trial import run_trial
from raysweep.trial_progress import ProgressReport

SHARE = "share of the matrix products' rate"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def flops(bare: BareSteps) -> int:
    """Count the floating-point operations of a step's convolutions and matrix products, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        bare.step()
    return int(counter.get_total_flops())


def parts(settings: Settings, images: Tensor, bare: BareSteps, repeats: int) -> dict[str, list[float]]:
    """Measure the seconds of a step's parts, each called alone, in turns."""
    index = torch.randperm(len(images), generator=seeded())[: settings.batch_size]
    count, _, height, width = images.shape
    copies = images[: settings.batch_size].repeat(settings.views, 1, 1, 1)
    draws = seeded()
    sums, losses = torch.zeros(3), torch.zeros(3).unbind()

    def gather() -> None:
        images.index_select(0, index).repeat(settings.views, 1, 1, 1)

    def bookkeeping() -> None:
        sums.add_(torch.stack([value.detach() for value in losses]))

    def step() -> None:
        bare.step()

    step()  # from now on, gradients exist
    work: dict[str, Callable[[], object]] = {
        "order of the images (once an epoch)": lambda: torch.randperm(count, generator=draws),
        "gather": gather,
        "augmentation": lambda: augment(copies, settings, draws),
        "of it, drawing": lambda: draw_simclr(len(copies), height, width, settings.strength, False, draws),
        "forward and losses": bare.losses,
        "optimiser": bare.optimizer.step,
        "sums of the losses": bookkeeping,
        "bare step": step,
    }
    return measure.alternate(work, repeats)


def operations(bare: BareSteps, most: int = 14) -> list[dict[str, Any]]:
    """Return the operations that take the bare step's time, according to torch's profiler."""
    bare.epoch()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        bare.epoch()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return [
        {
            "operation": event.key,
            "share": measure.significant(event.self_cpu_time_total / total, 3),
            "calls per step": event.count / bare.steps,
        }
        for event in events[:most]
    ]


def within_experiment(
    settings: Settings, shape: str, count: int, turns: int, bare: BareSteps
) -> dict[str, list[float]]:
    """Time `turns` epochs of a whole experiment and bare epochs between them; the first epoch is not counted."""
    epochs_s: list[float] = []
    bare_s: list[float] = []
    last = time.perf_counter()

    def report(at: ProgressReport) -> None:
        nonlocal last
        now = time.perf_counter()
        epochs_s.append(now - last)
        bare.epoch()
        last = time.perf_counter()
        bare_s.append(last - now)

    # Draw pictures as often as evaluations run. Every 50 epochs would mean never here.
    settings = settings.model_copy(update={"images_every": 10})
    trial = Trial("trial", "trial", settings, {"seed": settings.seed})
    with tempfile.TemporaryDirectory(prefix="raysweep-epoch-") as scratch:
        directory = Path(scratch, "trial")
        directory.mkdir()
        datasets = random_datasets(shape, count)
        run_trial(trial, datasets, directory, threads=1, gpu=False, report=report, stop=lambda: len(epochs_s) > turns)
    return {"experiment": epochs_s[1:turns], "bare": bare_s[1:turns]}


def measure_case(shape: str, precision: str, method: str, count: int, repeats: int, turns: int) -> dict[str, Any]:
    """Measure all figures of one case."""
    settings, images = settings_for(shape, precision=precision, usl_type=method), random_images(shape, count)
    bare = BareSteps(settings, images)
    seconds = measure.alternate({"epoch": epochs(settings, images), "bare": bare.epoch}, repeats)
    overhead = measure.ratio(seconds["epoch"], seconds["bare"])
    within = within_experiment(settings, shape, count, turns, bare) if turns else None
    operations_per_step = flops(bare)
    step_s = min(seconds["bare"]) / bare.steps
    case = {
        "work": {"images": count, "batch_size": settings.batch_size, "steps": bare.steps, "method": method},
        "seconds": seconds,
        "epoch over bare": overhead,
        "images per second": measure.summary([bare.steps * settings.batch_size / s for s in seconds["epoch"]]),
        # Every tenth epoch includes an evaluation and pictures, so this is the mean, not the median.
        "epoch within an experiment over bare": measure.significant(sum(within["experiment"]) / sum(within["bare"]))
        if within
        else None,
        "GFLOP per step": measure.significant(operations_per_step / 1e9),
        "GFLOP per second": measure.significant(operations_per_step / step_s / 1e9),
    }
    if turns:
        case["parts of a step, seconds"] = parts(settings, images, bare, 2 * repeats)
        case["operations of the bare step"] = operations(bare)
    return case


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="A pretraining epoch against the bare step.")
    parser.add_argument("--quick", action="store_true", help="small: for development, no measurement")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    keep_memory()
    repeats = 2 if given.quick else 5
    counts = {"8×8×1": 500, "32×32×3": 250} if given.quick else {"8×8×1": 1437, "32×32×3": 500}
    content: dict[str, Any] = {"quick": given.quick, "threads": 1, "default": precisions()[0], "cases": {}}
    rates = {name: multiplication_rate(dtype) for name, dtype in DTYPES.items()}
    content["matrix products, GFLOP per second"] = rates
    for shape in SHAPES:
        for precision in precisions():
            for method in ("ae_parallel", "simclr"):
                turns = 21 if shape == "8×8×1" else 11
                turns = 3 if given.quick else turns if method == "ae_parallel" else 0
                case = measure_case(shape, precision, method, counts[shape], repeats, turns)
                if precision in rates:
                    peak = max(rates[precision].values())
                    case[SHARE] = measure.significant(case["GFLOP per second"] / peak, 3)
                content["cases"][f"{method}, {shape}, {precision}"] = case
                print(
                    f"{method:12} {shape:8} {precision:5} epoch / bare step {case['epoch over bare']['median']:.3f}, "
                    f"within an experiment {case['epoch within an experiment over bare']}, "
                    f"{case['GFLOP per second']} GFLOP/s, {case.get(SHARE)} of peak",
                    flush=True,
                )
    measure.save("epoch", content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
