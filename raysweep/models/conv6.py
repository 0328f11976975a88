"""Conv6, an encoder of five convolutions that can be trained block by block."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCKS = ((32, False), (32, True), (64, False), (64, True), (512, True))
"""For each block: its output channels, and whether it ends with a pooling (otherwise with a Hardtanh)."""
DOWNSAMPLING = 8  # three 2×2 poolings


def padded(size: int) -> int:
    """Return the side of the first feature maps for images of side `size`: the next multiple of eight."""
    return -(-size // DOWNSAMPLING) * DOWNSAMPLING


def flattened(h: Tensor) -> Tensor:
    """Flatten feature maps (B, C, H, W) to (B, C·H·W); the gradient gets the memory format of the maps.

    The gradient of `flatten` alone is contiguous even if the maps are channels last. That costs 2 to 4 % of a step at
    32×32 (`benchmarks/means.py`).
    """
    if h.requires_grad and not h.is_contiguous():
        h.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))
    return h.flatten(1)


class Conv6(nn.Module):
    """Five 3×3 convolutions, without biases or normalisation.

    Tang, Yang & Amit, "Biologically Plausible Training Mechanisms for Self-Supervised Learning in Deep Networks",
    Front. Comput. Neurosci. 2022, doi 10.3389/fncom.2022.789253. C→32 Hardtanh; 32→32 MaxPool; 32→64 Hardtanh; 64→64
    MaxPool; 64→512 MaxPool; flatten. 360,288 weights for C = 3. The paper adds a linear head.

    Args:
        channels: C of the images.
        image_size: H = W of the images; they are padded with zeros to a multiple of eight.
        init: `pytorch` keeps PyTorch's initial weights, uniform with variance 1/(3·fan-in). `kaiming` draws normal
            weights with variance 2/fan-in (He et al. 2015, arXiv 1502.01852, equation 10), so that the signal does not
            shrink from block to block.
        depth: The number of blocks, at most five.
    """

    def __init__(self, channels: int, image_size: int, init: str = "pytorch", depth: int = len(BLOCKS)) -> None:
        super().__init__()
        self.channels, self.image_size, self.init = channels, image_size, init
        self.inputs = (channels, *(outputs for outputs, _ in BLOCKS))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, outputs, 3, padding=1, bias=False), nn.MaxPool2d(2) if pools else nn.Hardtanh()
            )
            for before, (outputs, pools) in zip(self.inputs[:depth], BLOCKS[:depth], strict=True)
        )
        self.feature_dim = self.width(depth - 1)

    def draw_weights(self) -> None:
        """Draw the weights for `init`, unless it is `pytorch`."""
        if self.init == "kaiming":
            for weight in self.blocks.parameters():
                nn.init.kaiming_normal_(weight, nonlinearity="relu")

    def width(self, block: int) -> int:
        """Return the number of elements of the output of block `block`, counted from 0."""
        side = padded(self.image_size) >> sum(pools for _, pools in BLOCKS[: block + 1])
        return BLOCKS[block][0] * side * side

    def inverse_block(self, block: int) -> nn.Sequential:
        """Return a module that turns the output of block `block`, counted from 0, back into its input.

        If the block pools, the module doubles the size by nearest neighbours. A 3×3 convolution then restores the
        number of input channels. A Hardtanh follows if the block's input is the output of a Hardtanh.
        """
        outputs, pools = BLOCKS[block]
        inverse = nn.Sequential(nn.Upsample(scale_factor=2)) if pools else nn.Sequential()
        inverse.append(nn.Conv2d(outputs, self.inputs[block], 3, padding=1))
        if block > 0 and not BLOCKS[block - 1][1]:
            inverse.append(nn.Hardtanh())
        return inverse

    def pad(self, images: Tensor) -> Tensor:
        """Return the input of the first block: images (B, C, H, W), padded with zeros to a multiple of eight."""
        missing = padded(self.image_size) - self.image_size
        return images if not missing else F.pad(images, (missing // 2, missing - missing // 2) * 2)

    def up_to(self, images: Tensor, blocks: int) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> the output of the first `blocks` blocks, as feature maps."""
        h = self.pad(images)
        for block in self.blocks[:blocks]:
            h = block(h)
        return h

    def layer_outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B, C, H, W) in [0, 1] -> `layer1`, `layer2`, …, the block outputs, and `trunk`, the last one flat."""
        outputs, h = {}, self.pad(images)
        for number, block in enumerate(self.blocks, start=1):
            h = block(h)
            outputs[f"layer{number}"] = h
        outputs["trunk"] = h.flatten(1)
        return outputs

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> features (B, 512·⌈H/8⌉·⌈W/8⌉)."""
        return flattened(self.up_to(images, len(self.blocks)))
