"""How an epoch's time grows with images and batch size, and throughput with cores.

    python benchmarks/growth.py

The script writes `benchmarks/results/growth.json` and takes 4 minutes on two cores. `cores` runs one process per core,
each with one thread (like trials), and for comparison one process with as many threads. `benchmarks/overhead.py` runs
sweeps of 7, 100 and 500 trials.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from multiprocessing.synchronize import Barrier
from typing import Any

import measure
import torch
from steps import SHAPES, BareSteps, epochs, precisions, random_images, settings_for

from raysweep.system.memory import keep_memory


def with_images(counts: Sequence[int], repeats: int) -> dict[str, Any]:
    """Measure microseconds per image and epoch for 8×8×1 datasets of several sizes."""
    shape = "8×8×1"
    work = {str(count): epochs(settings_for(shape), random_images(shape, count)) for count in counts}
    seconds = measure.alternate(work, repeats)
    each = {count: measure.summary([1e6 * s / int(count) for s in values]) for count, values in seconds.items()}
    return {"microseconds per image": each}


def with_batch(sizes: Sequence[int], repeats: int) -> dict[str, Any]:
    """Measure an epoch's images per second at several batch sizes; it has one largest batch, or two at 8×8×1."""
    rates_by_shape = {}
    for shape in SHAPES:
        count = 2 * max(sizes) if shape == "8×8×1" else max(sizes)
        images = random_images(shape, count)
        work = {str(size): epochs(settings_for(shape, batch_size=size), images) for size in sizes}
        seconds = measure.alternate(work, repeats)
        rates_by_shape[shape] = {size: measure.summary([count / s for s in values]) for size, values in seconds.items()}
    return {"images per second": rates_by_shape}


def throughput(shape: str, threads: int, seconds: float, barrier: Barrier | None, report: Any) -> None:
    """In a separate process, put images per second of bare steps into `report`."""
    torch.set_num_threads(threads)
    keep_memory()
    bare = BareSteps(settings_for(shape), random_images(shape, 500))
    bare.epoch()
    if barrier is not None:
        barrier.wait(timeout=300)
    began, images_done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        bare.epoch()
        images_done += bare.steps * bare.settings.batch_size
    report.put(images_done / (time.perf_counter() - began))


def with_cores(most: int, seconds: float, repeats: int) -> dict[str, Any]:
    """Measure the total images per second of parallel processes, and of threads in one process."""
    context = multiprocessing.get_context("spawn")
    rates_by_shape: dict[str, dict[str, list[float]]] = {}
    for _ in range(repeats):
        for shape in SHAPES:
            for processes, threads in dict.fromkeys(((1, 1), (most, 1), (1, most))):
                barrier, report = context.Barrier(processes), context.Queue()
                workers = [
                    context.Process(target=throughput, args=(shape, threads, seconds, barrier, report), daemon=True)
                    for _ in range(processes)
                ]
                for worker in workers:
                    worker.start()
                rate = sum(report.get(timeout=300) for _ in workers)
                for worker in workers:
                    worker.join()
                name = f"{processes} process(es) of {threads} thread(s)"
                rates_by_shape.setdefault(shape, {}).setdefault(name, []).append(rate)
    return {
        "images per second": {
            shape: {name: measure.summary(values) for name, values in rates.items()}
            for shape, rates in rates_by_shape.items()
        }
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="How the time grows with images, batch and cores.")
    parser.add_argument("--part", choices=["images", "batch", "cores"], action="append", help="default: all")
    parser.add_argument("--quick", action="store_true", help="small: for development, no measurement")
    given = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves no process behind
    quick, parts = given.quick, given.part or ["images", "batch", "cores"]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    content: dict[str, Any] = {"quick": quick, "default": precisions()[0]}
    if "cores" in parts:
        content["cores"] = with_cores(cores, 0.5 if quick else 2.0, 1 if quick else 5)
    torch.set_num_threads(1)
    keep_memory()
    if "images" in parts:
        content["images"] = with_images((250, 500) if quick else (500, 1000, 2000, 4000), 2 if quick else 5)
    if "batch" in parts:
        content["batch"] = with_batch((50, 100) if quick else (50, 125, 250, 500), 2 if quick else 5)
    for part in parts:
        print(part, content[part])
    measure.save("growth", content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
