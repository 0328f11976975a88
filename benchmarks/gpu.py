"""How fast raysweep trains on one GPU, what limits its speed, and how several trials share the GPU.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --device cpu --quick

The second command runs a small version on a machine without a GPU. It shows that the script works; its figures mean
nothing. The script needs PyTorch 2.11 or newer, torchvision, NumPy, Pillow and pydantic, but no Ray. It prints one
table and writes `benchmarks/results/gpu-DEVICE.json` in under eight minutes.

The task is the parallel autoencoder (Conv6, decoder, two views, batch 250, strength 0.5) on random images in the shape
of CIFAR-10 and of digits, whose step is too short to fill a GPU. Each figure is the median over turns, A B A B …

- `training` compares raysweep's loop with the same network fed by torchvision's transforms in a DataLoader with one
  worker per core, and with the bare step: forward, backward and optimiser on prepared views.
- `where time goes` measures how long the host works on each part of a step, and how long the part takes.
- `processes` trains with 1, 2 and 4 processes on the GPU at once.
- `stack` trains K networks in one process, one after another, or stacked and mapped by `torch.func`.
- `repeats` checks whether training twice gives the same bits.
- `arithmetic` runs the bare step in full fp32, with TF32, in bf16, compiled, and replayed as a CUDA graph.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import os
import queue
import re
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import measure
import torch
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from raysweep.augment.views import augment
from raysweep.config import Settings
from raysweep.methods.precision import autocast_for
from raysweep.models.decoders import crop
from raysweep.probes.collapse import rankme
from raysweep.training.loop import pretrain
from raysweep.training.state import State, fresh_state

Step = Callable[[], object]
Contender = Callable[[], AbstractContextManager[Step]]
"""A context manager that sets up a step to measure before each of its turns and tears it down afterwards."""
ALPHAS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
PARTS = ("training", "where time goes", "processes", "stack", "repeats", "arithmetic")


@dataclass(frozen=True)
class Task:
    """The images to train on."""

    name: str
    channels: int
    size: int
    images: int


@dataclass(frozen=True)
class Plan:
    """The amount of work to measure."""

    device: torch.device
    batch_size: int
    seconds: float
    """The length of one turn."""
    turns: int
    processes: tuple[int, ...]
    stacks: tuple[int, ...]
    workers: int
    """The number of DataLoader workers."""
    large: Task
    small: Task
    backend: str
    """The backend of torch.compile."""


def plan_of(device: torch.device, quick: bool, workers: int) -> Plan:
    """Return the plan of the whole benchmark, or a small version with `quick`."""
    if quick:
        large, small = Task("32×32 RGB", 3, 32, 64), Task("8×8 gray", 1, 8, 64)
        return Plan(device, 8, 0.1, 2, (1, 2), (1, 2), 1, large, small, "aot_eager")
    large, small = Task("32×32 RGB", 3, 32, 50_000), Task("8×8 gray", 1, 8, 1_437)
    return Plan(device, 250, 1.5, 5, (1, 2, 4), (1, 2, 4, 8), workers, large, small, "inductor")


def shorter(plan: Plan) -> Plan:
    """Return a plan with shorter and fewer turns, for many contenders."""
    return replace(plan, seconds=plan.seconds / 2, turns=min(3, plan.turns))


# ---- What is trained -------------------------------------------------------------------------------------------------


def settings_of(plan: Plan, **chosen: Any) -> Settings:
    """Return the settings of a parallel autoencoder that trains without end."""
    given = {"usl_type": "ae_parallel", "strength": 0.5, "usl_epochs": 10**9, "batch_size": plan.batch_size}
    return Settings(**{**given, "precision": "fp32", **chosen})


def random_images(task: Task, device: torch.device) -> Tensor:
    """Return random images, (N, C, H, W) uint8."""
    shape = (task.images, task.channels, task.size, task.size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).to(device)


def ready_views(settings: Settings, task: Task, device: torch.device, seed: int = 0) -> Tensor:
    """Return the views of one batch, (2·B, C, H, W)."""
    batch = random_images(task, device)[: settings.batch_size].repeat(2, 1, 1, 1)
    draws = torch.Generator().manual_seed(seed)
    return augment(batch, settings, draws)


def state_of(settings: Settings, task: Task, device: torch.device) -> State:
    """Return the training state of a network before its first step."""
    return fresh_state(settings, task.channels, task.size, device)


def loop(settings: Settings, task: Task, device: torch.device) -> Step:
    """Return raysweep's loop one step at a time, including its work at the end of an epoch."""
    steps = pretrain(settings, state_of(settings, task, device), random_images(task, device), pause=lambda: True)
    return lambda: next(steps)


def loss_of(settings: Settings, state: State, views: Tensor) -> Tensor:
    """Compute the loss of a batch of prepared views, in the settings' precision."""
    with autocast_for(settings, views):
        loss: Tensor = state.method(views, views).total  # without denoising, the clean images are not read
    return loss


def bare(
    settings: Settings,
    state: State,
    views: Tensor,
    optimizer: torch.optim.Optimizer | None = None,
    compiled: str | None = None,
) -> Step:
    """Return a step of forward, backward and optimiser on prepared views; `compiled` names a torch.compile backend."""
    optimizer = optimizer or state.optimizers[0]
    if compiled is not None:
        for network in (state.encoder, state.method.decoder):
            network.compile(backend=compiled)

    def step() -> None:
        optimizer.zero_grad()
        loss_of(settings, state, views).backward()
        optimizer.step()

    return step


def graphed(settings: Settings, state: State, views: Tensor) -> Step:
    """Return the bare step as a CUDA graph. One launch replays all kernels on the current content of `views`."""
    weights = state.optimizers[0].param_groups[0]["params"]
    optimizer = torch.optim.Adam(weights, lr=settings.usl_lr, fused=True, capturable=True)
    step = bare(settings, state, views, optimizer)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    optimizer.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def replay(_kept: Step = step) -> None:  # the graph uses the memory of the step's tensors but does not keep them
        graph.replay()

    return replay


def loop_of_graph(settings: Settings, task: Task, device: torch.device) -> Step:
    """Return a possible loop: it draws batches and views as raysweep does, then replays the graph."""
    images, draws = random_images(task, device), torch.Generator().manual_seed(0)
    views = ready_views(settings, task, device)
    replay = graphed(settings, state_of(settings, task, device), views)
    batches: list[Tensor] = []

    def step() -> None:
        if not batches:
            order = torch.randperm(len(images), generator=draws).to(device)
            batches.extend(order[: len(order) // settings.batch_size * settings.batch_size].split(settings.batch_size))
        copies = images.index_select(0, batches.pop()).repeat(2, 1, 1, 1)
        views.copy_(augment(copies, settings, draws))
        replay()

    return step


class Pictures(Dataset[tuple[Tensor, Tensor]]):
    """Two random views of every image, which torchvision makes from PIL images."""

    def __init__(self, task: Task, strength: float) -> None:
        from torchvision import transforms

        pixels = random_images(task, torch.device("cpu"))
        self.images = (pixels.permute(0, 2, 3, 1) if task.channels == 3 else pixels[:, 0]).contiguous().numpy()
        s = strength
        jitter = transforms.ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s)
        self.view = transforms.Compose(
            [
                transforms.RandomResizedCrop(task.size, scale=(1 - 0.92 * s, 1), ratio=((3 / 4) ** s, (4 / 3) ** s)),
                transforms.RandomHorizontalFlip(s / 2),
                transforms.RandomApply([jitter], p=0.8 * s),
                transforms.RandomGrayscale(0.2 * s),
                transforms.ToTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = Image.fromarray(self.images[index])
        return self.view(image), self.view(image)


def plain(settings: Settings, task: Task, plan: Plan) -> Contender:
    """Return the plain recipe: the same network and objective, with views from a DataLoader's workers."""
    device = plan.device
    state = state_of(settings, task, device)
    optimizer = torch.optim.Adam(state.optimizers[0].param_groups[0]["params"], lr=settings.usl_lr)
    pictures = Pictures(task, settings.strength)

    def forever() -> Generator[Sequence[Tensor], None, None]:
        loader = DataLoader(
            pictures,
            batch_size=settings.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=plan.workers,
            persistent_workers=True,
            pin_memory=device.type == "cuda",
        )
        while True:
            yield from loader

    @contextmanager
    def turn() -> Iterator[Step]:
        # Workers prefetch. Batches prepared before the turn are used up first, and the workers end after the turn, so
        # that they take no core from the other contenders.
        batches = forever()

        def step() -> Tensor:
            views = torch.cat([view.to(device, non_blocking=True) for view in next(batches)])
            optimizer.zero_grad()
            loss = loss_of(settings, state, views)
            loss.backward()
            optimizer.step()
            return loss.detach()

        for _ in range(2 * plan.workers + 1):
            step()
        yield step
        batches.close()

    return turn


# ---- Several networks as one -----------------------------------------------------------------------------------------


class Network(nn.Module):
    """An encoder and a decoder as one module that `torch.func.vmap` can map."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.encoder, self.decoder = state.encoder, state.method.decoder

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Views (B, C, H, W) -> embeddings (B, D) and images; the decoder's change of memory format is left out."""
        z = self.encoder.head(self.encoder(views))
        decoder: Any = self.decoder
        h = decoder.linear(z).unflatten(1, (64, decoder.start, decoder.start))
        return z, crop(decoder.convolutions(h), decoder.image_size)


class Stack:
    """K networks of the same shape, each with its own weights, views and α, that are trained by one common step.

    The gradient of the summed losses is the gradient of each network's own loss, and Adam works element by element, so
    each network is trained as it would be alone.
    """

    def __init__(self, all_settings: Sequence[Settings], states: Sequence[State]) -> None:
        networks = [Network(state) for state in states]
        weights, buffers = stack_module_state(networks)
        self.weights: dict[str, Tensor] = weights
        one = copy.deepcopy(networks[0]).to("meta")
        settings = all_settings[0]
        alphas = torch.tensor([each.alpha for each in all_settings])
        self.alphas = alphas.to(next(iter(weights.values())).device)
        self.optimizer = torch.optim.Adam(list(weights.values()), lr=settings.usl_lr, fused=True)

        def loss(own: dict[str, Tensor], views: Tensor, alpha: Tensor) -> Tensor:
            with torch.autocast(views.device.type, dtype=torch.bfloat16, enabled=settings.precision == "bf16"):
                z, restored = functional_call(one, (own, buffers), (views,))
            first, second = z.float().chunk(2)
            return F.mse_loss(restored.float(), views) * settings.views + alpha * F.mse_loss(first, second)

        self.losses_of = torch.func.vmap(loss)

    def step(self, views: Tensor) -> Tensor:
        """Train one step on views (K, 2·B, C, H, W), and return the losses (K,) before it."""
        self.optimizer.zero_grad()
        losses: Tensor = self.losses_of(self.weights, views, self.alphas)
        losses.sum().backward()
        self.optimizer.step()
        return losses.detach()


def check_stack(plan: Plan, task: Task, count: int) -> float:
    """Train K networks separately and stacked; return the largest relative difference of losses and gradients.

    Raises:
        AssertionError: if the difference is larger than rounding explains.
    """
    with tf32(convolutions=False, products=False):
        settings, states, views = several(plan, task, count, "fp32")
        stack = Stack(settings, states)
        worst = 0.0
        for turn in range(3):
            apart = []
            for config, state, network_views in zip(settings, states, views, strict=True):
                state.optimizers[0].zero_grad()
                loss = loss_of(config, state, network_views)
                loss.backward()
                apart.append(loss.detach())
            together = stack.step(views)
            worst = max(worst, float(((together - torch.stack(apart)) / together).abs().max()))
            if turn == 0:  # later, Adam turns the rounding of the smallest gradient into a full step
                for i, state in enumerate(states):
                    for name, weight in Network(state).named_parameters():
                        ours = stack.weights[name].grad
                        assert ours is not None
                        assert weight.grad is not None
                        error = (ours[i] - weight.grad).norm() / weight.grad.norm().clamp_min(1e-12)
                        worst = max(worst, float(error))
            for state in states:
                state.optimizers[0].step()
    assert worst < 1e-3, f"stacked networks differ by {worst} from separate ones"
    return worst


def several(plan: Plan, task: Task, count: int, precision: str) -> tuple[list[Settings], list[State], Tensor]:
    """Return settings, states and prepared views (K, 2·B, C, H, W) of K experiments that differ in α and seed."""
    settings = [settings_of(plan, alpha=ALPHAS[i], seed=i, precision=precision) for i in range(count)]
    states = [state_of(config, task, plan.device) for config in settings]
    views = torch.stack([ready_views(config, task, plan.device, seed) for seed, config in enumerate(settings)])
    return settings, states, views


# ---- Timing ----------------------------------------------------------------------------------------------------------


def wait(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rate(step: Step, seconds: float, images: int, device: torch.device) -> float:
    """Return the images per second of a step on `images` images, measured for at least `seconds`."""
    wait(device)
    steps, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        step()
        steps += 1
    wait(device)
    return steps * images / (time.perf_counter() - began)


def in_turns(contenders: Mapping[str, Contender], plan: Plan, images: int) -> dict[str, list[float]]:
    """Return the images per second of each contender, measured in turns; the first turn is not counted."""
    measured_rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(-1, plan.turns):
        for name, contender in contenders.items():
            with contender() as step:
                measured = rate(step, plan.seconds if turn >= 0 else 0.05, images, plan.device)
            if turn >= 0:
                measured_rates[name].append(measured)
    return measured_rates


def always(step: Step) -> Contender:
    """Return a contender that needs no setup."""
    return lambda: nullcontext(step)


def host_and_whole(call: Step, plan: Plan) -> tuple[float, float]:
    """Return the median milliseconds of a call until the host has launched all its work, and until it is done."""
    host, whole = [], []
    calls = 5  # after about a thousand launched kernels that have not begun, CUDA makes the host wait
    for _ in range(plan.turns + 1):
        wait(plan.device)
        began = time.perf_counter()
        for _ in range(calls):
            call()
        host.append((time.perf_counter() - began) / calls * 1e3)
        wait(plan.device)
        whole.append((time.perf_counter() - began) / calls * 1e3)
    return statistics.median(host[1:]), statistics.median(whole[1:])


@contextmanager
def tf32(convolutions: bool, products: bool) -> Iterator[None]:
    """Set TF32 for cuDNN's convolutions (on by default in PyTorch) and for matrix products (off by default)."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.set_float32_matmul_precision("high" if products else "highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


# ---- The parts -------------------------------------------------------------------------------------------------------


class Table:
    """A table that prints each row at once and keeps it."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, what: str, value: float | str, unit: str, remark: str = "") -> None:
        """Print and keep a row."""
        shown = f"{value:,.4g}" if isinstance(value, float) and value < 1000 else value
        shown = f"{shown:,.0f}" if isinstance(shown, float) else shown
        print(f"  {what:<58} {shown:>12} {unit:<9} {remark}".rstrip(), flush=True)
        number = measure.significant(value) if isinstance(value, float) else value
        self.rows.append({"what": what, "value": number, "unit": unit, "remark": remark})

    def rates(self, rates_by_name: Mapping[str, list[float]], prefix: str, against: str) -> None:
        """Print each rate, and its ratio to the rate of `against`."""
        for name, values in rates_by_name.items():
            times = measure.ratio(values, rates_by_name[against])["median"]
            remark = "" if name == against else f"{times:.3g} × {against}"
            self.add(f"{prefix}{name}", statistics.median(values), "images/s", remark)


def training(plan: Plan, table: Table) -> dict[str, Any]:
    """Compare the loop, the bare step and the plain recipe."""
    task, device = plan.large, plan.device
    contenders = {}
    for precision in ("fp32", "bf16"):
        settings = settings_of(plan, precision=precision)
        contenders[f"raysweep, {precision}"] = always(loop(settings, task, device))
        step = bare(settings, state_of(settings, task, device), ready_views(settings, task, device))
        contenders[f"bare step, {precision}"] = always(step)
    plain_name = f"DataLoader with {plan.workers} workers, fp32"
    contenders[plain_name] = plain(settings_of(plan), task, plan)
    measured = in_turns(contenders, plan, plan.batch_size)
    table.rates(measured, "", plain_name)
    for precision in ("fp32", "bf16"):
        share = measure.ratio(measured[f"raysweep, {precision}"], measured[f"bare step, {precision}"])["median"]
        table.add(f"raysweep of its bare step, {precision}", share, "×")
    times = measure.ratio(measured["raysweep, fp32"], measured[plain_name])["median"]
    table.add("raysweep of the DataLoader recipe, target 20", times, "×", "met" if times >= 20 else "missed")
    return {"images_per_s": {name: measure.summary(values) for name, values in measured.items()}}


def where_time_goes(plan: Plan, table: Table) -> dict[str, Any]:
    """Measure host and device time of the parts of a step."""
    times: dict[str, Any] = {}
    for task in (plan.large, plan.small):
        settings, device = settings_of(plan), plan.device
        batch = random_images(task, device)[: plan.batch_size].repeat(2, 1, 1, 1)
        draws = torch.Generator().manual_seed(0)
        views = ready_views(settings, task, device)
        z = torch.randn(1024, settings.embedding_dim, device=device)

        def views_of(batch: Tensor = batch, settings: Settings = settings, draws: torch.Generator = draws) -> Tensor:
            return augment(batch, settings, draws)

        calls: dict[str, Step] = {
            "augmentation": views_of,
            "bare step, fp32": bare(settings, state_of(settings, task, device), views),
            "whole step, fp32": loop(settings, task, device),
        }
        if task is plan.large:
            calls["rank of 1,024 embeddings on the device"] = lambda z=z: rankme(z)  # type: ignore[misc]
            calls["rank of 1,024 embeddings on the CPU"] = lambda z=z: rankme(z.cpu())  # type: ignore[misc]
        for name, call in calls.items():
            host, whole = host_and_whole(call, plan)
            table.add(f"{task.name}: {name}", whole, "ms", f"of which the host {host:.3g}")
            times[f"{task.name}: {name}"] = {"host_ms": host, "whole_ms": whole}
    return times


def arithmetic(plan: Plan, table: Table) -> dict[str, Any]:
    """Measure the bare step and the whole loop in other arithmetic and by other means."""
    device = plan.device
    rates: dict[str, Any] = {}
    for task in (plan.large, plan.small):
        contenders: dict[str, Contender] = {}

        def with_tf32(step: Step, convolutions: bool, products: bool) -> Contender:
            @contextmanager
            def turn() -> Iterator[Step]:
                with tf32(convolutions, products):
                    yield step

            return turn

        def ready(precision: str, task: Task = task) -> tuple[Settings, State, Tensor]:
            settings = settings_of(plan, precision=precision)
            return settings, state_of(settings, task, device), ready_views(settings, task, device)

        usual = "eager, fp32 (TF32 in convolutions)"
        contenders[usual] = always(bare(*ready("fp32")))
        contenders["eager, fp32 without TF32"] = with_tf32(bare(*ready("fp32")), False, False)
        contenders["eager, fp32 (TF32 in products too)"] = with_tf32(bare(*ready("fp32")), True, True)
        contenders["eager, bf16"] = always(bare(*ready("bf16")))
        for precision in ("fp32", "bf16"):
            if task is plan.large:  # compiling takes half a minute
                contenders[f"compiled, {precision}"] = always(bare(*ready(precision), compiled=plan.backend))
            if device.type == "cuda":
                contenders[f"CUDA graph, {precision}"] = always(graphed(*ready(precision)))
                settings = settings_of(plan, precision=precision)
                contenders[f"raysweep, {precision}"] = always(loop(settings, task, device))
                contenders[f"raysweep with a CUDA graph, {precision}"] = always(loop_of_graph(settings, task, device))
        for name in [name for name in contenders if name.startswith("compiled")]:
            try:
                with contenders[name]() as step:
                    step()
            except Exception as fault:  # this machine has no compiler
                table.add(f"{task.name}: {name}", "failed", "", first_line(fault))
                del contenders[name]
        measured = in_turns(contenders, shorter(plan), plan.batch_size)
        table.rates(measured, f"{task.name}: ", usual)
        rates[task.name] = {name: measure.summary(values) for name, values in measured.items()}
    return {"images_per_s": rates}


def share_of_process(plan: Plan, barrier: Any, answers: Any) -> None:
    """In a separate process, train both tasks at the same time as the others, and report the speed."""
    try:
        torch.set_num_threads(1)
        for task in (plan.large, plan.small):
            step = loop(settings_of(plan), task, plan.device)
            for _ in range(5 if plan.turns > 2 else 1):
                step()
            wait(plan.device)
            barrier.wait(timeout=120)
            answers.put((task.name, rate(step, 3 * plan.seconds, plan.batch_size, plan.device)))
            barrier.wait(timeout=120)
    except BaseException as fault:
        answers.put(("failed", first_line(fault)))
        raise


def processes(plan: Plan, table: Table) -> dict[str, Any]:
    """Train with several processes on the device at once."""
    context = multiprocessing.get_context("spawn")
    measured: dict[str, dict[int, float]] = {plan.large.name: {}, plan.small.name: {}}
    for count in plan.processes:
        barrier, answers = context.Barrier(count), context.Queue()
        workers = [
            context.Process(target=share_of_process, args=(plan, barrier, answers), daemon=True) for _ in range(count)
        ]
        for worker in workers:
            worker.start()
        total = dict.fromkeys(measured, 0.0)
        try:
            for _ in range(2 * count):
                name, value = answers.get(timeout=150)
                if name == "failed":
                    raise RuntimeError(f"a process of {count} failed: {value}")
                total[name] += value
            for worker in workers:
                worker.join(timeout=30)
        finally:
            for worker in workers:
                if worker.is_alive():
                    worker.terminate()
        for name, value in total.items():
            measured[name][count] = value
    for name, by_count in measured.items():
        for count, value in by_count.items():
            remark = "" if count == 1 else f"{value / by_count[min(by_count)]:.3g} × 1 process"
            table.add(f"{name}: {count} process{'es' if count > 1 else ''} together", value, "images/s", remark)
    return {
        "images_per_s": {
            name: {str(count): values for count, values in each.items()} for name, each in measured.items()
        }
    }


def stack(plan: Plan, table: Table) -> dict[str, Any]:
    """Train K networks in one process, one after another and stacked."""
    rates: dict[str, Any] = {}
    for task in (plan.large, plan.small):
        worst = check_stack(plan, task, min(3, max(plan.stacks)))
        table.add(f"{task.name}: stacked from separate, losses and gradients", worst, "relative")
        for precision in ("fp32", "bf16"):
            for count in plan.stacks:
                settings, states, views = several(plan, task, count, precision)
                apart = [bare(*each) for each in zip(settings, states, views, strict=True)]
                together = Stack(settings, states)  # the stack copies the weights

                def in_order(apart: list[Step] = apart) -> None:
                    for step in apart:
                        step()

                def at_once(together: Stack = together, views: Tensor = views) -> None:
                    together.step(views)

                names = f"{count} separate, {precision}", f"{count} stacked, {precision}"
                contenders = {names[0]: always(in_order), names[1]: always(at_once)}
                measured = in_turns(contenders, shorter(plan), plan.batch_size * count)
                table.rates(measured, f"{task.name}: ", names[0])
                rates.setdefault(task.name, {}).update(
                    {name: measure.summary(values) for name, values in measured.items()}
                )
    return {"images_per_s": rates}


def repeats(plan: Plan, table: Table) -> dict[str, Any]:
    """Check whether training repeats bit for bit."""
    same_bits: dict[str, Any] = {}
    count = 20 if plan.turns > 2 else 2

    def weights(precision: str) -> Tensor:
        settings = settings_of(plan, precision=precision)
        state = state_of(settings, plan.large, plan.device)
        steps = pretrain(settings, state, random_images(plan.large, plan.device), pause=lambda: True)
        for _ in range(count):
            next(steps)
        return torch.cat([weight.detach().flatten() for weight in state.encoder.parameters()])

    for only_deterministic in (False, True):
        torch.backends.cudnn.deterministic = only_deterministic
        for precision in ("fp32", "bf16"):
            same = torch.equal(weights(precision), weights(precision))
            name = f"{count} steps twice, {precision}{', deterministic cuDNN' if only_deterministic else ''}"
            table.add(name, "the same" if same else "differ", "bits")
            same_bits[name] = same
    torch.backends.cudnn.deterministic = False
    return same_bits


def first_line(fault: BaseException) -> str:
    """Return a short description of an exception."""
    return f"{type(fault).__name__}: {str(fault).strip().partition(chr(10))[0][:120]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write. Return the exit status: 2 without a GPU, 1 if a part failed."""
    parser = argparse.ArgumentParser(description="raysweep on one GPU.")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--quick", action="store_true", help="all in small, to see that it works")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one; may be repeated")
    workers = max(1, min(16, os.cpu_count() or 1))
    parser.add_argument("--workers", type=int, default=workers, help="worker processes of the DataLoader")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        print("PyTorch sees no GPU here, so nothing is measured (--device cpu --quick shows that the script works)")
        return 2
    device = torch.device(given.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    plan = plan_of(device, given.quick, given.workers)
    print(f"{name}, PyTorch {torch.__version__}, {os.cpu_count()} cores, batch {plan.batch_size}", flush=True)
    run = dict(zip(PARTS, (training, where_time_goes, processes, stack, repeats, arithmetic), strict=True))
    table, content, failed = Table(), {}, False
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ("-quick" if given.quick else "")
    card = {"name": name, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    began = time.perf_counter()
    for part in given.part or PARTS:
        print(part, flush=True)
        started = time.perf_counter()
        try:
            content[part] = run[part](plan, table)
        except Exception as fault:  # the other parts are still measured
            traceback.print_exc()
            table.add(part, "failed", "", first_line(fault))
            content[part], failed = {"failed": first_line(fault)}, True
        content[part]["took_s"] = round(time.perf_counter() - started, 1)
        took = time.perf_counter() - began
        # Written after each part, because a fault inside CUDA ends the process without an exception.
        path = measure.save(f"gpu-{slug}", {"device": card, "took_s": round(took, 1), "rows": table.rows, **content})
    print(f"{took:.0f} s; written to {path}")
    return int(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except queue.Empty:
        sys.exit("a process gave no answer")
