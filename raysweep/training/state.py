"""Everything that pretraining changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raysweep.config import Settings
from raysweep.models.building import Encoder, make_decoder, make_encoder, make_local_heads, make_symmetric_decoder
from raysweep.models.conv6 import Conv6
from raysweep.models.decoders import Decoder, SymmetricDecoder
from raysweep.randomness import generator
from raysweep.training.adam import Adam
from raysweep.training.distributed import DistributedContext


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


def spread(state: State, ranks: DistributedContext) -> None:
    """Give every process the leader's state."""
    if ranks.size == 1:
        return
    saved = ranks.spread(state.state_dict() if ranks.lead else None)
    if not ranks.lead:
        state.load_state_dict(saved)
        if state.sums is not None:  # shares add up to the batch's, and the leader has those of the steps so far
            state.sums.zero_()
