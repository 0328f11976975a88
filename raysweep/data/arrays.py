"""Conversion of the user's images and labels to the arrays of a `Dataset`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysweep.errors import InputError

ROUNDING = 1e-6
"""Tolerance for float images at the ends of [0, 1]."""


CONVERT = 'for example by image.convert("RGB") in a transform of the dataset'


def images_of(array: Any, where: str) -> NDArray[np.uint8]:
    """Convert an array of images to uint8 (N, C, H, W).

    Args:
        array: (N, H, W), (N, C, H, W) or (N, H, W, C) with C = 1 or 3; uint8, or real numbers in [0, 1].
        where: The start of every message.

    Raises:
        InputError: The array has another shape, type or range.
    """
    images = np.asarray(array)
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise InputError(
            f"{where}: images have the shape {np.shape(array)}; expected (N, C, H, W) with 1 or 3 channels"
        )
    if not len(images):
        raise InputError(f"{where}: has no images")
    return np.ascontiguousarray(as_bytes(images, where))


def as_bytes(pixels: NDArray[Any], where: str) -> NDArray[np.uint8]:
    """Convert pixels to uint8; raises InputError unless they are uint8, or real numbers in [0, 1]."""
    if pixels.dtype == np.uint8:
        return pixels
    if not np.issubdtype(pixels.dtype, np.floating):
        raise InputError(f"{where}: pixels are {pixels.dtype}; expected uint8, or real numbers in [0, 1]")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise InputError(
            f"{where}: pixels are in [{low:g}, {high:g}]; expected [0, 1], without normalisation by mean and deviation"
        )
    converted: NDArray[np.uint8] = np.rint(pixels * 255).clip(0, 255).astype(np.uint8)
    return converted


def labels_of(values: Any, count: int, where: str) -> NDArray[np.int64]:
    """Convert labels to int64 (N,); raises InputError unless they are one whole number ≥ 0 for each image."""
    labels = np.asarray(values)
    if labels.shape != (count,):
        raise InputError(f"{where}: labels have the shape {labels.shape}; expected ({count},), one for each image")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise InputError(f"{where}: labels must be whole numbers from 0, the numbers of the classes")
    return labels.astype(np.int64)


def read_pairs(pairs: Iterable[tuple[Any, Any]], where: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Convert pairs of an image and a label, each read once, to arrays.

    Args:
        pairs: Images as PIL images, or as uint8 or float tensors and arrays (C, H, W), (H, W, C) or (H, W).
        where: The start of every message.

    Raises:
        InputError: An image differs in size or channels from the first one, or is none of these; or a label is no
            whole number.
    """
    images: list[NDArray[np.uint8]] = []
    labels: list[Any] = []
    for number, pair in enumerate(pairs):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise InputError(f"{where}: item {number} is {type(pair).__name__}; expected an image and its label")
        if hasattr(pair[0], "getbands") and len(pair[0].getbands()) not in (1, 3):
            raise InputError(f"{where}: image {number} has the mode {pair[0].mode}; convert it, {CONVERT}")
        image = images_of(pixels_of(pair[0])[None], f"{where}: image {number}")[0]
        if images and len(image) != len(images[0]):
            raise InputError(
                f"{where}: image {number} has {channels_of(image)}, but image 0 has {channels_of(images[0])}; convert "
                f"all images alike, {CONVERT}"
            )
        if images and image.shape != images[0].shape:
            raise InputError(
                f"{where}: image {number} is {sizes(image.shape)}, but image 0 is {sizes(images[0].shape)}; give all "
                "images one size, for example by a transform of the dataset"
            )
        images.append(image)
        labels.append(pair[1].item() if hasattr(pair[1], "item") else pair[1])
    if not images:
        raise InputError(f"{where}: has no images")
    return np.stack(images), labels_of(labels, len(images), where)


def pixels_of(image: Any) -> NDArray[Any]:
    """Return the pixels of a PIL image, a tensor or an array. A palette becomes RGB, and black and white gray."""
    mode = getattr(image, "mode", None)
    if mode in ("P", "1"):
        image = image.convert("RGB" if mode == "P" else "L")
    if hasattr(image, "detach"):
        image = image.detach().cpu().numpy()
    return np.asarray(image)


def channels_of(image: NDArray[Any]) -> str:
    """Return the number of channels of an image (C, H, W) for messages."""
    return f"{len(image)} channel{'s' if len(image) > 1 else ''} ({'gray' if len(image) == 1 else 'RGB'})"


def sizes(shape: Sequence[int]) -> str:
    """Return a shape for messages, such as 3×32×32."""
    return "×".join(map(str, shape))
