"""Datasets as plain NumPy arrays: scikit-learn's digits, torchvision's datasets, or a folder of images.

To add a dataset, write a function that reads it and give it a line in `SOURCES`.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import logging
import os
import re
import shutil
import socket
import stat
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, replace
from functools import cache
from http.client import HTTPException
from pathlib import Path
from tarfile import TarError
from typing import IO, Any, TextIO, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from raysweep import folders
from raysweep.config import FOLDER
from raysweep.cpus import allowed_cpus
from raysweep.errors import InputError

Images = NDArray[np.uint8]  # (N, C, H, W), C = 1 or 3
Labels = NDArray[np.int64]  # (N,)
Indices = NDArray[np.int64]

FOLDER_SIZE = 32
PATCH_SIDE = 64  # pixels of a photograph behind a digit of digits_m: enough for edges and texture to show at 16×16
MEMORY_SHARE = 0.5  # of the physical memory that one dataset may take: the encoder and the features want some too
NETWORK_TIMEOUT = 20.0  # seconds without an answer

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By the orientation in an image's EXIF data: what makes it upright."""

# Some of Pillow's decoders log what they then raise; without a handler Python would print it, without the file's name.
logging.getLogger("PIL").addHandler(logging.NullHandler())

# What reading or downloading files that are missing, damaged or out of reach raises.
FILE_FAULTS = (OSError, RuntimeError, ValueError, AssertionError, IndexError, EOFError, HTTPException, TarError)

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Dataset:
    """One dataset in memory: plain NumPy, so that processes can share it read-only.

    Images are uint8 (N, C, H, W) with H = W and the same C and H in every split; labels are int64 (N,), indices into
    `classes`.
    """

    name: str
    classes: tuple[str, ...]
    """Names of the classes; () without labels."""
    train_images: Images
    train_labels: Labels | None
    test_images: Images | None
    test_labels: Labels | None
    unlabelled: Images | None = None
    """Images for pretraining, where these are more than the train split (STL-10)."""
    digest: str = ""
    """16 hexadecimal digits over shapes, pixels and labels of all splits: what a score depends on."""
    val_images: Images | None = None
    """The validation split, where the dataset has one of its own; else it is divided off the train split."""
    val_labels: Labels | None = None

    @property
    def pretrain_images(self) -> Images:
        """All images that pretraining may see."""
        return self.train_images if self.unlabelled is None else self.unlabelled

    @property
    def labelled(self) -> bool:
        """Whether there are labels to evaluate with."""
        return self.train_labels is not None


def check_name(spec: str) -> None:
    """Check the name of a dataset, without looking at its files.

    Raises:
        InputError: no dataset is called so, or `folder:` has no path.
    """
    if spec in SOURCES or (spec.startswith(FOLDER) and len(spec) > len(FOLDER)):
        return
    if spec == FOLDER:
        raise InputError("dataset 'folder:' has no path: write folder:PATH")
    valid = [*SOURCES, FOLDER + "PATH"]
    close = difflib.get_close_matches(spec.lower(), valid, n=1, cutoff=0.6)
    hint = f", did you mean {close[0]!r}?" if close else ";"
    raise InputError(f"unknown dataset {spec!r}{hint} valid: {', '.join(valid)}")


def check_exists(spec: str, labelled: bool = False) -> None:
    """Check that the folder of a `folder:PATH` can be a dataset, without reading its images.

    Args:
        spec: the name of a dataset.
        labelled: whether the dataset must have labels.

    Raises:
        InputError: PATH is missing, is not a folder, or holds neither `train/` nor an image; its splits are not as
            `folders.layout` wants them; with `labelled`, there are no class folders in `train/`.
    """
    check_name(spec)
    if not spec.startswith(FOLDER):
        return
    root = folder_path(spec)
    if not root.exists():
        raise InputError(f"dataset {spec!r}: there is no folder {str(root.absolute())!r}")
    if not root.is_dir():
        raise InputError(f"dataset {spec!r}: {str(root.absolute())!r} is not a folder")
    train = folders.layout(root.absolute(), f"dataset {spec!r}").train
    if train is None:
        ignored: list[Path] = []
        if next(folders.images_below(root, ignored), None) is None:
            raise InputError(
                f"dataset {spec!r}: neither train/<class>/ nor an image in {str(root.absolute())!r}{ignoring(ignored)}"
            )
    if labelled and (train is None or not folders.class_folders(train)):
        raise InputError(no_classes(spec))


def no_classes(spec: str) -> str:
    """Say that a dataset has no labels to evaluate with, and what to do."""
    if not spec.startswith(FOLDER):
        return f"{spec} has no classes to evaluate on; name a labelled probe_dataset"
    root = folder_path(spec).absolute()
    meant = root.parent if root.name == "train" else None  # PATH may lead one folder too deep, or not deep enough
    meant = next((path for path in sorted(root.iterdir()) if (path / "train").is_dir()), meant)
    hint = f" (or did you mean {FOLDER}{meant}?)" if meant is not None else ""
    return (
        f"dataset {spec!r} has no classes to evaluate on: put the class folders under train/, as "
        f"train/<class>/*{hint}, or name a labelled probe_dataset"
    )


def native_size(spec: str) -> int:
    """Side in pixels of the images when no `image_size` is asked for."""
    return FOLDER_SIZE if spec.startswith(FOLDER) else SOURCES[spec].size


def load(
    spec: str,
    *,
    data_dir: Path,
    image_size: int | None = None,
    channels: int | None = None,
    skip_bad_images: bool = False,
    pretraining: bool = True,
) -> Dataset:
    """Read a dataset into memory, downloading it first where necessary.

    Args:
        spec: a name in `SOURCES`, or `folder:PATH` (see `read_folder`).
        data_dir: where torchvision's datasets lie, or are downloaded to.
        image_size: side in pixels that every image is scaled to (bilinear); none means `native_size(spec)`.
        channels: 1 or 3; none means the dataset's own, which is 3 for folders. Gray becomes RGB by repetition, RGB
            becomes gray by luminance (ITU-R 601).
        skip_bad_images: leave out the images of a folder that cannot be read, with a warning, instead of raising.
        pretraining: also read images that only pretraining uses (STL-10's unlabelled ones).

    Raises:
        InputError: the name is unknown; the files are missing, damaged, or do not fit in memory.
    """
    check_name(spec)
    assert channels in (None, 1, 3)
    size = native_size(spec) if image_size is None else image_size
    if spec.startswith(FOLDER):
        dataset = read_folder(spec, size, channels or 3, skip_bad_images)
    else:
        source = SOURCES[spec]
        count = source.images + (source.unlabelled if pretraining else 0)
        check_memory(spec, count, channels or source.channels, max(size, source.size))
        dataset = source.read(spec, data_dir.expanduser(), size, pretraining)
    channels = channels or dataset.train_images.shape[1]
    dataset = replace(
        dataset,
        train_images=convert(dataset.train_images, size, channels),
        test_images=None if dataset.test_images is None else convert(dataset.test_images, size, channels),
        unlabelled=None if dataset.unlabelled is None else convert(dataset.unlabelled, size, channels),
        val_images=None if dataset.val_images is None else convert(dataset.val_images, size, channels),
    )
    for images, labels in (
        (dataset.train_images, dataset.train_labels),
        (dataset.test_images, dataset.test_labels),
        (dataset.unlabelled, None),
        (dataset.val_images, dataset.val_labels),
    ):
        if images is not None:
            assert images.dtype == np.uint8
            assert len(images) > 0
            assert images.shape[1:] == (channels, size, size)
        if labels is not None:
            assert images is not None
            assert labels.dtype == np.int64
            assert labels.shape == images.shape[:1]
            assert labels.min() >= 0
            assert labels.max() < len(dataset.classes)
    return replace(dataset, digest=digest_of(dataset))


def digest_of(dataset: Dataset) -> str:
    """16 hexadecimal digits that identify the train, test and val splits.

    `unlabelled` is left out: the same test scores compare whether or not it was read.
    """
    sha = hashlib.sha256()
    arrays = [dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels]
    if dataset.val_images is not None:  # else the digest is what it was before there were val splits
        arrays += [dataset.val_images, dataset.val_labels]
    for array in arrays:
        if array is None:
            sha.update(b"none;")
        else:
            sha.update(f"{array.shape};".encode())
            sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()[:16]


def pretraining_digest(dataset: Dataset) -> str:
    """16 hexadecimal digits that identify all the images and labels: `digest`, and with it `unlabelled`."""
    if dataset.unlabelled is None:
        return dataset.digest
    sha = hashlib.sha256(f"{dataset.digest};{dataset.unlabelled.shape};".encode())
    sha.update(np.ascontiguousarray(dataset.unlabelled).data)
    return sha.hexdigest()[:16]


# ---- Splits ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Part:
    """Some of the images of an array, with their labels."""

    images: Images
    index: Indices
    """(M,) which of the images."""
    labels: Labels
    """(M,)"""


def fit_and_val(dataset: Dataset, val_fraction: float, split_seed: int) -> tuple[Part, Part]:
    """What the probes are fitted on and what they are validated on.

    A dataset with a val split of its own is fitted on all of train; `val_fraction` > 0 then only says that the val
    split is used. Any other is divided by `split_train`. With `val_fraction` = 0 the second part is empty.

    Raises:
        InputError: a class has too few images to be divided.
    """
    images, labels = dataset.train_images, dataset.train_labels
    assert labels is not None
    if val_fraction > 0 and dataset.val_images is not None:
        assert dataset.val_labels is not None
        val = Part(dataset.val_images, np.arange(len(dataset.val_labels)), dataset.val_labels)
        return Part(images, np.arange(len(labels)), labels), val
    fit, held_out = split_train(labels, val_fraction, split_seed, dataset.classes)
    return Part(images, fit, labels[fit]), Part(images, held_out, labels[held_out])


def split_train(
    labels: Labels, val_fraction: float, split_seed: int, classes: Sequence[str] = ()
) -> tuple[Indices, Indices]:
    """Divide a train split into fit and val, stratified: sorted indices of each, that together are all of it.

    Every class gives `val_fraction` of its images (rounded, at least one) to val and keeps at least one. Which ones
    depends on the seed, the class and its number of images, not on the other classes. `classes` are their names, for
    messages.

    Raises:
        InputError: a class has fewer than two images.
    """
    assert 0 <= val_fraction < 1
    if val_fraction == 0:
        return np.arange(len(labels)), np.arange(0)
    in_val = np.zeros(len(labels), dtype=bool)
    for index, members in shuffled_classes(labels, split_seed, purpose=0):
        if len(members) < 2:
            raise InputError(
                f"class {class_name(index, classes)} has {len(members)} training image, too few to divide into fit and "
                "val: add images of it, or set val_fraction: 0"
            )
        in_val[members[: share(len(members), val_fraction)]] = True
    return np.flatnonzero(~in_val), np.flatnonzero(in_val)


def draw_labels(labels: Labels, per_class: int, seed: int, classes: Sequence[str] = ()) -> Indices:
    """Draw `per_class` images of each class: their indices, sorted. A larger draw of the same seed contains a smaller.

    `classes` are their names, for messages.

    Raises:
        InputError: a class has fewer images.
    """
    drawn = []
    for index, members in shuffled_classes(labels, seed, purpose=1):
        if len(members) < per_class:
            raise InputError(
                f"labels_per_class: {per_class}, but class {class_name(index, classes)} has only {len(members)} images "
                f"in the fit split: use at most {np.unique(labels, return_counts=True)[1].min()}"
            )
        drawn.append(members[:per_class])
    return np.sort(np.concatenate(drawn))


def class_name(index: int, classes: Sequence[str]) -> str:
    """A class as messages name it."""
    return repr(classes[index]) if classes else str(index)


def shuffled_classes(labels: Labels, seed: int, purpose: int) -> Iterator[tuple[int, Indices]]:
    """Each class that occurs and the indices of its images, in an order drawn by seed, purpose and class."""
    for index in np.unique(labels):
        # RandomState, because NumPy promises that its numbers never change from version to version.
        generator = np.random.RandomState([seed, purpose, int(index)])
        yield int(index), generator.permutation(np.flatnonzero(labels == index))


def share(count: int, fraction: float) -> int:
    """`fraction` of `count` ≥ 2, rounded, such that something is left on both sides."""
    return min(max(int(count * fraction + 0.5), 1), count - 1)


# ---- Pixels ----------------------------------------------------------------------------------------------------------


def convert(images: Images, size: int, channels: int) -> Images:
    """Images (N, C, H, W) -> contiguous (N, channels, size, size)."""
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
    """An image of mode L or RGB -> its centre, scaled: (channels, size, size), or (1, size, size) if it is gray."""
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    if channels == 1:
        image = image.convert("L")
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def in_threads(work: Callable[[int], None], count: int) -> None:
    """Call `work(i)` for i < count on every core that this process may use (Pillow decodes without Python's lock).

    What is raised is the fault of the smallest i that has one.
    """
    chunks = [range(start, min(start + 64, count)) for start in range(0, count, 64)]

    def run(chunk: range) -> None:
        for i in chunk:
            work(i)

    with ThreadPoolExecutor(allowed_cpus().count) as pool:
        for _ in pool.map(run, chunks):
            pass


def check_memory(spec: str, count: int, channels: int, size: int) -> None:
    """Raise an InputError if `count` images would take more than their share of this machine's memory."""
    needed = count * channels * size * size
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory * MEMORY_SHARE:
        raise InputError(
            f"dataset {spec!r}: {count:,} images of {channels}×{size}×{size} take {needed / 2**30:,.1f} GiB, more than "
            f"{MEMORY_SHARE:.0%} of this machine's {memory / 2**30:,.1f} GiB: lower image_size, or use fewer images"
        )


# ---- Folders of images -----------------------------------------------------------------------------------------------


def folder_path(spec: str) -> Path:
    """The path in `folder:PATH`."""
    return Path(spec.removeprefix(FOLDER)).expanduser()


def has_val_folder(spec: str) -> bool:
    """Whether `spec` is a `folder:PATH` with a validation split of its own. `check_exists` must have passed."""
    return spec.startswith(FOLDER) and folders.layout(folder_path(spec), f"dataset {spec!r}").val is not None


def read_folder(spec: str, size: int, channels: int, skip_bad_images: bool) -> Dataset:
    """Read `folder:PATH`, every image decoded to RGB, cut to its centre square and scaled.

    - PATH/train/<class>/* and PATH/test/<class>/*: labelled; images may lie in folders inside the class folders.
      PATH/val/<class>/*, or PATH/validation/<class>/*, beside them is the validation split.
    - PATH/train/<class>/* alone: 80 % of each class become the train split and 20 % the test split.
    - PATH/train/* without class folders, or PATH without train/: all images below it, without labels.

    A warning says how many other files lie there.

    Raises:
        InputError: no images, a class without images or not in all splits, images beside class folders, an unreadable
            image, or more than memory holds.
    """
    check_exists(spec)
    root = folder_path(spec).absolute()
    found = folders.layout(root, f"dataset {spec!r}")
    ignored: list[Path] = []
    classes = tuple(folders.class_folders(found.train)) if found.train is not None else ()
    if not classes:
        where = found.train or root
        paths = list(folders.images_below(where, ignored))
        check_memory(spec, len(paths), channels, size)
        images, good = decode(paths, size, channels, skip_bad_images)
        require_images(where, (), np.zeros(len(images), dtype=np.int64), ignored)
        warn_of_ignored(spec, ignored)
        return Dataset(spec, (), images, None, None, None)

    splits = [split for split in (found.train, found.test, found.val) if split is not None]
    listed = []
    for split in splits:
        of_class = folders.class_folders(split)
        if tuple(of_class) != classes:
            raise InputError(f"dataset {spec!r}: {differences(classes, tuple(of_class), split.name)}")
        beside = (path.name for path in split.iterdir() if not path.is_dir())
        stray = next(folders.images_among(split, beside, ignored), None)
        if stray is not None:
            raise InputError(f"image {str(stray)!r} lies beside class folders: move it into one, or away")
        per_class = [list(folders.images_below(folder, ignored)) for folder in of_class.values()]
        paths = [path for paths in per_class for path in paths]
        labels = np.repeat(np.arange(len(classes)), [len(paths) for paths in per_class])
        require_images(split, classes, labels, ignored)
        listed.append((paths, labels))
    check_memory(spec, sum(len(paths) for paths, _ in listed), channels, size)
    warn_of_ignored(spec, ignored)

    read = []
    for split, (paths, labels) in zip(splits, listed, strict=True):
        images, good = decode(paths, size, channels, skip_bad_images)
        require_images(split, classes, labels[good])
        read.append((images, labels[good]))
    if len(read) > 1:
        val_images, val_labels = read[2] if len(read) > 2 else (None, None)
        return Dataset(spec, classes, *read[0], *read[1], val_images=val_images, val_labels=val_labels)

    images, labels = read[0]
    counts = np.bincount(labels)
    if counts.min() < 2:
        raise InputError(
            f"class folder {str(splits[0] / classes[counts.argmin()])!r} has one image, too few to divide into train "
            "and test: add images, or a test/ folder"
        )
    fit, held_out = split_train(labels, 0.2, split_seed=0)
    return Dataset(spec, classes, images[fit], labels[fit], images[held_out], labels[held_out])


def ignoring(ignored: Sequence[Path]) -> str:
    """In a message that images are missing: which other files lie there."""
    return f" (only files that end like images are read; there are {folders.kinds(ignored)})" if ignored else ""


def warn_of_ignored(spec: str, ignored: Sequence[Path]) -> None:
    """Warn of the files in a dataset's folders that are not images by their ending."""
    if ignored:
        files = "1 file is" if len(ignored) == 1 else f"{len(ignored):,} files are"
        warn_once(f"{spec}: {files} ignored, as only files that end like images are read: {folders.kinds(ignored)}")


@cache
def warn_once(text: str) -> None:
    """Warn, the first time that the process calls it with this text: a dataset may be read in several sizes."""
    warnings.warn(text, stacklevel=3)


def differences(train: tuple[str, ...], other: tuple[str, ...], name: str) -> str:
    """Which classes only train/ or only the folder `name` of another split has, in words."""
    words = []
    for split, names in (("train/", sorted({*train} - {*other})), (f"{name}/", sorted({*other} - {*train}))):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            words.append(f"only in {split}: {', '.join(map(repr, names[:5]))}{more}")
    return f"train/ and {name}/ must have the same class folders, but {'; '.join(words)}"


def require_images(split: Path, classes: tuple[str, ...], labels: Labels, ignored: Sequence[Path] = ()) -> None:
    """Raise an InputError if there are no images in a split or in one of its classes; `ignored` lie there as well."""
    empty = [name for i, name in enumerate(classes) if not (labels == i).any()]
    if empty or len(labels) == 0:
        folder = folders.class_folders(split)[empty[0]] if empty else split
        there = [path for path in ignored if path.is_relative_to(folder)]
        what = "class folder" if empty else "folder"
        raise InputError(f"{what} {str(folder)!r} has no images{ignoring(there)}: add some, or remove it")


def decode(paths: Sequence[Path], size: int, channels: int, skip_bad_images: bool) -> tuple[Images, NDArray[np.bool_]]:
    """Read image files: (N, channels, size, size), and which of the paths these N are.

    Raises:
        InputError: an image cannot be read, unless `skip_bad_images`; then a warning says how many were left out.
    """
    images = np.empty((len(paths), channels, size, size), dtype=np.uint8)
    bad: dict[int, str] = {}

    def one(i: int) -> None:
        try:
            with open_regular(paths[i]) as file, Image.open(file, formats=folders.formats()) as image:
                images[i] = square(to_rgb(upright(image)), size, channels)
        except MemoryError:
            raise
        except Exception as fault:  # what Pillow's decoders raise for damaged files is not documented
            bad[i] = why_unreadable(paths[i], fault)
            if not skip_bad_images:
                raise InputError(
                    f"cannot read the image {str(paths[i])!r} ({bad[i]}): repair or remove it; "
                    "`skip_bad_images` leaves such files out"
                ) from fault

    folders.formats()  # imports Pillow's plugins, before threads do
    with warnings_with_names(paths) as working_on:

        def named(i: int) -> None:
            working_on.index = i
            one(i)

        in_threads(named, len(paths))
    good = np.ones(len(paths), dtype=bool)
    if bad:
        first = min(bad)
        good[list(bad)] = False
        images = images[good]
        warnings.warn(
            f"{len(bad)} of {len(paths)} images left out because they cannot be read, the first "
            f"{str(paths[first])!r} ({bad[first]})",
            stacklevel=2,
        )
    return images, good


@contextmanager
def warnings_with_names(paths: Sequence[Path]) -> Iterator[threading.local]:
    """Name the image in the warnings that reading images gives, and join those of the same kind in one.

    Yields an object whose attribute `index` every thread must set to the image that it reads. The warnings are given
    when the block ends, also by an exception.
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
        if index is None:  # of a thread that reads no images
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
        for kind, those in images.items():
            first = repr(str(paths[min(those)]))
            which = f"image {first}" if len(those) == 1 else f"{len(those)} of {len(paths)} images, the first {first}"
            warn_once(f"{which}: {texts[kind]}")


def open_regular(path: Path) -> IO[bytes]:
    """Open a file to read it; raises ValueError for a named pipe, a device or a socket, which could block for ever."""
    mode = path.stat().st_mode
    for is_kind, kind in (
        (stat.S_ISFIFO, "named pipe"),
        (stat.S_ISSOCK, "socket"),
        (stat.S_ISCHR, "device"),
        (stat.S_ISBLK, "device"),
        (stat.S_ISDIR, "folder"),
    ):
        if is_kind(mode):
            raise ValueError(f"it is a {kind}, not a file")
    # It may have become a pipe since: then this does not wait for a writer.
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))


def why_unreadable(path: Path, fault: Exception) -> str:
    """In a few words, what is wrong with an image file that raised `fault`."""
    if isinstance(fault, OSError) and fault.strerror:
        return "the link leads nowhere" if path.is_symlink() and not path.exists() else fault.strerror
    with suppress(OSError):
        if path.is_file() and path.stat().st_size == 0:
            return "the file is empty"
    if isinstance(fault, Image.DecompressionBombError):
        return f"{one_line(fault)} Make it smaller"
    return "it is not an image" if isinstance(fault, UnidentifiedImageError) else one_line(fault)


def upright(image: Image.Image) -> Image.Image:
    """An image as viewers show it: turned or mirrored as the orientation in its EXIF data says.

    Pillow does this by itself for TIFF only. EXIF data that cannot be read is warned of, and the image stays as it is.
    """
    image.load()  # some formats have their EXIF data behind the pixels
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception as fault:  # what damaged EXIF data raises is not documented
        warnings.warn(f"its EXIF data cannot be read, so it is not turned ({one_line(fault)})", stacklevel=2)
        return image
    method = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode -> RGB, as torchvision's loader does, except that 16-bit gray is scaled and not clipped.

    Transparency is dropped: a transparent pixel has the colour that the file gives it.
    """
    if image.mode.startswith("I"):  # 16 bits; some versions and formats hand them out in 32
        wide = np.clip(np.asarray(image), 0, 65535).astype(np.uint32)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range: save it with 8 or 16 bits")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same pixels; straight to RGB Pillow warns
    return image.convert("RGB")


def one_line(fault: BaseException) -> str:
    """The message of an exception, in one line."""
    return " ".join(str(fault).split()) or type(fault).__name__


# ---- Named datasets --------------------------------------------------------------------------------------------------


def read_digits(name: str, data_dir: Path, size: int, pretraining: bool) -> Dataset:
    """scikit-learn's 1,797 digits, 8×8, divided 80/20 because they have no test split of their own."""
    images, labels = all_digits()
    return divide_digits(name, images, labels)


def read_digits_m(name: str, data_dir: Path, size: int, pretraining: bool) -> Dataset:
    """The same digits, divided alike, over patches of scikit-learn's two photographs, in colour.

    Made as MNIST-M is (Ganin & Lempitsky 2015, arXiv 1409.7495, section 4): per pixel and channel |digit − patch|, the
    digit scaled to `size` (bilinear). A patch is a square of `PATCH_SIDE` pixels of a photograph, drawn with a fixed
    seed and scaled to `size`, so that another size shows the same pictures, finer or coarser.
    """
    digits, labels = all_digits()
    digits = convert(digits, size, 1)
    images = np.empty((len(digits), 3, size, size), dtype=np.uint8)
    photographs = [Image.fromarray(pixels) for pixels in load_photographs()]
    for i, (number, left, top) in enumerate(draw_patches(len(digits), [photo.size for photo in photographs])):
        window = (left, top, left + PATCH_SIDE, top + PATCH_SIDE)
        patch = photographs[number].crop(window).resize((size, size), Image.Resampling.BILINEAR)
        images[i] = np.abs(digits[i].astype(np.int16) - np.asarray(patch).transpose(2, 0, 1))
    return divide_digits(name, images, labels)


def all_digits() -> tuple[Images, Labels]:
    """scikit-learn's digits in its order: (1797, 1, 8, 8), and their labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.rint(digits.images * 255 / 16).astype(np.uint8)[:, None], digits.target.astype(np.int64)


def divide_digits(name: str, images: Images, labels: Labels) -> Dataset:
    """Divide pictures of the digits, given in scikit-learn's order, 80/20: the same digits into the same places."""
    from sklearn.model_selection import train_test_split

    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=0
    )
    return Dataset(name, tuple(map(str, range(10))), train_images, train_labels, test_images, test_labels)


def load_photographs() -> list[Images]:
    """The photographs that come with scikit-learn, each (427, 640, 3)."""
    from sklearn.datasets import load_sample_image

    return [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]


def draw_patches(count: int, sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """For each of `count` images a photograph's number and a patch's left and top, given (width, height) of each."""
    # As for the splits: NumPy promises that the numbers of RandomState never change.
    draws = np.random.RandomState(0).random_sample((count, 3))
    number = (draws[:, 0] * len(sizes)).astype(int)
    corners = draws[:, 1:] * (np.array(sizes)[number] - PATCH_SIDE + 1)
    return [(n, left, top) for n, (left, top) in zip(number.tolist(), corners.astype(int).tolist(), strict=True)]


def read_mnist(name: str, data_dir: Path, size: int, pretraining: bool) -> Dataset:
    """MNIST or Fashion-MNIST: 60,000 and 10,000 gray images of 28×28."""
    from torchvision.datasets import MNIST, FashionMNIST

    kind = MNIST if name == "mnist" else FashionMNIST
    archives = [f"{kind.__name__}/raw/{file}" for file, _ in kind.resources]

    def part(train: bool) -> tuple[Images, Labels]:
        files = [archive.removesuffix(".gz") for archive in archives]
        found = fetch(name, data_dir, files, archives, lambda root, get: kind(root, train=train, download=get))
        return found.data.numpy()[:, None], found.targets.numpy()

    return Dataset(name, tuple(kind.classes), *part(train=True), *part(train=False))


def read_cifar(name: str, data_dir: Path, size: int, pretraining: bool) -> Dataset:
    """CIFAR-10 or CIFAR-100 (fine labels): 50,000 and 10,000 RGB images of 32×32."""
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = CIFAR10 if name == "cifar10" else CIFAR100

    def part(train: bool) -> Any:
        files, archives = [kind.base_folder], [kind.filename]
        return fetch(name, data_dir, files, archives, lambda root, get: kind(root, train=train, download=get))

    train, test = part(train=True), part(train=False)
    return Dataset(
        name,
        tuple(train.classes),
        train.data.transpose(0, 3, 1, 2),
        np.array(train.targets, dtype=np.int64),
        test.data.transpose(0, 3, 1, 2),
        np.array(test.targets, dtype=np.int64),
    )


def read_svhn(name: str, data_dir: Path, size: int, pretraining: bool) -> Dataset:
    """SVHN, cropped digits: 73,257 and 26,032 RGB images of 32×32."""
    from torchvision.datasets import SVHN

    def part(split: str) -> tuple[Images, Labels]:
        files = [SVHN.split_list[split][1]]
        found = fetch(name, data_dir, files, [], lambda root, get: SVHN(root, split=split, download=get))
        return found.data, found.labels

    return Dataset(name, tuple(map(str, range(10))), *part("train"), *part("test"))


def read_stl10(name: str, data_dir: Path, size: int, pretraining: bool) -> Dataset:
    """STL-10: 5,000 and 8,000 RGB images of 96×96; pretraining sees the 5,000 and 100,000 without labels."""
    from torchvision.datasets import STL10

    def part(split: str) -> tuple[Images, Labels]:
        files, archives = [STL10.base_folder], [STL10.filename]
        found = fetch(name, data_dir, files, archives, lambda root, get: STL10(root, split=split, download=get))
        return found.data, found.labels.astype(np.int64)

    classes = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
    if not pretraining:
        return Dataset(name, classes, *part("train"), *part("test"))
    images, labels = part("train+unlabeled")  # the labelled ones come first, the others are labelled -1
    labels = labels[labels >= 0]
    return Dataset(name, classes, images[: len(labels)], labels, *part("test"), unlabelled=images)


@dataclass(frozen=True)
class Source:
    """A dataset that is known by name."""

    size: int
    channels: int
    images: int
    """In the train and test splits, for the check of memory."""
    read: Callable[[str, Path, int, bool], Dataset]
    """(name, data_dir, size, pretraining) -> the dataset in its own channels, without digest.

    Its images may have any size; what is made and not read is made with the side `size`.
    """
    unlabelled: int = 0


SOURCES: dict[str, Source] = {
    "digits": Source(8, 1, 1_797, read_digits),
    "digits_m": Source(16, 3, 1_797, read_digits_m),
    "mnist": Source(28, 1, 70_000, read_mnist),
    "fashion_mnist": Source(28, 1, 70_000, read_mnist),
    "cifar10": Source(32, 3, 60_000, read_cifar),
    "cifar100": Source(32, 3, 60_000, read_cifar),
    "svhn": Source(32, 3, 99_289, read_svhn),
    "stl10": Source(96, 3, 13_000, read_stl10, unlabelled=105_000),
}


def fetch(
    name: str, data_dir: Path, files: Sequence[str], archives: Sequence[str], make: Callable[[Path, bool], T]
) -> T:
    """Read a torchvision dataset from `data_dir`, or download it, leaving nothing behind when that fails.

    Args:
        name: of the dataset, for messages.
        data_dir: torchvision's root.
        files: what torchvision reads, relative to the root.
        archives: what it unpacks them from; used if they lie in `data_dir` already.
        make: (root, download) -> torchvision's dataset, with its data in memory.

    Raises:
        InputError: the files are damaged or incomplete (they are left as they are), or cannot be downloaded.
    """
    try:
        return make(data_dir, False)
    except FILE_FAULTS as fault:
        present = [repr(str(data_dir / file)) for file in files if (data_dir / file).exists()]
        if present:
            reason = one_line(fault).split(" You can use download=True")[0]
            raise InputError(
                f"dataset {name} in {str(data_dir)!r} is damaged or incomplete ({reason}): copy its files "
                f"there again, or remove {', '.join(present)} to have it downloaded"
            ) from fault
    new_folders = [folder for folder in (data_dir, *data_dir.parents) if not folder.exists()]
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=data_dir) as temporary, quiet_network():
            for archive in archives:
                if (data_dir / archive).is_file():
                    Path(temporary, archive).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(data_dir / archive, Path(temporary, archive))
            dataset = make(Path(temporary), True)
            for file in files:
                (data_dir / file).parent.mkdir(parents=True, exist_ok=True)
                if not (data_dir / file).exists():  # else another process was faster
                    Path(temporary, file).rename(data_dir / file)
        return dataset
    except FILE_FAULTS as fault:
        raise InputError(
            f"dataset {name} is not under {str(data_dir)!r} and cannot be downloaded ({one_line(fault)}): copy "
            f"{', '.join(files)} there from a machine with a network, or use digits, which needs none"
        ) from fault
    finally:
        for folder in new_folders:
            with suppress(OSError):  # not empty: the download succeeded
                folder.rmdir()


@contextmanager
def quiet_network() -> Iterator[None]:
    """Inside it, connections give up after `NETWORK_TIMEOUT` and progress bars are not shown."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)
