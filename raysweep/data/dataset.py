"""The Dataset type: images, labels and classes as NumPy arrays, and the digest of their content."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from raysweep.errors import InputError
from raysweep.system.cpus import allowed_cpus

Images = NDArray[np.uint8]  # (N, C, H, W), C = 1 or 3
Labels = NDArray[np.int64]  # (N,)
Indices = NDArray[np.int64]
MEMORY_SHARE = 0.5  # largest share of physical memory for one dataset; the encoder and the features need memory too
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Dataset:
    """One dataset in memory, as plain NumPy arrays that processes can share read-only.

    Images are uint8 (N, C, H, W) with H = W and the same C and H in every split. Labels are int64 (N,), indices into
    `classes`.
    """

    name: str
    classes: tuple[str, ...]
    """Names of the classes; () if the dataset has no labels."""
    train_images: Images
    train_labels: Labels | None
    test_images: Images | None
    test_labels: Labels | None
    unlabelled: Images | None = None
    """Images for pretraining, if there are more of them than the train split has (STL-10)."""
    digest: str = ""
    """16 hexadecimal digits of a hash over the shapes, pixels and labels of train, test and val."""
    val_images: Images | None = None
    """The dataset's own validation split; if there is none, one is split off the train split."""
    val_labels: Labels | None = None

    @property
    def pretrain_images(self) -> Images:
        """All images that pretraining may use."""
        return self.train_images if self.unlabelled is None else self.unlabelled

    @property
    def pretrain_labels(self) -> Labels | None:
        """The labels of `pretrain_images`; None unless all of them have one."""
        return self.train_labels if self.unlabelled is None else None

    @property
    def labelled(self) -> bool:
        """Whether the dataset has labels for an evaluation."""
        return self.train_labels is not None


def digest_of(dataset: Dataset) -> str:
    """Return 16 hexadecimal digits that identify the train, test and val splits.

    `unlabelled` is left out, so that test scores are comparable whether or not it was loaded.
    """
    sha = hashlib.sha256()
    arrays = [dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels]
    if dataset.val_images is not None:  # without a val split the digest stays as it was before val splits existed
        arrays += [dataset.val_images, dataset.val_labels]
    for array in arrays:
        if array is None:
            sha.update(b"none;")
        else:
            sha.update(f"{array.shape};".encode())
            sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()[:16]


def pretraining_digest(dataset: Dataset) -> str:
    """Return 16 hexadecimal digits that identify all images and labels, including `unlabelled`."""
    if dataset.unlabelled is None:
        return dataset.digest
    sha = hashlib.sha256(f"{dataset.digest};{dataset.unlabelled.shape};".encode())
    sha.update(np.ascontiguousarray(dataset.unlabelled).data)
    return sha.hexdigest()[:16]


def class_name(index: int, classes: Sequence[str]) -> str:
    """Return the name of a class for messages."""
    return repr(classes[index]) if classes else str(index)


def shuffled_classes(labels: Labels, seed: int, purpose: int) -> Iterator[tuple[int, Indices]]:
    """Yield each class that occurs, with its images' indices in an order drawn from seed, purpose and class."""
    for index in np.unique(labels):
        # RandomState is used because NumPy guarantees that its numbers never change between versions.
        generator = np.random.RandomState([seed, purpose, int(index)])
        yield int(index), generator.permutation(np.flatnonzero(labels == index))


def in_threads(work: Callable[[int], None], count: int) -> None:
    """Call `work(i)` for all i < count, on every core that this process may use.

    Threads suffice because Pillow releases Python's lock while decoding. If calls fail, the exception of the smallest
    such i is raised.
    """
    chunks = [range(start, min(start + 64, count)) for start in range(0, count, 64)]

    def run(chunk: range) -> None:
        for i in chunk:
            work(i)

    with ThreadPoolExecutor(allowed_cpus().count) as pool:
        for _ in pool.map(run, chunks):
            pass


def check_memory(spec: str, count: int, channels: int, size: int) -> None:
    """Raise InputError if `count` images would take more than `MEMORY_SHARE` of this machine's memory."""
    needed = count * channels * size * size
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory * MEMORY_SHARE:
        raise InputError(
            f"dataset {spec!r}: {count:,} images of {channels}×{size}×{size} take {needed / 2**30:,.1f} GiB, more than "
            f"{MEMORY_SHARE:.0%} of this machine's {memory / 2**30:,.1f} GiB: lower image_size, or use fewer images"
        )
