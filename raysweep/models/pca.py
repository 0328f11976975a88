"""The encoder whose features are the principal components of the pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raysweep.augment.operations import to_float
from raysweep.models.pixels import EveryLayer
from raysweep.randomness import fixed_subset

MOST_VALUES = 2**28
"""Components are fitted on at most this many pixel values: 1 GiB in float32. These are 87,381 images of 32×32×3, so all
of CIFAR-10 and SVHN, and 9,709 images of 96×96×3."""
IMAGES_PER_COMPONENT = 10
"""They are fitted on at least this many images for each component, whatever the size of the images."""
CHUNK = 1024
"""Images that are turned into float32 at a time."""


class Pca(nn.Module):
    """The projection of the centred pixels on their first principal components, without whitening.

    If the images have more than `MOST_VALUES` pixel values, a random choice of images is used, the same for every seed.
    Then a fit needs 1.1 GiB (measured with 20,000 images of 96×96×3 and 64 components). All images of STL-10 in float32
    would need 11 GiB.

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

        chosen = choose_images(len(images), images[0].numel(), self.feature_dim)
        pixels = torch.empty(len(chosen), images[0].numel())
        for rows, indices in zip(pixels.split(CHUNK), chosen.split(CHUNK), strict=True):
            rows.copy_(to_float(images[indices.to(images.device)]).flatten(1))
        # Many images need a randomised solver. Its seed is the same in every trial, as the data are.
        # `copy=False` centres the pixels in place.
        fitted = PCA(self.feature_dim, random_state=0, copy=False).fit(pixels.numpy())
        self.mean.copy_(torch.from_numpy(fitted.mean_).view_as(self.mean))
        self.components.copy_(torch.from_numpy(fitted.components_))

    def layer_outputs(self, images: Tensor) -> EveryLayer:
        """Images (B, C, H, W) in [0, 1] -> the same features for every layer."""
        return EveryLayer(self(images))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> features (B, components)."""
        return (images - self.mean).flatten(1) @ self.components.T


def choose_images(count: int, values: int, components: int) -> Tensor:
    """Choose the images on which `components` are fitted.

    Args:
        count: The number of images.
        values: The number of pixel values of an image.
        components: The number of components.

    Returns:
        Indices in ascending order, int64; all of them unless the images have more than `MOST_VALUES` pixel values.
    """
    most = max(MOST_VALUES // values, IMAGES_PER_COMPONENT * components)
    return fixed_subset(count, most)
