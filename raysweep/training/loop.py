"""The pretraining loop, which trains a state epoch by epoch."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Generator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from raysweep import parts
from raysweep.augment.operations import all_views, to_float
from raysweep.augment.views import augment
from raysweep.config import Settings
from raysweep.errors import Diverged, InputError
from raysweep.methods.method import Losses
from raysweep.methods.precision import autocast_for, precision_of
from raysweep.randomness import generator, seeded_step
from raysweep.training.distributed import SINGLE_PROCESS, DistributedContext
from raysweep.training.schedules import factor_of, scheduled_epochs
from raysweep.training.state import State, greedy_stage


def pretrain(
    settings: Settings,
    state: State,
    images: Tensor,
    pause: Callable[[], bool] = lambda: False,
    context: DistributedContext = SINGLE_PROCESS,
    labels: Tensor | None = None,
    chosen: Tensor | None = None,
) -> Generator[dict[str, float] | None]:
    """Train `state` to its last epoch; yield the metrics of each epoch after it.

    In layerwise training, epochs are counted through all stages. `greedy` trains each block for `usl_epochs`, one after
    the other. `random` draws for every batch the one block to train, for the same total number of epochs.

    Args:
        settings: The experiment.
        state: The state from which training continues. It may be saved whenever this generator yields.
        images: (N, C, H, W) uint8, resident on the training device.
        pause: Called after each step except the last one of an epoch; if it returns True, None is yielded.
        context: The processes that train together, each on its rows of every batch. All of them yield at the same
            places. When the generator of the main process is closed, the generators of the others end too.
        labels: (N,) int64 on the same device, for a method that reads them.
        chosen: (M,) int64 on the CPU, the positions of the images that are read, with M ≥ `batch_size`. None means all
            images.

    Raises:
        Diverged: The loss or a weight is NaN or infinite; the message names the epoch.
    """
    blocks = len(state.optimizers)
    epochs = settings.usl_epochs * blocks
    if state.epoch >= epochs:
        return
    count = len(images) if chosen is None else len(chosen)
    steps = count // settings.batch_size
    assert steps > 0, "batch_size is checked against the dataset before a trial starts"
    state.encoder.train()
    shard = context.shard(settings.batch_size)
    state.method.shard = shard
    if shard is not None:
        synchronise_batch_norm(state)
    # All processes use the precision of the main process, because `auto` may resolve differently on another machine.
    in_bf16 = context.broadcast_flag(precision_of(settings, images.device.type) == "bf16")
    settings = settings.model_copy(update={"precision": "bf16" if in_bf16 else "fp32"})
    networks = [context.parallel(step) for step in state.steps()]
    after_step: Callable[[float], None] | None = getattr(state.method, "after_step", None)
    reads_clean: bool = getattr(state.method, "reads_clean", True)
    factor, schedule_epochs, rate = factor_of(settings), scheduled_epochs(settings), settings.usl_lr
    names: tuple[str, ...] = ()
    while state.epoch < epochs:
        started, first_step = time.perf_counter(), state.step
        if state.order is None:  # its own generator makes it the same in trials that differ in anything but the seed
            order_draws = generator(settings.seed, f"order {state.epoch}")
            state.order = torch.randperm(count, generator=order_draws)
            if chosen is not None:
                state.order = chosen[state.order]
        for index in state.order.to(images.device).split(settings.batch_size)[first_step:steps]:
            if shard is not None:
                index = index[shard.start : shard.end]
            batch = images.index_select(0, index)  # images[index] is 20 times slower for uint8 on a CPU
            clean = to_float(batch) if reads_clean else batch
            targets = () if labels is None else (labels.index_select(0, index),)
            copies = batch.repeat(settings.views, 1, 1, 1)
            part = shard.views(settings.views) if shard is not None else all_views(settings.views, len(batch))
            views = augment(copies, settings, state.generator, part)
            block = 0  # without layerwise training, step 0 trains the whole network
            if settings.layerwise == "greedy":
                block = greedy_stage(settings, state.epoch)
            elif settings.layerwise == "random":
                block = int(torch.randint(blocks, (), generator=state.generator))
            # Dropout draws by the number of the step, so that a trial repeats after a resume and in any process. Each
            # process has rows of its own, so it also has draws of its own.
            purpose = f"step {state.epoch} {state.step}"
            with seeded_step(settings.seed, f"{purpose} {context.rank}", images.device):
                with autocast_for(settings, views):
                    losses: Losses = networks[block](views, clean, *targets)
                state.optimizers[block].zero_grad()
                context.backward(losses.total)
            if factor is not None:
                step = state.epoch % schedule_epochs * steps + state.step
                rate = settings.usl_lr * factor(step, schedule_epochs * steps, steps)
                for group in state.optimizers[block].param_groups:
                    group["lr"] = rate  # a number of Python, so that nothing waits for a GPU
            # All processes must change the weights in the same way, so here their draws are equal.
            with seeded_step(settings.seed, purpose, images.device):
                state.optimizers[block].step()
                if after_step is not None:
                    after_step((state.epoch + state.step / steps) / epochs)
            names = tuple(losses.parts)
            # Losses are summed on the device, because reading a loss at each step would wait for the device. They are
            # stacked, because on a GPU each operation costs a launch.
            values = torch.stack([value.detach() for value in (losses.total, *losses.parts.values())])
            state.sums = values if state.sums is None else state.sums.add_(values)
            state.step += 1
            if state.step < steps and context.broadcast_flag(pause()):
                context.all_reduce(state.sums)
                if not context.is_main:  # the main process now holds the sums of all processes, and may save them
                    state.sums.zero_()
                paused = time.perf_counter()
                if (yield from context.yield_together(None)):
                    return
                started += time.perf_counter() - paused  # the rate does not count the writing of a checkpoint
        assert state.sums is not None
        context.all_reduce(state.sums)
        weights = [weight.isfinite().all() for weight in state.encoder.parameters()]
        # The values are read together, because each read waits for a GPU.
        *means, is_finite = torch.cat((state.sums / steps, torch.stack(weights).all()[None].float())).tolist()
        state.epoch, state.step, state.order, state.sums = state.epoch + 1, 0, None, None
        if not math.isfinite(means[0]):
            raise Diverged(f"the loss became {means[0]} in pretraining epoch {state.epoch}")
        if not is_finite:
            raise Diverged(f"a weight became infinite in pretraining epoch {state.epoch}")
        metrics = {f"pretrain/{name}": mean for name, mean in zip(("loss", *names), means, strict=True)}
        if "pretrain/lr" in parts.schedule[settings.schedule].metrics:
            metrics["pretrain/lr"] = rate
        seconds = time.perf_counter() - started
        metrics["pretrain/images_per_s"] = (steps - first_step) * settings.batch_size / seconds
        if (yield from context.yield_together(metrics)):
            return


def last_fall(losses: Sequence[float]) -> dict[str, float]:
    """Return the metric `pretrain/last_fall`.

    It is the decrease of the loss in the last tenth of the epochs, divided by its decrease over all epochs.

    Args:
        losses: the loss of each epoch.

    Returns:
        The metric, or nothing if there are fewer than five epochs or the loss did not fall.

    Example:
        `last_fall([9, 5, 3, 2, 1.5, 1])` gives `{"pretrain/last_fall": 0.0625}`, which is (1.5 − 1) / (9 − 1).
    """
    if len(losses) < 5 or losses[-1] >= losses[0]:
        return {}
    tail = max(1, len(losses) // 10)
    return {"pretrain/last_fall": (losses[-1 - tail] - losses[-1]) / (losses[0] - losses[-1])}


def synchronise_batch_norm(state: State) -> None:
    """Let batch normalisation use the statistics of the rows of all processes.

    This works only on GPUs, which is checked before a sweep starts. The weights stay the same objects.

    Raises:
        InputError: See `check_synchronisable`.
    """
    for network in state.modules().values():
        check_synchronisable(network)
        for parent in list(network.modules()):
            for name, module in list(parent.named_children()):
                if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
                    setattr(parent, name, conversions()[type(module).forward](module))


def check_synchronisable(network: nn.Module) -> None:
    """Raise InputError if a batch normalisation of a network has its own `forward`.

    A synchronised layer would replace this `forward`.
    """
    for module in network.modules():
        is_known = isinstance(module, nn.SyncBatchNorm) or type(module).forward in conversions()
        if isinstance(module, _BatchNorm) and not is_known:
            raise InputError(
                f"{type(module).__name__} is a batch normalisation with a `forward` of its own, which several workers "
                "cannot compute together; set resources.workers to 1, or use a batch normalisation of PyTorch"
            )


def conversions() -> dict[Callable[..., Tensor], Callable[[nn.Module], nn.Module]]:
    """Return, for each known `forward` of a batch normalisation, the function that synchronises the layer."""
    known: dict[Callable[..., Tensor], Callable[[nn.Module], nn.Module]] = {
        _BatchNorm.forward: nn.SyncBatchNorm.convert_sync_batchnorm
    }
    layers = sys.modules.get("timm.layers")  # a network has layers of timm only if timm was imported
    if layers is not None:
        known[layers.BatchNormAct2d.forward] = layers.convert_sync_batchnorm  # keeps the activation
    return known
