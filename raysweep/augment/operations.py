"""Operations on a batch of images that several policies share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

LUMINANCE = (0.2989, 0.587, 0.114)  # ITU-R 601, rounded as torchvision rounds it


@dataclass(frozen=True)
class BatchPart:
    """The images of a larger batch that this process holds. Parameters are drawn for the whole batch."""

    batch: int
    """Number of images of the whole batch."""
    index: Tensor
    """int64, on the CPU: the numbers of the images that this process holds."""


Parameters = TypeVar("Parameters", bound="DataclassInstance")


def batch_size_of(images: Tensor, part: BatchPart | None) -> int:
    """Number of images of the whole batch."""
    return len(images) if part is None else part.batch


def unchanged(images: Tensor) -> Tensor:
    """The images as views of strength 0: float32 in [0, 1], channels last in memory."""
    return to_float(images).contiguous(memory_format=torch.channels_last)


def select_rows(parameters: Parameters, part: BatchPart | None) -> Parameters:
    """Select the rows of the drawn parameters that belong to the images of `part`."""
    if part is None:
        return parameters
    return replace(parameters, **{each.name: getattr(parameters, each.name)[part.index] for each in fields(parameters)})


def to_device(device: torch.device, *tensors: Tensor) -> list[Tensor]:
    """Move CPU tensors to `device` in one transfer, for which nothing waits; on the CPU return them as they are.

    By way of page-locked memory: from any other, CUDA waits for the work before it and only then begins to copy.
    """
    if device.type == "cpu":
        return list(tensors)
    buffer, places = packed(tensors, page_locked=device.type == "cuda")
    return unpacked(buffer.to(device, non_blocking=True), tensors, places)


def packed(tensors: Sequence[Tensor], page_locked: bool) -> tuple[Tensor, list[int]]:
    """The bytes of CPU tensors, one after the other, as (bytes,) uint8, and where each begins, a multiple of 16."""
    places = [0]
    for tensor in tensors:
        places.append(-(-(places[-1] + tensor.nbytes) // 16) * 16)
    buffer = torch.empty(places.pop(), dtype=torch.uint8, pin_memory=page_locked)
    for tensor, view in zip(tensors, unpacked(buffer, tensors, places), strict=True):
        view.copy_(tensor)
    return buffer, places


def unpacked(buffer: Tensor, like: Sequence[Tensor], places: Sequence[int]) -> list[Tensor]:
    """The tensors in what `packed` gave, of the types and shapes of those in `like`; they share its memory."""
    return [
        buffer[place : place + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for tensor, place in zip(like, places, strict=True)
    ]


def to_float(images: Tensor) -> Tensor:
    """Images as float32 in [0, 1]: uint8 is divided by 255, float32 passes through as it is."""
    if images.dtype == torch.uint8:
        return images.to(torch.float32).div_(255)
    assert images.dtype == torch.float32
    return images


def crop_and_flip(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, flip: Tensor) -> Tensor:
    """Cut a window out of each image, resize it to the image's size and mirror it where `flip` says so.

    Bilinear without antialiasing, sampling clamped to the window: torchvision's `resized_crop(..., antialias=False)`,
    then `horizontal_flip`.

    Args:
        images: (B, C, H, W), uint8 or float32 in [0, 1].
        top: (B,) integers, as the next three: a window inside the image, in pixels.
        left: see `top`.
        height: see `top`.
        width: see `top`.
        flip: (B,) bool, or 0 and 1.

    Returns:
        (B, C, H, W) float32.
    """
    # First along the width, with columns as rows, then along the height: 4.6 µs, and 37 at 96×96. One `grid_sample`
    # takes 7.2 and 68, two batched products with interpolation matrices 7.2 and 177.
    rows = torch.arange(images.shape[2], device=images.device) + 0.5
    columns = torch.arange(images.shape[3], device=images.device) + 0.5
    columns = torch.where(flip.bool()[:, None], columns.flip(0), columns)
    x = _interpolate_rows(to_float(images.transpose(2, 3).contiguous()), columns, left, width)
    return _interpolate_rows(x.transpose(2, 3).contiguous(), rows, top, height)


def _interpolate_rows(images: Tensor, centers: Tensor, start: Tensor, length: Tensor) -> Tensor:
    """Interpolate R new rows between the `length` rows from `start` on, for each of the images (B, C, R, L).

    `centers`, (R,) or (B, R), says where the new rows lie, on a scale on which the old ones span [0, R]. Each is a
    weighted sum of two old rows, which is what an embedding bag is.
    """
    count, channels, rows, row_length = images.shape
    length = length[:, None]
    position = (centers * (length / rows) - 0.5).clamp_(min=0).minimum(length - 1)
    low = position.floor()
    position -= low
    low = low.int().add_(start[:, None])  # as int64 the indices cost 0.4 µs more
    # The row after a window's last one has weight 0; only beyond the image it must not be touched.
    index = torch.stack((low, (low + 1).clamp_(max=rows - 1)), dim=-1)
    weight = torch.stack((1 - position, position), dim=-1)
    first_rows = torch.arange(0, count * channels * rows, rows, dtype=torch.int32, device=images.device)
    return F.embedding_bag(
        (index[:, None] + first_rows.view(count, channels, 1, 1)).view(-1, 2),
        images.view(-1, row_length),
        per_sample_weights=weight[:, None].expand(-1, channels, -1, -1).reshape(-1, 2),
        mode="sum",
    ).view(count, channels, rows, row_length)


def hue_weights(turns: Tensor) -> tuple[Tensor, Tensor]:
    """For `turn_hue`: weights (B, 3, 3, 1, 1), new channel by old channel, and shares (B, 1, 1, 1), from turns (B,).

    A turn of the HSV hue keeps a pixel's smallest and largest channel value; in between, each channel is a trapezoid
    over the colour circle, linear in each sixth of it. Hence, without hue, division or a case for gray pixels,

        new_i = clamp(sum_j weight_ij old_j + share (smallest + largest), smallest, largest)

    where the weights, too, are a trapezoid: of the distance on the circle between where the turn brings channel j
    (red, green and blue start at 0, 1/3 and 2/3) and channel i. The share is what keeps gray pixels as they are.
    2.6 µs; by way of HSV and back it is 11.
    """
    place = torch.arange(3, device=turns.device) / 3
    distance = turns[:, None, None] + place - place[:, None]
    distance -= distance.round()
    weights = (3 - 12 * distance.abs_()).clamp_(-1, 1)
    return weights[..., None, None], per_image((1 - weights[:, 0].sum(dim=1)) / 2)


def turn_hue(images: Tensor, weights: Tensor, shares: Tensor, out: Tensor | None = None) -> Tensor:
    """Turn the hues of (B, 3, H, W) images by the weights and shares that `hue_weights` computed. Same shape."""
    smallest, largest = images.amin(dim=1, keepdim=True), images.amax(dim=1, keepdim=True)  # `aminmax`: 12 µs more
    red, green, blue = images.chunk(3, dim=1)
    from_red, from_green, from_blue = weights.unbind(2)
    x = torch.addcmul((smallest + largest).mul_(shares), red, from_red)
    x.addcmul_(green, from_green).addcmul_(blue, from_blue)
    return torch.clamp(x, smallest, largest, out=out)


def grayscale(images: Tensor) -> Tensor:
    """The luminance in every channel, (B, C, H, W) as the images; equals torchvision's `rgb_to_grayscale`."""
    return luminance(images).expand_as(images)


def blur_kernel_size(height: int, width: int) -> int:
    """Kernel size of the blur: odd, about 10 % of the shorter side as in SimCLR, at least 3."""
    return max(3, int(0.1 * min(height, width)) // 2 * 2 + 1)


def gaussian_blur(images: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """Blur the images with a Gaussian cut off at `kernel_size` pixels, reflecting at the border.

    (B, C, H, W) float32, `sigma` (B,) in pixels, `kernel_size` odd and less than twice H and W. Equals torchvision's
    `gaussian_blur`.
    """
    reach = kernel_size // 2
    offsets = torch.arange(-reach, reach + 1, device=images.device)
    kernel = (-0.5 * (offsets / sigma[:, None]) ** 2).softmax(dim=1)
    x: Tensor = F.pad(images, (reach, reach, reach, reach), mode="reflect")
    for dim in (2, 3):
        size = images.shape[dim]
        blurred = x.narrow(dim, 0, size) * per_image(kernel[:, 0])
        for i in range(1, kernel_size):
            blurred.addcmul_(x.narrow(dim, i, size), per_image(kernel[:, i]))
        x = blurred
    return x


def luminance(images: Tensor) -> Tensor:
    """The luminance of (B, C, H, W) images as (B, 1, H, W); for C = 1 the images themselves."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.chunk(3, dim=1)
    return (red * LUMINANCE[0]).add_(green, alpha=LUMINANCE[1]).add_(blue, alpha=LUMINANCE[2])


def per_image(values: Tensor) -> Tensor:
    """One value per image, (B,) as (B, 1, 1, 1), so that it multiplies a batch of images."""
    return values.view(-1, 1, 1, 1)
