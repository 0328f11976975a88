"""Splitting the training images into fit and validation, and drawing labelled subsets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raysweep.data.dataset import Dataset, Images, Indices, Labels, class_name, shuffled_classes
from raysweep.errors import InputError


@dataclass(frozen=True, eq=False)
class SplitPart:
    """A subset of an array of images, with labels."""

    images: Images
    index: Indices
    """Indices of the subset in `images`, (M,)."""
    labels: Labels
    """Labels of the subset, (M,)."""


def fit_and_val(dataset: Dataset, val_fraction: float, split_seed: int) -> tuple[SplitPart, SplitPart]:
    """Return the part that probes are fitted on and the part that they are validated on.

    If the dataset has its own val split, the probes are fitted on all of train, and `val_fraction` > 0 only means that
    the val split is used. Other datasets are divided by `split_train`. With `val_fraction` = 0 the second part is
    empty.

    Raises:
        InputError: A class has too few images to be divided.
    """
    images, labels = dataset.train_images, dataset.train_labels
    assert labels is not None
    if val_fraction > 0 and dataset.val_images is not None:
        assert dataset.val_labels is not None
        val = SplitPart(dataset.val_images, np.arange(len(dataset.val_labels)), dataset.val_labels)
        return SplitPart(images, np.arange(len(labels)), labels), val
    fit, held_out = split_train(labels, val_fraction, split_seed, dataset.classes)
    return SplitPart(images, fit, labels[fit]), SplitPart(images, held_out, labels[held_out])


def split_train(
    labels: Labels, val_fraction: float, split_seed: int, classes: Sequence[str] = ()
) -> tuple[Indices, Indices]:
    """Divide a train split into fit and val, stratified; returns the sorted indices of each.

    `val_fraction` of each class (rounded, at least one image) goes to val, and at least one image stays in fit. The
    draw depends on the seed, the class and its number of images, but not on the other classes. `classes` are the class
    names, for messages.

    Raises:
        InputError: A class has fewer than two images.
    """
    assert 0 <= val_fraction < 1
    if val_fraction == 0:
        return np.arange(len(labels)), np.arange(0)
    in_val = np.zeros(len(labels), dtype=bool)
    for index, members in shuffled_classes(labels, split_seed, purpose=0):
        if len(members) < 2:
            raise InputError(
                f"class {class_name(index, classes)} has {len(members)} training image, too few to divide into fit and "
                "val: add images of this class, or set val_fraction: 0"
            )
        in_val[members[: count_of_fraction(len(members), val_fraction)]] = True
    return np.flatnonzero(~in_val), np.flatnonzero(in_val)


def draw_labels(
    labels: Labels,
    per_class: int,
    seed: int,
    classes: Sequence[str] = (),
    *,
    draw: int = 0,
    setting: str = "labels_per_class",
) -> Indices:
    """Draw `per_class` images of each class; returns their sorted indices.

    With the same seed and number of the draw, a larger draw contains a smaller one.

    Args:
        labels: the labels of the images, (N,).
        per_class: the number of images of each class.
        seed: the seed of the draw.
        classes: the class names, for messages.
        draw: the number of the draw, from 0. Draws with other numbers are independent.
        setting: the setting that asks for the images, for messages.

    Raises:
        InputError: A class has fewer than `per_class` images.
    """
    numbers, counts = np.unique(labels, return_counts=True)
    least = int(counts.argmin())
    if counts[least] < per_class:
        raise InputError(
            f"{setting}: {per_class}, but class {class_name(int(numbers[least]), classes)} has only {counts[least]} "
            f"images in the fit split: use at most {counts[least]}"
        )
    drawn = []
    for _, members in shuffled_classes(labels, seed, purpose=1 + draw):  # purpose 0 divides the train split
        drawn.append(members[:per_class])
    return np.sort(np.concatenate(drawn))


def count_of_fraction(count: int, fraction: float) -> int:
    """Return `fraction` of `count` ≥ 2, rounded, but at least 1 and at most `count` - 1."""
    return min(max(int(count * fraction + 0.5), 1), count - 1)
