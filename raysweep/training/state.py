"""The training state: everything that pretraining changes, and the steps that change it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from raysweep import parts
from raysweep.config import Settings
from raysweep.methods.layerwise import block_losses
from raysweep.models.building import (
    build_encoder,
    build_local_heads,
    build_symmetric_decoder,
    check_batch_norm,
    fit_encoder,
    seeded,
)
from raysweep.models.decoders import SymmetricDecoder
from raysweep.randomness import generator
from raysweep.training.distributed import DistributedContext, TrainingStep


@dataclass
class State:
    """Everything that pretraining changes. If saved and loaded between two steps, training continues bit for bit."""

    method: Any
    """The method's module. Its `encoder` is evaluated."""
    heads: nn.ModuleList | None
    """The heads of layerwise training, one for each block; the last one is the encoder's own head. None otherwise."""
    decoder: SymmetricDecoder | None
    """The decoder of layerwise training, if the method reconstructs; None otherwise."""
    optimizers: list[torch.optim.Optimizer]
    """One optimizer; in layerwise training one for each block, so that momentum never moves an idle block."""
    generator: torch.Generator
    """For everything that is drawn in a step. The order of the images has a generator of its own for each epoch."""
    epoch: int = 0
    """Number of finished epochs."""
    step: int = 0
    """Number of finished steps in the current epoch."""
    order: Tensor | None = None
    """The order of the images in the current epoch, (N,) int64; None before its first step."""
    sums: Tensor | None = None
    """The losses of the current epoch summed over its steps, (1 + parts,): the total, then the parts of `Losses`."""

    @property
    def encoder(self) -> Any:
        """The encoder, with its `head`."""
        return self.method.encoder

    def modules(self) -> dict[str, nn.Module]:
        """Return the modules with weights, by the name under which they are saved."""
        every = {"method": self.method, "heads": self.heads, "decoder": self.decoder}
        return {name: module for name, module in every.items() if module is not None}

    def state_dict(self) -> dict[str, Any]:
        """Return only tensors and plain values, so that the state loads with `weights_only=True`."""
        return {
            **{name: module.state_dict() for name, module in self.modules().items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "generator": self.generator.get_state(),
            "epoch": self.epoch,
            "step": self.step,
            "order": self.order,
            "sums": self.sums,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        for name, module in self.modules().items():
            module.load_state_dict(saved[name])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.generator.set_state(saved["generator"])
        self.epoch, self.step, self.order = saved["epoch"], saved["step"], saved["order"]
        self.sums = saved["sums"].to(device_of(self.encoder)) if saved["sums"] is not None else None

    def embed(self, settings: Settings, images: Tensor) -> Tensor:
        """Return embeddings (B, D) of images (B, C, H, W), from the head that is currently trained."""
        z: Tensor
        with evaluating(self.modules().values()):
            if settings.layerwise != "greedy":
                z = self.method.embed(images)
            else:
                assert self.heads is not None
                stage = greedy_stage(settings, max(self.epoch - 1, 0))
                z = self.heads[stage](self.encoder.up_to(images, stage + 1).flatten(1))
        return z

    def reconstruct(self, settings: Settings, views: Tensor) -> Tensor | None:
        """Reconstruct images (B, C, H, W) from views with the blocks trained so far; None without a decoder."""
        with evaluating(self.modules().values()):
            if settings.layerwise == "none":
                return self.method.reconstruct(views) if hasattr(self.method, "reconstruct") else None
            if self.decoder is None:
                return None
            blocks = len(self.encoder.blocks)
            if settings.layerwise == "greedy":
                blocks = greedy_stage(settings, max(self.epoch - 1, 0)) + 1
            images: Tensor = self.decoder(self.encoder.up_to(views, blocks), blocks)
            return images

    def steps(self) -> list[nn.Module]:
        """Return the module that each optimizer trains; it turns (views, clean images) into `Losses`."""
        if self.heads is None:
            return [self.method]
        steps: list[nn.Module] = []
        for block, head in enumerate(self.heads):
            inverse = self.decoder.blocks[block] if self.decoder is not None else None
            trained = [self.encoder.blocks[block]]
            trained += [head] if self.method.loss is not None else []  # without an embedding loss the head is unused
            trained += [inverse] if inverse is not None else []
            steps.append(TrainingStep(trained, partial(block_losses, self.method, block, head, inverse)))
        return steps


@contextmanager
def evaluating(networks: Collection[nn.Module]) -> Iterator[None]:
    """Put networks into evaluation mode inside the block; afterwards each of their modules has its own mode again.

    In this mode dropout draws nothing, and the statistics of batch normalisation do not change.
    """
    modes = [(module, module.training) for network in networks for module in network.modules()]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class Untrained(nn.Module):
    """An encoder without a method: it is never trained, or its training has ended."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder


def greedy_stage(settings: Settings, epoch: int) -> int:
    """Return the index of the block that is trained in the epoch with index `epoch`; both count from 0."""
    return epoch // settings.usl_epochs


def device_of(network: nn.Module) -> torch.device:
    """Return the device of a network's weights."""
    return next(network.parameters()).device


def fresh_state(
    settings: Settings,
    channels: int,
    image_size: int,
    device: torch.device,
    classes: int = 0,
    images: Tensor | None = None,
) -> State:
    """Return the state before the first epoch.

    Args:
        settings: The experiment.
        channels: C of the images.
        image_size: H = W of the images.
        device: The device of the state.
        classes: The number of classes, for a method that reads labels.
        images: The pretraining images, (N, C, H, W) uint8, to which an encoder with `fit` is fitted; None if a saved
            state is loaded afterwards.
    """
    encoder = build_encoder(settings, channels, image_size)
    if images is not None:
        fit_encoder(encoder, images, settings.seed)
    return state_of(settings, encoder, device, classes)


def state_of(settings: Settings, encoder: Any, device: torch.device, classes: int = 0) -> State:
    """Return the state of an encoder before its first epoch, on `device`; see `fresh_state`."""
    if not parts.encoder[settings.encoder].traits["trains"]:
        return State(Untrained(encoder).to(device), None, None, [], generator(settings.seed, "pretrain"))
    part = parts.method[settings.usl_type]
    with seeded(settings.seed, "decoder"):
        inputs = (encoder, classes) if part.traits["reads_labels"] else (encoder,)
        method = part.function(*inputs, **part.arguments(settings))
    if settings.usl_epochs and next(parts.with_batch_norm(settings), None) is None:
        check_batch_norm(part, [method], settings)
    if settings.layerwise == "none":
        method.to(device)
        trained = [[weight for weight in method.parameters() if weight.requires_grad]]
        state = State(method, None, None, [], generator(settings.seed, "pretrain"))
    else:
        reconstructs, method.decoder = method.decoder is not None, None
        heads = build_local_heads(encoder, settings).to(device)
        decoder = build_symmetric_decoder(encoder, settings.seed).to(device) if reconstructs else None
        method.to(device)
        inverses = decoder.blocks if decoder is not None else [nn.Identity() for _ in heads]
        trained = [
            [weight for module in modules for weight in module.parameters()]
            for modules in zip(encoder.blocks, heads, inverses, strict=True)
        ]
        state = State(method, heads, decoder, [], generator(settings.seed, "pretrain"))
    optimizer = parts.optimizer[settings.optimizer]
    arguments = optimizer.arguments(settings)
    state.optimizers = [optimizer.function(weights, settings.usl_lr, **arguments) for weights in trained]
    return state


def frozen_state(settings: Settings, encoder: Any, device: torch.device) -> State:
    """Return the state of a trained encoder, on `device`, in which nothing is left to train."""
    draws = generator(settings.seed, "pretrain")
    return State(Untrained(encoder).to(device), None, None, [], draws, epoch=settings.pretrain_epochs)


def broadcast_state(state: State, context: DistributedContext) -> None:
    """Copy the state of the main process to every process."""
    if context.size == 1:
        return
    saved = context.broadcast_state(state.state_dict() if context.is_main else None)
    if not context.is_main:
        state.load_state_dict(saved)
        if state.sums is not None:  # the main process already holds the sums so far, and all sums are added up later
            state.sums.zero_()
