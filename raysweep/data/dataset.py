"""The Dataset type: images, labels and classes as NumPy arrays, and the digest of their content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from raysweep.data import arrays
from raysweep.errors import InputError
from raysweep.system.cpus import allowed_cpus
from raysweep.system.memory import allowed_memory

Images = NDArray[np.uint8]  # (N, C, H, W), C = 1 or 3
Labels = NDArray[np.int64]  # (N,)
Indices = NDArray[np.int64]
MEMORY_SHARE = 0.5  # largest share of the allowed memory for one dataset; the encoder and the features need memory too
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Dataset:
    """One dataset in memory, as plain NumPy arrays that processes can share read-only.

    Images are uint8 (N, C, H, W) with H = W and the same C and H in every split. Labels are int64 (N,), indices into
    `classes`.

    Example:
        >>> Dataset.from_numpy(train_images, train_labels, test_images, test_labels, classes=("cat", "dog"))
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

    @classmethod
    def from_numpy(
        cls,
        train_images: Any,
        train_labels: Any,
        test_images: Any,
        test_labels: Any,
        *,
        name: str = "",
        classes: Sequence[str] | None = None,
    ) -> Dataset:
        """Make a dataset from NumPy arrays.

        Args:
            train_images: (N, H, W), (N, C, H, W) or (N, H, W, C) with C = 1 or 3; uint8, or real numbers in [0, 1].
            train_labels: (N,) whole numbers, the classes of the images from 0.
            test_images: Images of the test split.
            test_labels: Labels of the test split.
            name: A name for messages. In a plugin the name of the part replaces it.
            classes: The names of the classes; None: their numbers.

        Raises:
            InputError: An array has another shape, type or range.

        Example:
            `Dataset.from_numpy(x_train, y_train, x_test, y_test, name="leaves")`
        """
        splits = []
        for split, images, labels in (("train", train_images, train_labels), ("test", test_images, test_labels)):
            where = f"{name or 'dataset'}: {split}"
            pixels = arrays.images_of(images, where)
            splits.append((pixels, arrays.labels_of(labels, len(pixels), where)))
        return cls._of_splits(splits, name, classes)

    @classmethod
    def from_torch(cls, train: Any, test: Any, *, name: str = "", classes: Sequence[str] | None = None) -> Dataset:
        """Make a dataset from two torch datasets that are indexed by number. Every item is read once.

        Args:
            train: A dataset of pairs (image, label). Images are PIL images, or tensors (C, H, W), uint8 or float in
                [0, 1], all of one size, with 1 or 3 channels. Labels are whole numbers from 0.
            test: The test split.
            name: A name for messages. In a plugin the name of the part replaces it.
            classes: The names of the classes; None takes `train.classes`, else their numbers.

        Raises:
            InputError: An item is something else.

        Example:
            `Dataset.from_torch(CIFAR10("data"), CIFAR10("data", train=False), name="my_cifar")`
        """
        splits = [
            arrays.read_pairs((source[i] for i in range(len(source))), f"{name or 'dataset'}: {split}")
            for split, source in (("train", train), ("test", test))
        ]
        return cls._of_splits(splits, name, getattr(train, "classes", None) if classes is None else classes)

    @classmethod
    def from_huggingface(
        cls,
        dataset_dict: Any,
        *,
        image: str = "image",
        label: str = "label",
        train: str = "train",
        test: str = "test",
        name: str = "",
    ) -> Dataset:
        """Make a dataset from a `DatasetDict` of the package `datasets`. Every row is read once.

        Args:
            dataset_dict: The splits by name.
            image: The column of the images.
            label: The column of the labels, whole numbers from 0. The names of a `ClassLabel` are kept.
            train: The name of the train split.
            test: The name of the test split.
            name: A name for messages. In a plugin the name of the part replaces it.

        Raises:
            InputError: A split or a column does not exist, or an image or a label is of another kind.

        Example:
            `Dataset.from_huggingface(datasets.load_dataset("mnist"))`
        """
        what, splits = name or "dataset", []
        for split in (train, test):
            if split not in dataset_dict:
                raise InputError(f"{what}: has no split {split!r}; it has {', '.join(map(str, dataset_dict))}")
            rows = dataset_dict[split]
            missing = [column for column in (image, label) if column not in rows.features]
            if missing:
                raise InputError(f"{what}: has no column {missing[0]!r}; it has {', '.join(rows.features)}")
            splits.append(arrays.read_pairs(((row[image], row[label]) for row in rows), f"{what}: {split}"))
        return cls._of_splits(splits, name, getattr(dataset_dict[train].features[label], "names", None))

    @classmethod
    def _of_splits(cls, splits: Sequence[tuple[Images, Labels]], name: str, classes: Sequence[str] | None) -> Dataset:
        """Make a dataset from the images and labels of train and test."""
        (train_images, train_labels), (test_images, test_labels) = splits
        what, shapes = name or "dataset", [arrays.sizes(images.shape[1:]) for images, _ in splits]
        if shapes[0] != shapes[1]:
            raise InputError(f"{what}: train images are {shapes[0]}, but test images are {shapes[1]}")
        largest = int(max(train_labels.max(), test_labels.max()))
        names = tuple(map(str, range(largest + 1) if classes is None else classes))
        if largest >= len(names):
            raise InputError(f"{what}: the label {largest} is too large for {len(names)} classes")
        return cls(name, names, train_images, train_labels, test_images, test_labels)

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


def check_content(dataset: object, sizes: Sequence[int]) -> None:
    """Check what a plugin returned as a dataset.

    Args:
        dataset: What it returned.
        sizes: The sides in pixels that the images may have: the declared one and the requested one.

    Raises:
        InputError: It is no `Dataset`, or an array has another shape, type or range than `Dataset` says.
    """
    if not isinstance(dataset, Dataset):
        raise InputError(f"returns {type(dataset).__name__}; it must return a raysweep.Dataset")
    shape = np.shape(dataset.train_images)
    for split in ("train", "test", "val"):
        images, labels = getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")
        if split == "train" or images is not None:
            check_images(images, shape, f"{split}_images")
            if labels is None and dataset.labelled:
                raise InputError(f"has train_labels, but no {split}_labels; give the labels of these images")
        if labels is not None:
            labels = arrays.labels_of(labels, 0 if images is None else len(images), split)
            if labels.max() >= len(dataset.classes):
                raise InputError(f"{split}: the label {labels.max()} is too large for {len(dataset.classes)} classes")
    if dataset.train_labels is not None:
        absent = np.setdiff1d(np.arange(len(dataset.classes)), dataset.train_labels)
        if 0 < len(absent) < len(dataset.classes) - 1:  # a single class is refused where two are needed
            raise InputError(
                f"class {dataset.classes[absent[0]]!r} has no training image, and label {absent[0]} does not occur; "
                "number the labels from 0, without a gap, and name only the classes that occur"
            )
    if dataset.labelled and dataset.test_images is None:
        raise InputError(
            "has train_labels, but no test_images; give the images and labels of a test split, for example some of the "
            "training images, which then are no longer training images"
        )
    if dataset.unlabelled is not None:
        check_images(dataset.unlabelled, shape, "unlabelled")
    side = min(shape[2:])
    if side not in sizes:
        raise InputError(f"declares size={sizes[0]}, but its images are {arrays.sizes(shape[1:])}")


def check_images(images: Any, like: Sequence[int], what: str) -> None:
    """Raise InputError unless `images` are uint8 (N, C, H, W) with the C, H and W of the shape `like`."""
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        kind = images.dtype if hasattr(images, "dtype") else type(images).__name__
        raise InputError(f"{what} are {kind}; they must be a uint8 array (N, C, H, W)")
    if images.ndim != 4 or not len(images) or images.shape[1] not in (1, 3) or images.shape[1:] != tuple(like[1:]):
        raise InputError(
            f"{what} have the shape {images.shape}; it must be (N, C, H, W), alike in all splits, C 1 or 3"
        )


def digest_of(dataset: Dataset) -> str:
    """Return 16 hexadecimal digits that identify the train, test and val splits, and the number of classes.

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
    labels = [array for array in (dataset.train_labels, dataset.test_labels, dataset.val_labels) if array is not None]
    if labels and len(dataset.classes) > 1 + max(int(array.max(initial=-1)) for array in labels):
        sha.update(f"{len(dataset.classes)} classes;".encode())  # otherwise the labels tell the number of classes
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
    """Raise InputError if `count` images would take more than `MEMORY_SHARE` of the allowed memory."""
    needed = count * channels * size * size
    memory = allowed_memory()
    if needed > memory * MEMORY_SHARE:
        raise InputError(
            f"dataset {spec!r}: {count:,} images of {channels}×{size}×{size} take {needed / 2**30:,.1f} GiB, more than "
            f"{MEMORY_SHARE:.0%} of the {memory / 2**30:,.1f} GiB that this process may use: lower image_size, or use "
            "fewer images"
        )
