"""The encoder whose features are the pixels."""

from __future__ import annotations

from torch import Tensor, nn


class EveryLayer(dict[str, Tensor]):
    """The outputs of an encoder in which every layer, whatever its name, has the same features.

    Args:
        features: (B, D).
    """

    def __init__(self, features: Tensor) -> None:
        super().__init__(trunk=features)

    def __missing__(self, layer: str) -> Tensor:
        return self["trunk"]


class Pixels(nn.Module):
    """The pixels as features, without anything to train.

    Args:
        channels: C of the images.
        image_size: H = W of the images.
    """

    def __init__(self, channels: int, image_size: int) -> None:
        super().__init__()
        self.channels, self.image_size = channels, image_size
        self.feature_dim = channels * image_size**2

    def layer_outputs(self, images: Tensor) -> EveryLayer:
        """Images (B, C, H, W) in [0, 1] -> the same features for every layer."""
        return EveryLayer(self(images))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> features (B, C·H·W)."""
        return images.flatten(1)
