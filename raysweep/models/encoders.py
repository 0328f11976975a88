"""The table of encoders. To add an encoder, add a function here that builds its network.

An encoder is an `nn.Module` that turns images (B, C, H, W) in [0, 1] into features (B, D). Its attributes `head`,
`channels` and `image_size` are set when it is built, so it must not use these names for anything else. These attributes
and methods are optional:

- `feature_dim`: D. Without it, D is found with one batch of images.
- `layer_outputs(images)`: a mapping from the names in the trait `layers`, and `trunk`, to outputs of layers, (B, …).
  `trunk` is the features. An encoder with blocks has `layer1` and so on for all of them but the last.
- `blocks`: an `nn.ModuleList` of the blocks that layerwise training trains one by one. It requires the trait `blocks`
  and three methods. `up_to(images, k)` returns the output of the first k blocks; with k = 0 it returns the input of the
  first block. `width(k)` returns the number of elements of block k's output. `inverse_block(k)` returns a module that
  turns block k's output back into its input.
- `draw_weights()`: called once after the head is attached, while PyTorch's generator has a seed of the trial. The
  generator then has the same state for every head.
- `fit(images)`: called once in a new trial, before the method is built, with the pretraining images (N, C, H, W) uint8,
  on the encoder's device. What it computes must be in buffers or parameters of a fixed shape, so that it is saved with
  them.

Networks are imported inside the functions, because commands import this module just to print their help.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Literal

from raysweep.errors import InputError
from raysweep.parts import Part, encoder

if TYPE_CHECKING:
    from torch import nn

    from raysweep.config import Settings


@encoder(blocks=5, layers=("layer1", "layer2", "layer3", "layer4", "layer5"))
def conv6(
    channels: int,
    image_size: int,
    *,
    init: Annotated[
        Literal["pytorch", "kaiming"],
        "Initial weights of Conv6's blocks: PyTorch's own, uniform with variance 1/(3·fan-in), or Kaiming (He et al. "
        "2015), normal with variance 2/fan-in, with which SimCLR's loss falls sooner. "
        "The random encoder has the same initial weights.",
    ] = "pytorch",
) -> nn.Module:
    """Conv6, five 3×3 convolutions without biases or normalisation (Tang, Yang & Amit 2022).

    It maps images (B, `channels`, `image_size`, `image_size`) to features; see `raysweep.models.conv6`.
    """
    from raysweep.models.conv6 import Conv6

    return Conv6(channels, image_size, init)


@encoder(batch_norm=True)
def resnet18(channels: int, image_size: int) -> nn.Module:
    """Torchvision's ResNet-18, untrained, with a stem for small images (He et al. 2016, arXiv 1512.03385).

    It maps images (B, `channels`, `image_size`, `image_size`) to features (B, 512).
    """
    from raysweep.models.resnet18 import ResNet18

    return ResNet18(channels, image_size)


@encoder.family("timm")
def timm(name: str) -> Part:
    """Return the encoder `timm/NAME`: a model of the package timm, untrained.

    Raises:
        InputError: timm is not installed, or has no model of that name.
    """
    if find_spec("timm") is None:
        raise InputError(f"encoder: timm/{name}: needs the package timm; install it with pip install 'raysweep[timm]'")
    from raysweep.models.timm_models import part_of

    return part_of(name)


@encoder(trains=False)
def pixels(channels: int, image_size: int) -> nn.Module:
    """The pixels themselves, as features (B, `channels` · `image_size`²)."""
    from raysweep.models.pixels import Pixels

    return Pixels(channels, image_size)


def check_components(settings: Settings, shape: tuple[int, int, int, int]) -> None:
    """Raise InputError if `pca` has more components than pretraining images, or than pixels of an image.

    Args:
        settings: The experiment.
        shape: The shape (N, C, H, W) of the pretraining images.
    """
    for count, what in ((shape[0], "training images"), (math.prod(shape[1:]), "pixels of an image")):
        if settings.embedding_dim > count:
            raise InputError(f"pca: embedding_dim {settings.embedding_dim} is more than the {count:,} {what}")


@encoder(trains=False, takes_dim=True, fits=True, check_images=check_components)
def pca(channels: int, image_size: int, components: int) -> nn.Module:
    """The first principal components of the pixels, fitted on the pretraining images: (B, `components`)."""
    from raysweep.models.pca import Pca

    return Pca(channels, image_size, components)
