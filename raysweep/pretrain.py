"""The pretraining loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from raysweep.adam import Adam
from raysweep.augment import augment, to_float
from raysweep.config import Settings
from raysweep.errors import Diverged
from raysweep.models import (
    Conv6,
    Decoder,
    Encoder,
    ResNet18,
    SymmetricDecoder,
    make_decoder,
    make_encoder,
    make_local_heads,
    make_symmetric_decoder,
)
from raysweep.objective import Losses, local_objective, objective, precision_of
from raysweep.randomness import generator
from raysweep.ranks import ALONE, Ranks, Share, Step


@dataclass
class State:
    """All that pretraining changes. Saved between two steps and loaded elsewhere, it goes on bit for bit."""

    encoder: Encoder
    decoder: Decoder | SymmetricDecoder | None
    heads: nn.ModuleList | None
    """Layer by layer: one for each block, the last being the encoder's own."""
    optimizers: list[Adam]
    """One; layer by layer one for each block, so that momentum never moves an idle block."""
    generator: torch.Generator
    epoch: int = 0
    """Epochs done."""
    step: int = 0
    """Steps done of the epoch after them."""
    order: Tensor | None = None
    """(N,) int64: that epoch's order of the images; None before its first step."""
    sums: Tensor | None = None
    """(3,): its losses so far, summed over the steps: total, reconstruction, embedding."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, so that it loads with `weights_only=True`."""
        return {
            "encoder": self.encoder.state_dict(),
            "decoder": self.decoder.state_dict() if self.decoder is not None else None,
            "heads": self.heads.state_dict() if self.heads is not None else None,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "generator": self.generator.get_state(),
            "epoch": self.epoch,
            "step": self.step,
            "order": self.order,
            "sums": self.sums,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.encoder.load_state_dict(saved["encoder"])
        if self.decoder is not None:
            self.decoder.load_state_dict(saved["decoder"])
        if self.heads is not None:
            self.heads.load_state_dict(saved["heads"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.generator.set_state(saved["generator"])
        self.epoch, self.step, self.order = saved["epoch"], saved.get("step", 0), saved.get("order")
        sums = saved.get("sums")  # a checkpoint of an older version was of an epoch's end, and lacks all three
        self.sums = sums.to(self.encoder.head.weight.device) if sums is not None else None

    def embed(self, settings: Settings, images: Tensor) -> Tensor:
        """Embeddings (B, D) of images (B, C, H, W) by the head in training: a greedy stage's, else the encoder's."""
        if settings.layerwise != "greedy":
            return self.encoder(images)  # type: ignore[no-any-return]
        assert self.heads is not None
        assert isinstance(self.encoder, Conv6)
        stage = greedy_stage(settings, max(self.epoch - 1, 0))
        return self.heads[stage](self.encoder.up_to(images, stage + 1).flatten(1))  # type: ignore[no-any-return]

    def reconstruct(self, settings: Settings, views: Tensor) -> Tensor:
        """Images (B, C, H, W) from views (B, C, H, W); of a greedy stage by the blocks trained so far."""
        assert self.decoder is not None
        if settings.layerwise == "none":
            return self.decoder(self.encoder(views))  # type: ignore[no-any-return]
        assert isinstance(self.encoder, Conv6)
        blocks = len(self.encoder.blocks)
        if settings.layerwise == "greedy":
            blocks = greedy_stage(settings, max(self.epoch - 1, 0)) + 1
        return self.decoder(self.encoder.up_to(views, blocks))  # type: ignore[no-any-return]


def greedy_stage(settings: Settings, epoch: int) -> int:
    """Which block, from 0, the epoch number `epoch`, from 0, trains."""
    return epoch // settings.usl_epochs


def fresh_state(settings: Settings, channels: int, image_size: int, device: torch.device) -> State:
    """The state before the first epoch, on `device`."""
    shape = (channels, image_size, settings.embedding_dim, settings.seed)
    return state_of(settings, make_encoder(settings.encoder, *shape, settings.init).to(device))


def state_of(settings: Settings, encoder: Encoder) -> State:
    """The state before the first epoch of an encoder, on its device."""
    device = encoder.head.weight.device
    reconstructs = settings.usl_type != "simclr"
    decoder: Decoder | SymmetricDecoder | None = None
    heads = None
    if settings.layerwise == "none":
        if reconstructs:
            shape = (encoder.channels, encoder.image_size, encoder.head.out_features, settings.seed)
            decoder = make_decoder(*shape).to(device)
        trained = [[*encoder.parameters(), *(decoder.parameters() if decoder is not None else ())]]
    else:
        assert isinstance(encoder, Conv6), "checked with the settings"
        heads = make_local_heads(encoder, settings.seed).to(device)
        if reconstructs:
            decoder = make_symmetric_decoder(encoder, settings.seed).to(device)
            undo = decoder.blocks
        else:
            undo = nn.ModuleList(nn.Identity() for _ in heads)
        trained = [
            [weight for part in parts for weight in part.parameters()]
            for parts in zip(encoder.blocks, heads, undo, strict=True)
        ]
    optimizers = [Adam(weights, lr=settings.usl_lr) for weights in trained]
    return State(encoder, decoder, heads, optimizers, generator(settings.seed, "pretrain"))


def steps_of(settings: Settings, state: State, share: Share | None) -> list[Step]:
    """What each of the optimizers trains, and by which losses."""
    encoder, decoder = state.encoder, state.decoder
    if settings.layerwise == "none":
        whole = [encoder] if decoder is None else [encoder, decoder]
        return [Step(whole, partial(objective, settings, encoder, decoder, share=share))]
    assert isinstance(encoder, Conv6)
    assert state.heads is not None
    steps = []
    for block, head in enumerate(state.heads):
        undo = decoder.blocks[block] if isinstance(decoder, SymmetricDecoder) else None
        trained = [encoder.blocks[block]]
        trained += [head] if settings.views == 2 else []  # with one view no loss reads an embedding
        trained += [undo] if undo is not None else []
        steps.append(Step(trained, partial(local_objective, settings, encoder, block, head, undo, share=share)))
    return steps


def pretrain(
    settings: Settings,
    state: State,
    images: Tensor,
    pause: Callable[[], bool] = lambda: False,
    ranks: Ranks = ALONE,
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


def spread(state: State, ranks: Ranks) -> None:
    """Give every process the leader's state."""
    if ranks.size == 1:
        return
    saved = ranks.spread(state.state_dict() if ranks.lead else None)
    if not ranks.lead:
        state.load_state_dict(saved)
        if state.sums is not None:  # shares add up to the batch's, and the leader has those of the steps so far
            state.sums.zero_()
