"""Build networks whose initial weights depend on the seed alone."""

from __future__ import annotations

import torch
from torch import nn

from raysweep.models.conv6 import Conv6
from raysweep.models.decoders import Decoder, SymmetricDecoder
from raysweep.models.resnet18 import ResNet18
from raysweep.randomness import seed_of

Encoder = Conv6 | ResNet18


def make_encoder(
    architecture: str, channels: int, image_size: int, embedding_dim: int, seed: int, init: str = "pytorch"
) -> Encoder:
    """A fresh encoder on the CPU; its weights depend on the arguments alone, so every method of a seed starts alike.

    `init` is of Conv6's convolutions: `pytorch`, uniform with variance 1/(3·fan-in), or `kaiming`, normal with variance
    2/fan-in (He et al. 2015, arXiv 1502.01852, equation 10), so that the signal does not shrink from block to block.
    """
    assert architecture in ("conv6", "resnet18")
    assert init in ("pytorch", "kaiming")
    build = Conv6 if architecture == "conv6" else ResNet18
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "encoder"))
        encoder = build(channels, image_size, embedding_dim)
        if init == "kaiming" and isinstance(encoder, Conv6):
            for name, weight in encoder.named_parameters():
                if name.startswith("blocks."):
                    nn.init.kaiming_normal_(weight, nonlinearity="relu")
    return encoder.to(memory_format=torch.channels_last)


def make_decoder(channels: int, image_size: int, embedding_dim: int, seed: int) -> Decoder:
    """A fresh simple decoder on the CPU; its weights depend on the arguments alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "decoder"))
        return Decoder(channels, image_size, embedding_dim).to(memory_format=torch.channels_last)


def make_symmetric_decoder(encoder: Conv6, seed: int) -> SymmetricDecoder:
    """A fresh symmetric decoder on the CPU; its weights depend on the encoder's shape and the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "decoder"))
        return SymmetricDecoder(encoder).to(memory_format=torch.channels_last)


def make_local_heads(encoder: Conv6, seed: int) -> nn.ModuleList:
    """A linear head for the flattened output of every block of `encoder`; the last block's is the encoder's own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "local heads"))
        dim = encoder.head.out_features
        local = [nn.Linear(encoder.width(k), dim, bias=False) for k in range(len(encoder.blocks) - 1)]
    return nn.ModuleList([*local, encoder.head])
