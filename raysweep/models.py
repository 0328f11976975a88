"""The Conv6 encoder and the decoder of end-to-end training."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raysweep.randomness import seed_of

TRUNK_CHANNELS = 512
DOWNSAMPLING = 8  # three 2×2 poolings


def padded(size: int) -> int:
    """The next multiple of eight: the side that Conv6 works on for images of side `size`."""
    return -(-size // DOWNSAMPLING) * DOWNSAMPLING


class Conv6(nn.Module):
    """Five 3×3 convolutions and a linear head, without biases or normalisation.

    Tang, Yang & Amit, "Biologically Plausible Training Mechanisms for Self-Supervised Learning in Deep Networks",
    Front. Comput. Neurosci. 2022, doi 10.3389/fncom.2022.789253. C→32 Hardtanh; 32→32 MaxPool; 32→64 Hardtanh; 64→64
    MaxPool; 64→512 MaxPool; flatten; Linear. 360,288 convolution weights for C = 3.

    Args:
        channels: C of the images.
        image_size: H = W of the images; padded with zeros to a multiple of eight.
        embedding_dim: width of the embedding.
    """

    def __init__(self, channels: int, image_size: int, embedding_dim: int) -> None:
        super().__init__()
        self.channels, self.image_size = channels, image_size
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.MaxPool2d(2) if pool else nn.Hardtanh()
            )
            for inputs, outputs, pool in (
                (channels, 32, False),
                (32, 32, True),
                (32, 64, False),
                (64, 64, True),
                (64, TRUNK_CHANNELS, True),
            )
        )
        self.feature_dim = TRUNK_CHANNELS * (padded(image_size) // DOWNSAMPLING) ** 2
        self.head = nn.Linear(self.feature_dim, embedding_dim, bias=False)

    def trunk(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> features (B, 512·⌈H/8⌉·⌈W/8⌉)."""
        missing = padded(self.image_size) - self.image_size
        h = images if not missing else F.pad(images, (missing // 2, missing - missing // 2) * 2)
        for block in self.blocks:
            h = block(h)
        return h.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> embeddings (B, embedding_dim)."""
        z: Tensor = self.head(self.trunk(images))
        return z


class Decoder(nn.Module):
    """The simple decoder of end-to-end training: linear, then three doublings, each followed by a 3×3 convolution.

    Nearest-neighbour doubling before a convolution, because transposed convolutions leave checkerboards (Odena et al.
    2016, doi 10.23915/distill.00003). No activation at the end: the target's range is learnt.

    Args:
        channels: C of the images.
        image_size: H = W of the images.
        embedding_dim: width of the embedding that is decoded.
    """

    def __init__(self, channels: int, image_size: int, embedding_dim: int) -> None:
        super().__init__()
        self.image_size, self.start = image_size, padded(image_size) // DOWNSAMPLING
        self.linear = nn.Linear(embedding_dim, 64 * self.start**2)
        self.convolutions = nn.Sequential(
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(64, 32, 3, padding=1),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(32, channels, 3, padding=1),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Embeddings (B, embedding_dim) -> images (B, C, H, W)."""
        h = self.linear(z).unflatten(1, (64, self.start, self.start))
        image: Tensor = self.convolutions(h.contiguous(memory_format=torch.channels_last))
        before = (image.shape[-1] - self.image_size) // 2
        return image[..., before : before + self.image_size, before : before + self.image_size]


def make_encoder(channels: int, image_size: int, embedding_dim: int, seed: int) -> Conv6:
    """A fresh Conv6 on the CPU; its weights depend on the arguments alone, so every method of a seed starts alike."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "encoder"))
        return Conv6(channels, image_size, embedding_dim).to(memory_format=torch.channels_last)


def make_decoder(channels: int, image_size: int, embedding_dim: int, seed: int) -> Decoder:
    """A fresh decoder on the CPU; its weights depend on the arguments alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "decoder"))
        return Decoder(channels, image_size, embedding_dim).to(memory_format=torch.channels_last)
