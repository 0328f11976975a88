"""Building of networks whose initial weights depend only on the settings and the seed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from raysweep import parts
from raysweep.config import Settings
from raysweep.config.values import shown
from raysweep.errors import InputError
from raysweep.models.decoders import SymmetricDecoder
from raysweep.part_functions import trait_of
from raysweep.parts import Part
from raysweep.randomness import seed_of


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Let PyTorch draw weights from a seed inside the block; afterwards its generator is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, purpose))
        yield


def build_encoder(settings: Settings, channels: int, image_size: int) -> Any:
    """Build a new encoder on the CPU, with its projection head as the attribute `head`; `fit` is not called.

    Its weights depend only on the encoder and the seed, and not on its head. So all methods and the random encoder of
    one seed start with the same weights.

    Args:
        settings: The experiment.
        channels: C of the images.
        image_size: H = W of the images.

    Returns:
        The encoder's `nn.Module`, with `channels`, `image_size`, `feature_dim` and `head` set.

    Raises:
        InputError: The encoder or its head has batch normalisation but does not declare it, or the encoder's module
            has a `head` of its own, or other values of `channels` and `image_size`.
    """
    part = parts.encoder[settings.encoder]
    with seeded(settings.seed, "encoder"):
        sizes = (channels, image_size, *([settings.embedding_dim] if part.traits["takes_dim"] else []))
        network = part.function(*sizes, **part.arguments(settings))
        if isinstance(network, nn.Sequential):
            network = Encoder(network)
        check_attributes(part, network, {"channels": channels, "image_size": image_size})
        if not hasattr(network, "feature_dim"):
            network.feature_dim = feature_dim_of(network, channels, image_size)
        drawn = torch.get_rng_state()
        if part.traits["trains"]:
            network.head = build_head(settings, network.feature_dim)
        else:
            network.head = nn.Identity()  # nothing trains a head, so the embedding is the features
        if hasattr(network, "draw_weights"):
            if part.traits["trains"]:  # so that the draws are the same for every head
                torch.set_rng_state(drawn)
                build_head(Settings(), network.feature_dim)
            network.draw_weights()
        check_batch_norm(part, [module for name, module in network.named_children() if name != "head"], settings)
    return network.to(memory_format=torch.channels_last)


def fit_encoder(encoder: Any, images: Tensor, seed: int) -> None:
    """Fit an encoder to the pretraining images if it has `fit`. A method is built later, because it may copy it.

    Args:
        encoder: A new encoder on the CPU, where it is afterwards too. It is fitted on the device of the images.
        images: (N, C, H, W) uint8.
        seed: The seed of the trial.
    """
    if hasattr(encoder, "fit"):
        encoder.to(images.device)
        with seeded(seed, "fit"):
            encoder.fit(images)
        encoder.cpu()


def build_head(settings: Settings, feature_dim: int) -> Any:
    """Build a head from features (B, feature_dim) to embeddings, with the attribute `out_features`."""
    part = parts.head[settings.head]
    network = part.function(feature_dim, settings.embedding_dim, **part.arguments(settings))
    check_batch_norm(part, [network], settings)
    if not hasattr(network, "out_features"):
        network.out_features = settings.embedding_dim
    return network


def check_attributes(part: Part, network: nn.Module, sizes: Mapping[str, int]) -> None:
    """Set the sizes of the images on an encoder; raise InputError if it uses a name that raysweep sets for itself."""
    if hasattr(network, "head"):
        raise InputError(
            f"encoder {part.name} has an attribute head, but raysweep sets head to the projection head; give your "
            "attribute another name"
        )
    for name, size in sizes.items():
        if not hasattr(network, name):
            setattr(network, name, size)
        value = getattr(network, name)
        if not isinstance(value, int) or value != size:
            raise InputError(
                f"encoder {part.name} has {name}={shown(value)}, but raysweep uses {name} for the images, whose value "
                f"is {size}; give your attribute another name"
            )


def check_batch_norm(part: Part, networks: Iterable[nn.Module], settings: Settings) -> None:
    """Raise InputError if networks of a part have batch normalisation but the part does not declare it."""
    if any(has_batch_norm(network) for network in networks) and not trait_of(part, "batch_norm", settings, bool):
        raise InputError(
            f"{part.kind} {part.name} has batch normalisation: declare it by @{part.kind}(batch_norm=True)"
        )


OPTIONAL = ("feature_dim", "layer_outputs", "blocks", "up_to", "width", "inverse_block", "draw_weights", "fit")
"""The optional attributes and methods of an encoder; `raysweep.models.encoders` describes them."""


class Encoder(nn.Module):
    """Wraps an encoder that is an `nn.Sequential`, which would otherwise run the head as one of its layers.

    The wrapper also has the optional attributes and methods that a class derived from `nn.Sequential` defines.

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

    def __getattr__(self, name: str) -> Any:
        """Return an optional attribute or method of the wrapped encoder."""
        return getattr(self.layers, name) if name in OPTIONAL else super().__getattr__(name)


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


def build_local_heads(encoder: Any, settings: Settings) -> nn.ModuleList:
    """Build a head for each block's flattened output; the last one is the encoder's own head."""
    with seeded(settings.seed, "local heads"):
        local = [build_head(settings, encoder.width(block)) for block in range(len(encoder.blocks) - 1)]
    return nn.ModuleList([*local, encoder.head])
