"""The encoder whose features are the principal components of the pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raysweep.augment.operations import to_float
from raysweep.models.pixels import EveryLayer


class Pca(nn.Module):
    """The projection of the centred pixels on their first principal components, without whitening.

    Args:
        channels: C of the images.
        image_size: H = W of the images.
        components: The number of components, at most the number of images that it is fitted on and of pixels.
    """

    mean: Tensor
    components: Tensor

    def __init__(self, channels: int, image_size: int, components: int) -> None:
        super().__init__()
        self.channels, self.image_size, self.feature_dim = channels, image_size, components
        # The mean has the shape of an image, so that a checkpoint says how many channels the images have.
        self.register_buffer("mean", torch.zeros(1, channels, image_size, image_size))
        self.register_buffer("components", torch.zeros(components, channels * image_size**2))

    def fit(self, images: Tensor) -> None:
        """Compute mean and components of images (N, C, H, W) uint8; see `raysweep.models.encoders`."""
        from sklearn.decomposition import PCA

        # Many images need a randomised solver. Its seed is the same in every trial, as the data are.
        fitted = PCA(self.feature_dim, random_state=0).fit(to_float(images).flatten(1).cpu().numpy())
        self.mean.copy_(torch.from_numpy(fitted.mean_).view_as(self.mean))
        self.components.copy_(torch.from_numpy(fitted.components_))

    def layer_outputs(self, images: Tensor) -> EveryLayer:
        """Images (B, C, H, W) in [0, 1] -> the same features for every layer."""
        return EveryLayer(self(images))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> features (B, components)."""
        return (images - self.mean).flatten(1) @ self.components.T
