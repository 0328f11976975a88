"""The models of the package timm as encoders, untrained and without their classifiers."""

from __future__ import annotations

import difflib
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.models import ResNet
from torch import Tensor, nn

from raysweep import parts
from raysweep.errors import InputError
from raysweep.models.building import has_batch_norm
from raysweep.parts import Part

if TYPE_CHECKING:
    from raysweep.config import Settings

LARGEST_FOR_SMALL_STEM = 64
"""The largest side, in pixels, of images for which a ResNet gets the stem for small images."""
STAGES = ("layer1", "layer2", "layer3", "layer4")


@cache
def part_of(name: str) -> Part:
    """Return the entry of the model `timm/NAME`. Its traits are read from the model, which is built without memory.

    Raises:
        InputError: timm has no model of that name.
    """
    if name not in timm.list_models():
        close = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(f'timm/{other}' for other in close)}?" if close else ""
        raise InputError(f"encoder: timm/{name}: timm has no model of that name{hint}")
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False, num_classes=0)
    has_stages = isinstance(model, ResNet)
    traits = {
        "batch_norm": has_batch_norm(model),
        "blocks": len(STAGES) if has_stages else 0,
        "layers": STAGES if has_stages else (),
        "check_images": partial(check_images, name),
    }
    builder = TimmResNet if has_stages else TimmEncoder
    text = f"timm's {name}, untrained."
    return Part("encoder", f"timm/{name}", partial(builder, name), text, {}, {}, {**parts.encoder.traits, **traits})


def check_images(name: str, settings: Settings, shape: tuple[int, int, int, int]) -> None:
    """Check the shape of the pretraining images; see the table of encoders in `raysweep.parts`."""
    check_size(name, shape[1], shape[2])


@cache
def check_size(name: str, channels: int, image_size: int) -> None:
    """Raise InputError if the model cannot turn images (2, C, H, W) into features (2, D). Nothing is computed."""
    try:
        with torch.device("meta"), torch.no_grad():
            features = TimmEncoder(name, channels, image_size).eval()(torch.zeros(2, channels, image_size, image_size))
    except (RuntimeError, AssertionError, TypeError, ValueError, ZeroDivisionError) as fault:
        reason = str(fault).partition("\n")[0] or type(fault).__name__
        raise InputError(
            f"encoder: timm/{name}: cannot take images of {channels}×{image_size}×{image_size} ({reason}); set another "
            f"image_size, or choose another model"
        ) from None
    if features.ndim != 2 or features.numel() == 0:
        shape = "×".join(map(str, features.shape[1:]))
        raise InputError(f"encoder: timm/{name}: gives {shape} features for an image; an encoder gives one vector")


class TimmEncoder(nn.Module):
    """A model of timm, untrained, without its classifier. Its weights have timm's names, under `body`.

    A model with a fixed image size, such as a ViT, is built for the size of the images. A ResNet for images of at most
    64 pixels gets the stem for small images: its first convolution is 3×3 with stride 1, and the first pooling is
    omitted, as in SimCLR's experiments on CIFAR-10 (Chen et al. 2020, arXiv 2002.05709, Appendix B.9). Other models
    keep their stems.

    Args:
        name: The name of the model in timm.
        channels: C of the images.
        image_size: H = W of the images.
    """

    def __init__(self, name: str, channels: int, image_size: int) -> None:
        super().__init__()
        options: dict[str, Any] = {"pretrained": False, "num_classes": 0, "in_chans": channels}
        if timm.get_pretrained_cfg_value(name, "fixed_input_size"):
            options["img_size"] = image_size
        self.body: Any = timm.create_model(name, **options)
        if isinstance(self.body, ResNet) and image_size <= LARGEST_FOR_SMALL_STEM:
            use_small_stem(self.body, channels)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> features (B, D)."""
        features: Tensor = self.body(images)
        return features


class TimmResNet(TimmEncoder):
    """A ResNet of timm, which can be trained stage by stage: the stem with `layer1`, then `layer2` and so on.

    The last block includes the pooling, so that its output is the features.
    """

    def __init__(self, name: str, channels: int, image_size: int) -> None:
        super().__init__(name, channels, image_size)
        self.shapes = [(channels, image_size, image_size)]
        """The shapes of the input and of the stages' outputs for one image."""
        was_training = self.training
        with torch.no_grad():
            h = torch.zeros(2, channels, image_size, image_size)
            self.eval()
            for stage in self.stages():
                h = stage(h)
                self.shapes.append((h.shape[1], h.shape[2], h.shape[3]))
        self.train(was_training)
        self.feature_dim = self.shapes[-1][0]

    def stages(self) -> list[nn.Sequential]:
        """Return the stem with `layer1`, `layer2`, `layer3` and `layer4`. They share their layers with `body`."""
        body = self.body
        stem = (body.conv1, body.bn1, body.act1, body.maxpool)
        return [nn.Sequential(*stem, body.layer1), *(nn.Sequential(body.get_submodule(name)) for name in STAGES[1:])]

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks that layerwise training trains one by one."""
        *first, last = self.stages()
        return nn.ModuleList([*first, last.append(self.body.global_pool)])

    def width(self, block: int) -> int:
        """Return the number of elements of the output of block `block`, counted from 0."""
        channels, height, width = self.shapes[block + 1]
        return channels if block == len(STAGES) - 1 else channels * height * width

    def inverse_block(self, block: int) -> nn.Sequential:
        """Return a module that turns the output of block `block`, counted from 0, back into the shape of its input.

        The module enlarges by nearest neighbours, and a 3×3 convolution restores the number of input channels.
        """
        outputs, (inputs, *size) = self.shapes[block + 1][0], self.shapes[block]
        inverse = nn.Sequential(nn.Unflatten(1, (outputs, 1, 1))) if block == len(STAGES) - 1 else nn.Sequential()
        return inverse.extend([nn.Upsample(size=tuple(size)), nn.Conv2d(outputs, inputs, 3, padding=1)])

    def up_to(self, images: Tensor, blocks: int) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> the output of the first `blocks` blocks."""
        h = images
        for block in self.blocks[:blocks]:
            h = block(h)
        return h

    def layer_outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B, C, H, W) in [0, 1] -> `layer1`, …, the feature maps of the stages, and `trunk`, the features."""
        outputs, h = {}, images
        for name, stage in zip(STAGES, self.stages(), strict=True):
            h = stage(h)
            outputs[name] = h
        outputs["trunk"] = self.body.global_pool(h)
        return outputs


def use_small_stem(body: Any, channels: int) -> None:
    """Let the first convolution of a ResNet be 3×3 with stride 1, and omit the first pooling.

    A deep stem begins with a 3×3 convolution already, which only gets stride 1.
    """
    if isinstance(body.conv1, nn.Sequential):
        first: Any = body.conv1[0]
        first.stride = (1, 1)
    else:
        body.conv1 = nn.Conv2d(channels, body.conv1.out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(body.conv1.weight, mode="fan_out", nonlinearity="relu")  # as timm does
    body.maxpool = nn.Identity()
