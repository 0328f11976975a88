"""Decoding of image files, and conversion of images to a trial's size and channels."""

from __future__ import annotations

import logging
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from http.client import HTTPException
from pathlib import Path
from tarfile import TarError
from typing import TextIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from raysweep.data import layout
from raysweep.data.dataset import Images, Indices, in_threads
from raysweep.errors import InputError
from raysweep.system.files import Irregular, open_regular

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""For each EXIF orientation, the operation that makes the image upright."""
SIXTEEN_BITS = ("PNG", "PPM")
"""Formats in which gray has at most 16 bits, although Pillow may return it as 32 bits."""
# Some of Pillow's decoders log a fault and then raise it. Without a handler, Python would print the log message, which
# does not name the file.
logging.getLogger("PIL").addHandler(logging.NullHandler())
# Exceptions raised when files are missing, damaged or cannot be downloaded.
FILE_FAULTS = (OSError, RuntimeError, ValueError, AssertionError, IndexError, EOFError, HTTPException, TarError)


def convert(images: Images, size: int, channels: int) -> Images:
    """Convert images (N, C, H, W) to contiguous (N, channels, size, size)."""
    count, given, height, width = images.shape
    if (height, width) == (size, size) and given <= channels:
        return np.ascontiguousarray(images if given == channels else images.repeat(channels, axis=1))
    converted = np.empty((count, channels, size, size), dtype=np.uint8)

    def one(i: int) -> None:
        pixels = images[i, 0] if given == 1 else images[i].transpose(1, 2, 0)
        converted[i] = square(Image.fromarray(pixels), size, channels)

    in_threads(one, count)
    return converted


def square(image: Image.Image, size: int, channels: int) -> Images:
    """Crop an L or RGB image to its central square and scale it: (channels, size, size), or (1, size, size) if gray."""
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    if channels == 1:
        image = image.convert("L")
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def decode(paths: Sequence[Path], size: int, channels: int, skip_bad_images: bool) -> tuple[Images, NDArray[np.bool_]]:
    """Read image files: (N, channels, size, size), and a mask of the paths that these N images come from.

    Raises:
        InputError: An image cannot be read. With `skip_bad_images`, a warning counts the skipped images instead.
    """
    images = np.empty((len(paths), channels, size, size), dtype=np.uint8)
    bad: dict[int, str] = {}

    def one(i: int) -> None:
        try:
            with open_regular(paths[i]) as file, Image.open(file, formats=layout.formats()) as image:
                check_range(image)
                images[i] = square(to_rgb(upright(image)), size, channels)
        except MemoryError:
            raise
        except Exception as fault:  # which exceptions Pillow's decoders raise for damaged files is not documented
            bad[i] = why_unreadable(paths[i], fault)
            if not skip_bad_images:
                raise InputError(
                    f"cannot read the image {str(paths[i])!r} ({bad[i]}): repair or remove it; "
                    "`skip_bad_images` leaves such files out"
                ) from fault

    layout.formats()  # imports Pillow's plugins before the threads start
    with warnings_with_names(paths) as working_on:

        def named(i: int) -> None:
            working_on.index = i
            one(i)

        in_threads(named, len(paths))
    good = np.ones(len(paths), dtype=bool)
    if bad:
        first = min(bad)
        good[list(bad)] = False
        images = move_to_front(images, np.flatnonzero(good))
        warnings.warn(
            f"{len(bad)} of {len(paths)} images left out because they cannot be read, the first "
            f"{str(paths[first])!r} ({bad[first]})",
            stacklevel=2,
        )
    return images, good


def move_to_front(images: Images, chosen: Indices) -> Images:
    """Return chosen images as the front of the same array, because a second array could exceed the memory.

    Args:
        images: (N, C, H, W). The chosen images replace other ones in it.
        chosen: (n,), positions in ascending order.
    """
    for place, position in enumerate(chosen):
        images[place] = images[position]
    return images[: len(chosen)]


@contextmanager
def warnings_with_names(paths: Sequence[Path]) -> Iterator[threading.local]:
    """Name the image in warnings about reading images, and merge warnings of the same kind.

    The merged warnings are issued when the block ends, also after an exception.

    Yields:
        An object whose attribute `index` every thread must set to the index of the image that it reads.
    """
    working_on = threading.local()
    texts: dict[str, str] = {}
    images: dict[str, set[int]] = {}
    show_other = warnings.showwarning

    def note(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        index = getattr(working_on, "index", None)
        if index is None:  # the warning comes from a thread that reads no images
            show_other(message, category, filename, lineno, file, line)
            return
        kind = re.sub(r"\d+", "0", str(message))
        images.setdefault(kind, set()).add(index)
        if index == min(images[kind]):
            texts[kind] = " ".join(str(message).split())

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for category in (UserWarning, RuntimeWarning):
                warnings.simplefilter("always", category)
            warnings.showwarning = note
            yield working_on
    finally:
        for kind, indices in images.items():
            first = repr(str(paths[min(indices)]))
            several = f"{len(indices)} of {len(paths)} images, the first {first}"
            which = f"image {first}" if len(indices) == 1 else several
            warn_once(f"{which}: {texts[kind]}")


def why_unreadable(path: Path, fault: Exception) -> str:
    """Describe in a few words what is wrong with an image file that raised `fault`."""
    if isinstance(fault, Irregular):
        return f"it {fault}"
    if isinstance(fault, OSError) and fault.strerror:
        return fault.strerror
    with suppress(OSError):
        if path.is_file() and path.stat().st_size == 0:
            return "the file is empty"
    if isinstance(fault, Image.DecompressionBombError):
        return f"{one_line(fault)} Make it smaller"
    return "it is not an image" if isinstance(fault, UnidentifiedImageError) else one_line(fault)


def upright(image: Image.Image) -> Image.Image:
    """Rotate or mirror an image as viewers do, according to the orientation in its EXIF data.

    Pillow does this by itself only for TIFF. Unreadable EXIF data causes a warning and leaves the image as it is.
    """
    image.load()  # some formats store their EXIF data after the pixels
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception as fault:  # which exceptions damaged EXIF data raises is not documented
        warnings.warn(f"its EXIF data cannot be read, so it is not rotated ({one_line(fault)})", stacklevel=2)
        return image
    method = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def check_range(image: Image.Image) -> None:
    """Raise ValueError if the format of an open file does not define which pixel value is white."""
    is_wide = image.mode == "I" and image.format not in SIXTEEN_BITS and 16 not in bits_of(image)
    if image.mode == "F" or is_wide:
        kind = "32-bit" if is_wide else "floating-point"
        raise ValueError(f"{kind} pixels have no fixed range: save it with 8 or 16 bits")


def bits_of(image: Image.Image) -> tuple[int, ...]:
    """Return the bits of each channel of a TIFF; () for other formats."""
    bits: tuple[int, ...] = getattr(image, "tag_v2", {}).get(ExifTags.Base.BitsPerSample, ())
    return bits


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB like torchvision's loader, but scale 16-bit gray instead of clipping it.

    Transparency is dropped: a transparent pixel keeps the colour that the file stores for it.
    """
    if image.mode.startswith("I"):  # 12 or 16 bits; some versions and formats return them as 32 bits
        wide = np.asarray(image)
        if wide.min() < 0:
            raise ValueError("negative pixels have no fixed range: save it with 8 or 16 bits without a sign")
        white = 4095 if 12 in bits_of(image) else 65535
        image = Image.fromarray(((wide.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # same pixels; Pillow warns about a direct conversion to RGB
    return image.convert("RGB")


def one_line(fault: BaseException) -> str:
    """Return an exception's message as one line."""
    return " ".join(str(fault).split()) or type(fault).__name__


@cache
def warn_once(text: str) -> None:
    """Issue this warning once per process, because a dataset may be read in several sizes."""
    warnings.warn(text, stacklevel=3)
