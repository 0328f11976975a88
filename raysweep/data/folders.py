"""Reading image folders as datasets."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from raysweep import parts
from raysweep.config import FOLDER
from raysweep.data import layout
from raysweep.data.dataset import Dataset, Labels, check_memory
from raysweep.data.layout import folder_path, likely_folder, no_classes
from raysweep.data.pixels import decode, move_to_front, warn_once
from raysweep.data.splits import split_train
from raysweep.errors import InputError


def read_folder(spec: str, size: int, channels: int, skip_bad_images: bool) -> Dataset:
    """Read `folder:PATH`. Every image is decoded to RGB, cropped to its central square and scaled.

    - PATH/train/<class>/* and PATH/test/<class>/*: labelled; images may lie in folders inside the class folders.
      PATH/val/<class>/* or PATH/validation/<class>/* beside them is the validation split.
    - PATH/train/<class>/* alone: 80 % of each class become the train split and 20 % the test split.
    - PATH/train/* without class folders, or PATH without train/: all images below it, without labels.

    A warning tells how many other files were ignored.

    Raises:
        InputError: There are no images; a class has no images or is not in all splits; images lie beside class
            folders; an image is unreadable; or the images do not fit in memory.
    """
    check_exists(spec)
    root = folder_path(spec).absolute()
    split_folders = layout.layout(root, f"dataset {spec!r}")
    ignored: list[Path] = []
    classes = tuple(layout.class_folders(split_folders.train)) if split_folders.train is not None else ()
    if not classes:
        where = split_folders.train or root
        paths = list(layout.images_below(where, ignored))
        check_memory(spec, len(paths), channels, size)
        images, good = decode(paths, size, channels, skip_bad_images)
        require_images(where, (), np.zeros(len(images), dtype=np.int64), ignored)
        warn_of_ignored(spec, ignored)
        return Dataset(spec, (), images, None, None, None)

    splits = [split for split in (split_folders.train, split_folders.test, split_folders.val) if split is not None]
    listed = []
    for split in splits:
        folders = layout.class_folders(split)
        if tuple(folders) != classes:
            raise InputError(f"dataset {spec!r}: {differences(classes, tuple(folders), split.name)}")
        beside = (path.name for path in split.iterdir() if not path.is_dir())
        stray = next(layout.images_among(split, beside, ignored), None)
        if stray is not None:
            raise InputError(
                f"image {str(stray)!r} lies beside class folders: move it into a class folder, or out of {split.name}/"
            )
        per_class = [list(layout.images_below(folder, ignored)) for folder in folders.values()]
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
    few = images[held_out]
    train_images, test_images = move_to_front(images, fit), images[len(fit) :]
    test_images[:] = few
    return Dataset(spec, classes, train_images, labels[fit], test_images, labels[held_out])


def ignoring(ignored: Sequence[Path]) -> str:
    """Return the part of a missing-images message that lists the ignored files."""
    return f" (only files with image endings are read; there are {layout.kinds(ignored)})" if ignored else ""


def warn_of_ignored(spec: str, ignored: Sequence[Path]) -> None:
    """Warn about the files in a dataset's folders whose names have no image ending."""
    if ignored:
        files = "1 file is" if len(ignored) == 1 else f"{len(ignored):,} files are"
        warn_once(f"{spec}: {files} ignored, as only files with image endings are read: {layout.kinds(ignored)}")


def differences(train: tuple[str, ...], other: tuple[str, ...], name: str) -> str:
    """Describe which classes only train/ has, and which only the split folder `name` has."""
    words = []
    for split, names in (("train/", sorted({*train} - {*other})), (f"{name}/", sorted({*other} - {*train}))):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            words.append(f"only in {split}: {', '.join(map(repr, names[:5]))}{more}")
    return f"train/ and {name}/ must have the same class folders, but {'; '.join(words)}"


def require_images(split: Path, classes: tuple[str, ...], labels: Labels, ignored: Sequence[Path] = ()) -> None:
    """Raise InputError if a split or one of its classes has no images; `ignored` are the other files found."""
    empty = [name for i, name in enumerate(classes) if not (labels == i).any()]
    if empty or len(labels) == 0:
        folder = layout.class_folders(split)[empty[0]] if empty else split
        ignored_here = [path for path in ignored if path.is_relative_to(folder)]
        what = "class folder" if empty else "folder"
        raise InputError(f"{what} {str(folder)!r} has no images{ignoring(ignored_here)}: add some, or remove it")


def check_exists(spec: str, labelled: bool = False) -> None:
    """Check that the folder of a `folder:PATH` can be a dataset, without reading its images.

    Args:
        spec: The name of a dataset.
        labelled: Whether the dataset must have labels.

    Raises:
        InputError: PATH is missing, is not a folder, or holds neither `train/` nor an image; `layout.layout` rejects
            its splits; or `labelled` is set and there are no class folders in `train/`.
    """
    check_name(spec)
    if not spec.startswith(FOLDER):
        return
    root = folder_path(spec)
    if not root.exists():
        raise InputError(f"dataset {spec!r}: there is no folder {str(root.absolute())!r}")
    if not root.is_dir():
        raise InputError(f"dataset {spec!r}: {str(root.absolute())!r} is not a folder")
    train = layout.layout(root.absolute(), f"dataset {spec!r}").train
    if train is None:
        ignored: list[Path] = []
        if next(layout.images_below(root, ignored), None) is None:
            raise InputError(
                f"dataset {spec!r}: neither train/<class>/ nor an image in {str(root.absolute())!r}{ignoring(ignored)}"
            )
    if labelled and not labels_all_pretraining_images(spec):
        raise InputError(no_classes(spec))


def labels_all_pretraining_images(spec: str) -> bool:
    """Return whether all pretraining images of an existing dataset have labels, by its name or the names of its files.

    A named dataset may turn out to have none when it is loaded.
    """
    if not spec.startswith(FOLDER):
        traits = parts.dataset[spec].traits
        return bool(traits["labelled"]) and not traits["unlabelled"]
    root = folder_path(spec)
    train = layout.layout(root.absolute(), f"dataset {spec!r}").train
    return train is not None and bool(layout.class_folders(train))


def is_meant_unlabelled(spec: str) -> bool:
    """Return whether a dataset is meant to be evaluated without labels, by its declaration or the names of its files.

    A folder without classes is not meant if a folder near it has classes, because the path is probably wrong.

    Raises:
        InputError: The splits of an existing folder cannot be told apart.
    """
    if not spec.startswith(FOLDER):
        return spec in parts.dataset and not parts.dataset[spec].traits["labelled"]
    is_folder = spec != FOLDER and folder_path(spec).is_dir()
    return is_folder and not labels_all_pretraining_images(spec) and likely_folder(spec) is None


def check_name(spec: str) -> None:
    """Check the name of a dataset, without looking at its files.

    Raises:
        InputError: The name is unknown, or `folder:` has no path.
    """
    if spec in parts.dataset or (spec.startswith(FOLDER) and len(spec) > len(FOLDER)):
        return
    if spec == FOLDER:
        raise InputError("dataset 'folder:' has no path: write folder:PATH")
    valid = [*parts.dataset, FOLDER + "PATH"]
    if os.path.isdir(spec):
        raise InputError(f"unknown dataset {spec!r}, did you mean {FOLDER + spec!r}? valid: {', '.join(valid)}")
    close = difflib.get_close_matches(spec.lower(), valid, n=1, cutoff=0.6)
    hint = f", did you mean {close[0]!r}?" if close else ";"
    raise InputError(f"unknown dataset {spec!r}{hint} valid: {', '.join(valid)}")
