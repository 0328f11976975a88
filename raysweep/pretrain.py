"""The pretraining loop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raysweep.augment import simclr, to_float
from raysweep.config import Settings
from raysweep.errors import Diverged
from raysweep.models import Conv6, Decoder, make_decoder, make_encoder
from raysweep.objective import objective
from raysweep.randomness import generator


@dataclass
class State:
    """All that pretraining changes. Saved between two epochs and loaded elsewhere, it goes on bit for bit."""

    encoder: Conv6
    decoder: Decoder | None
    optimizer: torch.optim.Adam
    generator: torch.Generator
    epoch: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, so that it loads with `weights_only=True`."""
        return {
            "encoder": self.encoder.state_dict(),
            "decoder": self.decoder.state_dict() if self.decoder is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "epoch": self.epoch,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.encoder.load_state_dict(saved["encoder"])
        if self.decoder is not None:
            self.decoder.load_state_dict(saved["decoder"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.generator.set_state(saved["generator"])
        self.epoch = saved["epoch"]


def fresh_state(settings: Settings, channels: int, image_size: int, device: torch.device) -> State:
    """The state before the first epoch, on `device`."""
    shape = (channels, image_size, settings.embedding_dim, settings.seed)
    encoder = make_encoder(*shape).to(device)
    decoder = None if settings.usl_type == "simclr" else make_decoder(*shape).to(device)
    parameters = [*encoder.parameters(), *(decoder.parameters() if decoder is not None else ())]
    optimizer = torch.optim.Adam(parameters, lr=settings.usl_lr, fused=True)
    return State(encoder, decoder, optimizer, generator(settings.seed, "pretrain"))


def pretrain(settings: Settings, state: State, images: Tensor) -> Iterator[dict[str, float]]:
    """Train `state` up to `usl_epochs`, yielding after each epoch its metrics (see `config.METRICS`).

    Args:
        settings: the experiment.
        state: where to go on; between two epochs it may be saved.
        images: (N, C, H, W) uint8, resident on the training device, N ≥ `batch_size`.

    Raises:
        Diverged: the loss or a weight is NaN or infinite; the message names the epoch.
    """
    steps = len(images) // settings.batch_size
    assert steps > 0, "batch_size is checked against the dataset before a trial starts"
    state.encoder.train()
    while state.epoch < settings.usl_epochs:
        started = time.perf_counter()
        order = torch.randperm(len(images), generator=state.generator).to(images.device)
        sums = torch.zeros(3, device=images.device)  # summed on the device: reading a loss each step would wait for it
        for index in order.split(settings.batch_size)[:steps]:
            batch = images.index_select(0, index)  # images[index] is 20 times slower for uint8 on a CPU
            clean = to_float(batch) if settings.denoising else batch
            views = simclr(batch.repeat(settings.views, 1, 1, 1), settings.strength, settings.blur, state.generator)
            loss = objective(settings, state.encoder, state.decoder, views, clean)
            state.optimizer.zero_grad()
            loss.total.backward()
            state.optimizer.step()
            for position, part in enumerate((loss.total, loss.rec, loss.emb)):
                if part is not None:
                    sums[position] += part.detach()
        total, rec, emb = (sums / steps).tolist()
        state.epoch += 1
        if not math.isfinite(total):
            raise Diverged(f"the loss became {total} in pretraining epoch {state.epoch}")
        if not all(bool(p.isfinite().all()) for p in state.encoder.parameters()):
            raise Diverged(f"a weight became infinite in pretraining epoch {state.epoch}")
        metrics = {"pretrain/loss": total}
        if state.decoder is not None:
            metrics["pretrain/rec_loss"] = rec
        if settings.views == 2:
            metrics["pretrain/emb_loss"] = emb
        metrics["pretrain/images_per_s"] = steps * settings.batch_size / (time.perf_counter() - started)
        yield metrics
