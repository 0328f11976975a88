"""The encoders, Conv6 and ResNet-18, and the decoders of end-to-end and of layer-wise training."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raysweep.randomness import seed_of

BLOCKS = ((32, False), (32, True), (64, False), (64, True), (512, True))
"""Conv6's blocks: output channels, and whether they pool (else Hardtanh)."""
DOWNSAMPLING = 8  # three 2×2 poolings


def padded(size: int) -> int:
    """The next multiple of eight: the side that Conv6 works on for images of side `size`."""
    return -(-size // DOWNSAMPLING) * DOWNSAMPLING


def flattened(h: Tensor) -> Tensor:
    """Feature maps (B, C, H, W) as (B, C·H·W); their gradient has their own memory format.

    That of `flatten` alone is contiguous, also where the maps are channels last, and costs 2 to 4 % of a step at 32×32
    (`benchmarks/means.py`).
    """
    if h.requires_grad and not h.is_contiguous():
        h.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))
    return h.flatten(1)


class Conv6(nn.Module):
    """Five 3×3 convolutions and a linear head, without biases or normalisation.

    Tang, Yang & Amit, "Biologically Plausible Training Mechanisms for Self-Supervised Learning in Deep Networks",
    Front. Comput. Neurosci. 2022, doi 10.3389/fncom.2022.789253. C→32 Hardtanh; 32→32 MaxPool; 32→64 Hardtanh; 64→64
    MaxPool; 64→512 MaxPool; flatten; Linear. 360,288 convolution weights for C = 3.

    Args:
        channels: C of the images.
        image_size: H = W of the images; padded with zeros to a multiple of eight.
        embedding_dim: width of the embedding.
        depth: how many of the five blocks there are.
    """

    def __init__(self, channels: int, image_size: int, embedding_dim: int, depth: int = len(BLOCKS)) -> None:
        super().__init__()
        self.channels, self.image_size = channels, image_size
        inputs = (channels, *(outputs for outputs, _ in BLOCKS))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, outputs, 3, padding=1, bias=False), nn.MaxPool2d(2) if pools else nn.Hardtanh()
            )
            for before, (outputs, pools) in zip(inputs[:depth], BLOCKS[:depth], strict=True)
        )
        self.feature_dim = self.width(depth - 1)
        self.head = nn.Linear(self.feature_dim, embedding_dim, bias=False)

    def width(self, block: int) -> int:
        """Elements of the output of block `block`, counted from 0."""
        side = padded(self.image_size) >> sum(pools for _, pools in BLOCKS[: block + 1])
        return BLOCKS[block][0] * side * side

    def pad(self, images: Tensor) -> Tensor:
        """h_0, what the first block reads: images (B, C, H, W) with zeros around them up to a multiple of eight."""
        missing = padded(self.image_size) - self.image_size
        return images if not missing else F.pad(images, (missing // 2, missing - missing // 2) * 2)

    def up_to(self, images: Tensor, blocks: int) -> Tensor:
        """h_blocks: images (B, C, H, W) in [0, 1] -> the output of the first `blocks` blocks, as feature maps."""
        h = self.pad(images)
        for block in self.blocks[:blocks]:
            h = block(h)
        return h

    def trunk(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> features (B, 512·⌈H/8⌉·⌈W/8⌉)."""
        return flattened(self.up_to(images, len(self.blocks)))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> embeddings (B, embedding_dim)."""
        z: Tensor = self.head(self.trunk(images))
        return z


class ResNet18(nn.Module):
    """torchvision's ResNet-18, untrained, with the stem for small images, and a linear head in place of its classifier.

    He et al. 2016, arXiv 1512.03385. Its first convolution is 3×3 with stride 1 and its first pooling is left out, as
    in SimCLR's experiments on CIFAR-10 (Chen et al. 2020, arXiv 2002.05709, Appendix B.9). It has batch normalisation,
    and no blocks for layer-wise training.

    Args:
        channels: C of the images.
        image_size: H = W of the images.
        embedding_dim: width of the embedding.
    """

    def __init__(self, channels: int, image_size: int, embedding_dim: int) -> None:
        super().__init__()
        from torchvision.models import resnet18  # 2 s, which Conv6 does not need

        self.channels, self.image_size, self.feature_dim = channels, image_size, 512
        self.body = resnet18(weights=None)
        self.body.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.body.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does
        self.body.maxpool = nn.Identity()
        self.body.fc = nn.Identity()
        self.head = nn.Linear(self.feature_dim, embedding_dim, bias=False)

    def trunk(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> features (B, 512), averaged over space."""
        h: Tensor = self.body(images)
        return h

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> embeddings (B, embedding_dim)."""
        z: Tensor = self.head(self.trunk(images))
        return z


Encoder = Conv6 | ResNet18


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
        return crop(image, self.image_size)


class SymmetricDecoder(nn.Module):
    """The decoder of layer-wise training: block k undoes block k of Conv6, from its output to its input.

    Where the encoder's block pools, nearest-neighbour doubling; then a 3×3 convolution back to its input channels. A
    block whose target is the output of a Hardtanh ends with one; the last, which makes the image, ends with its
    convolution.

    Args:
        encoder: what is undone.
    """

    def __init__(self, encoder: Conv6) -> None:
        super().__init__()
        self.image_size = encoder.image_size
        depth = len(encoder.blocks)
        inputs = (encoder.channels, *(outputs for outputs, _ in BLOCKS))
        self.blocks = nn.ModuleList()
        for k, (outputs, pools) in enumerate(BLOCKS[:depth]):
            block = nn.Sequential(nn.Upsample(scale_factor=2)) if pools else nn.Sequential()
            block.append(nn.Conv2d(outputs, inputs[k], 3, padding=1))
            if k > 0 and not BLOCKS[k - 1][1]:
                block.append(nn.Hardtanh())
            self.blocks.append(block)

    def forward(self, h: Tensor) -> Tensor:
        """Feature maps h_k of any block k, (B, C_k, H_k, W_k) -> images (B, C, H, W), through blocks k to 1."""
        for block in reversed(self.blocks[: self.depth_of(h)]):
            h = block(h)
        return crop(h, self.image_size)

    def depth_of(self, h: Tensor) -> int:
        """Which encoder block, counted from 1, feature maps (B, C_k, H_k, W_k) are the output of."""
        side = padded(self.image_size)
        for k, (outputs, pools) in enumerate(BLOCKS[: len(self.blocks)], start=1):
            side = side // 2 if pools else side
            if h.shape[1:] == (outputs, side, side):
                return k
        raise AssertionError(f"no block has outputs of shape {tuple(h.shape[1:])}")


def crop(images: Tensor, size: int) -> Tensor:
    """The central `size` × `size` pixels: what padding added is cut off."""
    before = (images.shape[-1] - size) // 2
    return images[..., before : before + size, before : before + size]


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
