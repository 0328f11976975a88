"""The pretraining loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from functools import partial

import torch
from torch import Tensor, nn

from raysweep.augment.operations import to_float
from raysweep.augment.policies import augment
from raysweep.config import Settings
from raysweep.errors import Diverged
from raysweep.methods.objective import Losses, local_objective, objective
from raysweep.methods.precision import precision_of
from raysweep.models.building import Encoder
from raysweep.models.conv6 import Conv6
from raysweep.models.decoders import SymmetricDecoder
from raysweep.models.resnet18 import ResNet18
from raysweep.training.distributed import SINGLE_PROCESS, BatchShard, DistributedContext, TrainingStep
from raysweep.training.state import State, greedy_stage


def steps_of(settings: Settings, state: State, share: BatchShard | None) -> list[TrainingStep]:
    """What each of the optimizers trains, and by which losses."""
    encoder, decoder = state.encoder, state.decoder
    if settings.layerwise == "none":
        whole = [encoder] if decoder is None else [encoder, decoder]
        return [TrainingStep(whole, partial(objective, settings, encoder, decoder, share=share))]
    assert isinstance(encoder, Conv6)
    assert state.heads is not None
    steps = []
    for block, head in enumerate(state.heads):
        undo = decoder.blocks[block] if isinstance(decoder, SymmetricDecoder) else None
        trained = [encoder.blocks[block]]
        trained += [head] if settings.views == 2 else []  # with one view no loss reads an embedding
        trained += [undo] if undo is not None else []
        steps.append(TrainingStep(trained, partial(local_objective, settings, encoder, block, head, undo, share=share)))
    return steps


def pretrain(
    settings: Settings,
    state: State,
    images: Tensor,
    pause: Callable[[], bool] = lambda: False,
    ranks: DistributedContext = SINGLE_PROCESS,
) -> Generator[dict[str, float] | None]:
    """Train `state` to its last epoch, yielding after each epoch its metrics (see `config.METRICS`).

    Layer by layer, epochs are counted on through the stages: `greedy` trains each block for `usl_epochs`, one after the
    other; `random` draws for every batch the one block that it trains, in as many epochs.

    Args:
        settings: the experiment.
        state: where to go on; whenever this yields it may be saved.
        images: (N, C, H, W) uint8, resident on the training device, N ≥ `batch_size`.
        pause: asked after each step but an epoch's last; where it is true, None is yielded.
        ranks: the processes that train together, each on its part of every batch: equal in all but which of them this
            is. All yield at the same places; where the leader's generator is closed, the others' end.

    Raises:
        Diverged: the loss or a weight is NaN or infinite; the message names the epoch.
    """
    blocks = len(state.optimizers)
    epochs = settings.usl_epochs * blocks
    if state.epoch >= epochs:
        return
    steps = len(images) // settings.batch_size
    assert steps > 0, "batch_size is checked against the dataset before a trial starts"
    state.encoder.train()
    share = ranks.share(settings.batch_size)
    if share is not None:
        synchronise_batch_norm(state.encoder)
    # The leader's precision for all: `auto` may be another elsewhere.
    in_bf16 = ranks.agree(precision_of(settings, images.device.type) == "bf16")
    settings = settings.model_copy(update={"precision": "bf16" if in_bf16 else "fp32"})
    networks = [ranks.parallel(step) for step in steps_of(settings, state, share)]
    while state.epoch < epochs:
        started, begun = time.perf_counter(), state.step
        if state.order is None:
            state.order = torch.randperm(len(images), generator=state.generator)
            # Summed on the device: reading a loss each step would wait for it.
            state.sums = torch.zeros(3, device=images.device)
        assert state.sums is not None
        absent = torch.zeros((), device=images.device)
        for index in state.order.to(images.device).split(settings.batch_size)[begun:steps]:
            if share is not None:
                index = index[share.start : share.end]
            batch = images.index_select(0, index)  # images[index] is 20 times slower for uint8 on a CPU
            clean = to_float(batch) if settings.denoising else batch
            copies = batch.repeat(settings.views, 1, 1, 1)
            part = share.views(settings.views) if share is not None else None
            views = augment(copies, settings.policies, settings.strength, settings.blur, state.generator, part)
            block = 0  # the whole network
            if settings.layerwise == "greedy":
                block = greedy_stage(settings, state.epoch)
            elif settings.layerwise == "random":
                block = int(torch.randint(blocks, (), generator=state.generator))
            loss: Losses = networks[block](views, clean)
            state.optimizers[block].zero_grad()
            ranks.backward(loss.total)
            state.optimizers[block].step()
            values = (loss.total, loss.rec, loss.emb)
            # Together, because on a GPU each operation costs a launch.
            state.sums += torch.stack([absent if value is None else value.detach() for value in values])
            state.step += 1
            if state.step < steps and ranks.agree(pause()):
                ranks.add_up(state.sums)
                if not ranks.lead:  # the leader has them all now, and may save them
                    state.sums.zero_()
                if (yield from ranks.hand_over(None)):
                    return
        ranks.add_up(state.sums)
        finite = torch.stack([weight.isfinite().all() for weight in state.encoder.parameters()]).all()
        # Read together, because a GPU is waited for each time.
        total, rec, emb, all_finite = torch.cat((state.sums / steps, finite[None].float())).tolist()
        state.epoch, state.step, state.order, state.sums = state.epoch + 1, 0, None, None
        if not math.isfinite(total):
            raise Diverged(f"the loss became {total} in pretraining epoch {state.epoch}")
        if not all_finite:
            raise Diverged(f"a weight became infinite in pretraining epoch {state.epoch}")
        metrics = {"pretrain/loss": total}
        if state.decoder is not None:
            metrics["pretrain/rec_loss"] = rec
        if settings.views == 2:
            metrics["pretrain/emb_loss"] = emb
        metrics["pretrain/images_per_s"] = (steps - begun) * settings.batch_size / (time.perf_counter() - started)
        if (yield from ranks.hand_over(metrics)):
            return


def synchronise_batch_norm(encoder: Encoder) -> None:
    """Let batch norm, where the encoder has it, take its statistics over the batch's parts in all processes.

    Only on GPUs, which is checked before a sweep starts. Weights stay the same objects.
    """
    if isinstance(encoder, ResNet18):
        encoder.body = nn.SyncBatchNorm.convert_sync_batchnorm(encoder.body)
