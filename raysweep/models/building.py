"""Building of networks whose initial weights depend only on the settings and the seed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from raysweep import parts
from raysweep.config import Settings
from raysweep.errors import InputError
from raysweep.models.decoders import SymmetricDecoder
from raysweep.randomness import seed_of


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Let PyTorch draw weights from a seed inside the block; afterwards its generator is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, purpose))
        yield


def build_encoder(settings: Settings, channels: int, image_size: int) -> Any:
    """Build a new encoder on the CPU, with its projection head as the attribute `head`; `fit` is not called.

    Its weights depend only on the encoder, the head and the seed, so all methods start equally for one seed.

    Args:
        settings: The experiment.
        channels: C of the images.
        image_size: H = W of the images.

    Returns:
        The encoder's `nn.Module`, with `channels`, `image_size`, `feature_dim` and `head` set.

    Raises:
        InputError: The encoder has batch normalisation but does not declare it.
    """
    part, head = parts.encoder[settings.encoder], parts.head[settings.head]
    with seeded(settings.seed, "encoder"):
        sizes = (channels, image_size, *([settings.embedding_dim] if part.traits["takes_dim"] else []))
        network = part.function(*sizes, **part.arguments(settings))
        if isinstance(network, nn.Sequential):
            network = Encoder(network)
        network.channels, network.image_size = channels, image_size
        if not hasattr(network, "feature_dim"):
            network.feature_dim = feature_dim_of(network, channels, image_size)
        if part.traits["trains"]:
            network.head = head.function(network.feature_dim, settings.embedding_dim, **head.arguments(settings))
        else:
            network.head = nn.Identity()  # nothing trains a head, so the embedding is the features
        if hasattr(network, "draw_weights"):
            network.draw_weights()
    if has_batch_norm(network) and not part.traits["batch_norm"]:
        raise InputError(f"encoder {part.name} has batch normalisation: declare it by @encoder(batch_norm=True)")
    return network.to(memory_format=torch.channels_last)


class Encoder(nn.Module):
    """Wraps an encoder that is an `nn.Sequential`, which would otherwise run the head as one of its layers.

    Args:
        layers: The module that turns images into features.
    """

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> features (B, D)."""
        features: Tensor = self.layers(images)
        return features


def feature_dim_of(network: nn.Module, channels: int, image_size: int) -> int:
    """Return the number of features of an encoder, found with two black images."""
    was_training = network.training
    with torch.no_grad():
        features = network.eval()(torch.zeros(2, channels, image_size, image_size))
    network.train(was_training)
    return int(features.shape[1])


def has_batch_norm(network: nn.Module) -> bool:
    """Return whether a network normalises over the batch, so that its outputs depend on how the batch is divided."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


def build_symmetric_decoder(encoder: Any, seed: int) -> SymmetricDecoder:
    """Build a new symmetric decoder on the CPU; its weights depend only on the encoder's shape and the seed."""
    with seeded(seed, "decoder"):
        return SymmetricDecoder(encoder).to(memory_format=torch.channels_last)


def build_local_heads(encoder: Any, embedding_dim: int, seed: int) -> nn.ModuleList:
    """Build a linear head for each block's flattened output; the last one is the encoder's own head."""
    with seeded(seed, "local heads"):
        blocks = range(len(encoder.blocks) - 1)
        local = [nn.Linear(encoder.width(block), embedding_dim, bias=False) for block in blocks]
    return nn.ModuleList([*local, encoder.head])
