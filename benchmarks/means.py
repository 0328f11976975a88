"""Ways to make a pretraining step faster, each compared with the step without it.

    python benchmarks/means.py

The script times bare steps on one thread at 8×8×1 and 32×32×3: unchanged (channels last, fused Adam, fp32), and with
one change. The changes are contiguous memory, or only a contiguous gradient at the last convolution; Adam without
fusing; bf16; the two views encoded one after the other; and `torch.compile` if there is a C++ compiler. Figures say how
many times faster than the unchanged step; above 1 is better. Separate processes measure steps in which glibc keeps
freed memory instead of returning it to the system. Blocks above 32 MiB (the size of an activation of 500 32×32 images
in fp32) are otherwise returned at every step and come back page by page, each cleared by the kernel. The script writes
`benchmarks/results/means.json` and takes 6 minutes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import measure
import torch
from steps import SHAPES, BareSteps, random_images, settings_for
from torch import nn
from torch.nn import functional as F

from raysweep.models.conv6 import Conv6
from raysweep.system.memory import keep_memory

AS_IT_IS = "as it is: channels last, fused Adam, fp32"
GIVEN_BACK = "freed memory given back, glibc's default"


def contiguous(bare: BareSteps) -> BareSteps:
    """Make all tensors contiguous. The decoder is rebuilt, because the model's own decoder uses channels last."""
    decoder = bare.state.method.decoder
    bare.state.encoder.to(memory_format=torch.contiguous_format)
    plain = nn.Sequential(decoder.linear, nn.Unflatten(1, (64, decoder.start, decoder.start)), decoder.convolutions)
    bare.state.method.decoder = plain.to(memory_format=torch.contiguous_format)
    bare.batches = [(views.contiguous(), clean.contiguous()) for views, clean in bare.batches]
    return bare


def contiguous_gradient(bare: BareSteps) -> BareSteps:
    """Leave the features' gradient as `flatten` returns it, which is not channels last."""
    encoder = bare.state.encoder
    assert isinstance(encoder, Conv6)
    encoder.forward = lambda images: encoder.up_to(images, len(encoder.blocks)).flatten(1)  # type: ignore[method-assign]
    return bare


def unfused(bare: BareSteps) -> BareSteps:
    """Use PyTorch's default Adam."""
    weights = [weight for group in bare.optimizer.param_groups for weight in group["params"]]
    bare.state.optimizers[0] = torch.optim.Adam(weights, lr=bare.settings.usl_lr)  # type: ignore[call-overload]
    return bare


def separate_views(bare: BareSteps) -> Callable[[], None]:
    """Return the same step of `ae_parallel` in two passes of half the batch, as most scripts do it."""
    method, alpha = bare.state.method, bare.settings.alpha
    views, _ = bare.batches[0]
    halves = views.chunk(2)

    def step() -> None:
        bare.optimizer.zero_grad()
        first, second = (method.embed(view) for view in halves)
        rec = F.mse_loss(method.decoder(first), halves[0]) + F.mse_loss(method.decoder(second), halves[1])
        (rec + alpha * F.mse_loss(first, second)).backward()
        bare.optimizer.step()

    return step


def compiled(bare: BareSteps) -> BareSteps:
    """Compile encoder and decoder; the compilation is not timed."""
    bare.state.encoder.compile()
    bare.state.method.decoder.compile()
    return bare


def compare(shape: str, repeats: int, compile_too: bool) -> dict[str, Any]:
    """Measure the seconds of a step for each change, and the ratios."""

    def bare(**changes: Any) -> BareSteps:
        settings = settings_for(shape, **{"precision": "fp32", **changes})
        return BareSteps(settings, random_images(shape, settings.batch_size), prepared=1)

    work: dict[str, Callable[[], object]] = {
        AS_IT_IS: bare().step,
        "contiguous memory": contiguous(bare()).step,
        "Adam not fused": unfused(bare()).step,
        "views one after the other": separate_views(bare()),
        "bf16": bare(precision="bf16").step,
        "bf16, contiguous memory": contiguous(bare(precision="bf16")).step,
    }
    if SHAPES[shape][2] > 8:  # at 8×8 the features have one pixel, so the memory format does not matter
        work["the features' gradient contiguous"] = contiguous_gradient(bare()).step
    compilation = {}
    if compile_too:
        work["torch.compile"] = compiled(bare()).step
        began = time.perf_counter()
        work["torch.compile"]()
        compilation["compilation with the first step, s"] = measure.significant(time.perf_counter() - began)
    seconds = measure.alternate(work, repeats)
    return {
        **compilation,
        "seconds": seconds,
        "times faster than as it is": {
            name: measure.ratio(seconds[AS_IT_IS], values) for name, values in seconds.items() if name != AS_IT_IS
        },
    }


def steps_with_memory(shape: str, precision: str, keep: bool, count: int, report: Any) -> None:
    """In a separate process, put the median seconds of a step and its page faults into `report`."""
    torch.set_num_threads(1)
    if keep:
        keep_memory()
    settings = settings_for(shape, precision=precision)
    bare = BareSteps(settings, random_images(shape, settings.batch_size), prepared=1)
    for _ in range(2):
        bare.step()
    faults, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, []
    for _ in range(count):
        began = time.perf_counter()
        bare.step()
        seconds.append(time.perf_counter() - began)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    report.put((statistics.median(seconds), faults / count))


def compare_memory(shape: str, turns: int, count: int) -> dict[str, Any]:
    """Compare steps that keep freed memory with steps that do not, in turns."""
    context = multiprocessing.get_context("spawn")
    figures: dict[str, Any] = {}
    for precision in ("fp32", "bf16"):
        seconds: dict[str, list[float]] = {GIVEN_BACK: [], "freed memory kept": []}
        faults: dict[str, float] = {}
        for _ in range(turns):
            for name, values in seconds.items():
                report = context.Queue()
                worker = context.Process(
                    target=steps_with_memory, args=(shape, precision, name != GIVEN_BACK, count, report), daemon=True
                )
                worker.start()
                took, faults[name] = report.get(timeout=300)
                worker.join()
                values.append(took)
        figures[precision] = {
            "seconds": seconds,
            "page faults per step": faults,
            "times faster": measure.ratio(seconds[GIVEN_BACK], seconds["freed memory kept"]),
        }
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Means to make a step faster.")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--quick", action="store_true", help="small: for development, no measurement")
    given = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves no process behind
    torch.set_num_threads(1)
    keep_memory()
    has_compiler = any(shutil.which(name) for name in ("g++", "clang++"))
    cases = {}
    for shape in SHAPES:
        case = cases[shape] = compare(shape, 2 if given.quick else 5, has_compiler and not given.no_compile)
        for name, values in case["times faster than as it is"].items():
            print(f"{shape:8} {name:28} {values['median']:.2f} ×", flush=True)
    memory = {}
    if sys.platform == "linux":
        memory["32×32×3"] = compare_memory("32×32×3", 1 if given.quick else 3, 2 if given.quick else 5)
        for precision, values in memory["32×32×3"].items():
            print(f"32×32×3  {precision}, freed memory kept     {values['times faster']['median']:.2f} ×")
    measure.save("means", {"quick": given.quick, "threads": 1, "cases": cases, "memory": memory})
    return 0


if __name__ == "__main__":
    sys.exit(main())
