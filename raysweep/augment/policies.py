"""The table of augmentation policies. To add a policy, add a function here.

A policy turns a batch of images (B, C, H, W), uint8 or float32 in [0, 1], C = 1 or 3, into views: float32 in [0, 1] on
the same device, channels last in memory. At strength 0 it returns the images bit for bit (`unchanged`) and draws
nothing from the generator. It draws its parameters on the CPU for every image of the whole batch, and then selects the
parameters of the images that this process holds (`BatchPart`). So a trial in several processes draws the same numbers
as a trial in one process.

The operations are imported inside the functions, because commands import this module just to print their help.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from raysweep.parts import Condition, policy

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raysweep.augment.operations import BatchPart

SMALLEST = 5e-324
"""The smallest strength above 0. It replaces the strength of a policy that is the same at every strength above 0."""


def is_blurred(settings: Any) -> bool:
    """Whether the `simclr` policy blurs."""
    return bool(settings.blur)


BLURRED = Condition("`blur: true`", is_blurred)
TWO_VIEWS = Condition("a `usl_type` with two views", lambda s: s.views > 1)


def simclr_acts_as(settings: Any) -> dict[str, float]:
    """The values of `simclr` that draw the same views; see `draw_simclr`, where 1 is the limit of most ranges."""
    strength, crop, color = settings.strength, settings.crop_strength, settings.color_strength
    crop = min(strength if crop is None else crop, 1.0)
    color = strength if color is None else color
    # If `crop_strength` and `color_strength` are known, `strength` changes only the probabilities of mirroring, blur,
    # solarization and colour changes.
    solarizes = settings.solarize_probability or settings.solarize_probability_second
    follows = settings.flip or settings.blur or solarizes or color > 0
    return {"strength": min(strength, 1.0) if follows else SMALLEST, "crop_strength": crop, "color_strength": color}


@policy(acts_as=simclr_acts_as)
def simclr(
    images: Tensor,
    strength: float,
    generator: torch.Generator,
    part: BatchPart | None = None,
    *,
    blur: Annotated[bool, "`simclr`: blur an image with probability min(s, 1) · `blur_probability`."] = False,
    blur_probability: Annotated[
        float, Field(ge=0, le=1), "`simclr`: probability of the blur at a strength s of 1 or more.", BLURRED
    ] = 0.5,
    blur_probability_second: Annotated[
        float | None,
        Field(ge=0, le=1),
        "`simclr`: probability of the blur for the second view of each image; none means `blur_probability`.",
        BLURRED & TWO_VIEWS,
    ] = None,
    solarize_probability: Annotated[
        float,
        Field(ge=0, le=1),
        "`simclr`: probability, at a strength s of 1 or more, of inverting the channel values of at least 0.5; it "
        "scales with min(s, 1).",
    ] = 0.0,
    solarize_probability_second: Annotated[
        float | None,
        Field(ge=0, le=1),
        "`simclr`: probability of solarization for the second view; none means `solarize_probability`.",
        TWO_VIEWS,
    ] = None,
    flip: Annotated[bool, "`simclr`: mirror an image left to right with probability min(s, 1)/2."] = True,
    crop_strength: Annotated[
        float | None,
        Field(ge=0, le=100),
        "`simclr`: strength of the random crop. 0 keeps the whole image. None means `strength`.",
    ] = None,
    color_strength: Annotated[
        float | None,
        Field(ge=0, le=100),
        "`simclr`: strength of the colour changes. 0 means no jitter and no gray images. None means `strength`.",
    ] = None,
) -> Tensor:
    """SimCLR's augmentation (Chen et al. 2020, arXiv 2002.05709, Appendix A), scaled.

    Strength 1 is the published policy; `draw_simclr` documents other strengths. The published policy for ImageNet has
    the blur. The one for CIFAR-10 (Appendix B.9) has no blur and half the colour distortion: `strength` 1 and
    `color_strength` 0.5. At `strength` 0 the whole policy is off, because all probabilities follow `strength`.

    BYOL (arXiv 2006.07733, Appendix B) and Barlow Twins blur the first view with probability 1 and the second with
    probability 0.1, and solarize the second with probability 0.2. Their saturation factor has half the range of this
    policy.
    """
    from raysweep.augment.operations import batch_size_of, by_view, select_rows, unchanged
    from raysweep.augment.simclr import apply_simclr, draw_simclr

    if strength == 0:
        return unchanged(images)
    height, width = images.shape[2:]
    parameters = draw_simclr(
        batch_size_of(images, part),
        height,
        width,
        strength,
        blur,
        generator,
        blur_probability=by_view(blur_probability, blur_probability_second, part),
        solarize_probability=by_view(solarize_probability, solarize_probability_second, part),
        flip=flip,
        crop_strength=crop_strength,
        color_strength=color_strength,
    )
    return apply_simclr(images, select_rows(parameters, part))


@policy(
    acts_as=lambda settings: {"strength": min(settings.strength, 5.0)}
)  # the limit of the hue, the last range to stop
def affine(images: Tensor, strength: float, generator: torch.Generator, part: BatchPart | None = None) -> Tensor:
    """The deformations of Tang, Yang & Amit 2022 (doi 10.3389/fncom.2022.789253), scaled.

    Half of the images are deformed by an affine map, and all change their colours. Strength 1 is the published policy;
    `draw_affine` documents other strengths.
    """
    from raysweep.augment.affine import apply_affine, draw_affine
    from raysweep.augment.operations import batch_size_of, select_rows, unchanged

    if strength == 0:
        return unchanged(images)
    return apply_affine(images, select_rows(draw_affine(batch_size_of(images, part), strength, generator), part))


@policy
def noise(images: Tensor, strength: float, generator: torch.Generator, part: BatchPart | None = None) -> Tensor:
    """Gaussian noise in every pixel and channel.

    Each image has its own standard deviation, drawn from U(0, 0.2 `strength`), where pixels are in [0, 1].
    """
    from raysweep.augment.noise import apply_noise, draw_noise
    from raysweep.augment.operations import batch_size_of, select_rows, unchanged

    if strength == 0:
        return unchanged(images)
    shape = (batch_size_of(images, part), *images.shape[1:])
    return apply_noise(images, select_rows(draw_noise(shape, strength, generator), part))


@policy(acts_as=lambda settings: {"strength": min(settings.strength, 1.5)})  # three quarters of the patches are hidden
def mask(images: Tensor, strength: float, generator: torch.Generator, part: BatchPart | None = None) -> Tensor:
    """Square patches at random places are set to gray, as in masked autoencoders (He et al. 2022, arXiv 2111.06377).

    A patch is an eighth of the side wide, and at least two pixels. The fraction min(0.5 `strength`, 0.75) of the
    patches is hidden.
    """
    from raysweep.augment.mask import apply_mask, draw_mask
    from raysweep.augment.operations import batch_size_of, select_rows, unchanged

    if strength == 0:
        return unchanged(images)
    height, width = images.shape[2:]
    return apply_mask(
        images, select_rows(draw_mask(batch_size_of(images, part), height, width, strength, generator), part)
    )
