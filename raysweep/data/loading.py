"""Loading a dataset by its name, in the size and channels that a trial needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from raysweep import parts
from raysweep.config import FOLDER
from raysweep.config.images import FOLDER_CHANNELS, native_size
from raysweep.data.dataset import Dataset, check_content, check_memory, digest_of
from raysweep.data.datasets import DatasetRequest
from raysweep.data.folders import check_name, read_folder
from raysweep.data.pixels import convert
from raysweep.part_functions import explained
from raysweep.parts import Part


def read_part(part: Part, request: DatasetRequest, parameters: Mapping[str, Any]) -> Dataset:
    """Read a dataset of the table; raises InputError if a plugin's dataset is faulty."""
    if not part.plugin:
        dataset: Dataset = part.function(request, **parameters)
        return dataset
    with explained(part):
        dataset = part.function(request, **parameters)
        check_content(dataset, (int(part.traits["size"]), request.size))
    labels = {f"{split}_labels": getattr(dataset, f"{split}_labels") for split in ("train", "test", "val")}
    labels = {name: value if value is None else np.asarray(value, dtype=np.int64) for name, value in labels.items()}
    return replace(dataset, name=request.name, **labels)


def load(
    spec: str,
    *,
    data_dir: Path,
    image_size: int | None = None,
    channels: int | None = None,
    skip_bad_images: bool = False,
    pretraining: bool = True,
    parameters: Mapping[str, Any] | None = None,
) -> Dataset:
    """Read a dataset into memory, downloading it first if necessary.

    Args:
        spec: A name in the table of datasets, or `folder:PATH` (see `read_folder`).
        data_dir: The folder that holds torchvision's datasets, or to which they are downloaded.
        image_size: The side in pixels to which every image is scaled (bilinear); None means `native_size(spec)`.
        channels: 1 or 3. None means the dataset's own channels, which is 3 for folders. Gray becomes RGB by
            repetition; RGB becomes gray by luminance (ITU-R 601).
        skip_bad_images: Skip unreadable images of a folder with a warning instead of raising.
        pretraining: Also read images that only pretraining uses (STL-10's unlabelled ones).
        parameters: The values of the arguments that the dataset declares, by name.

    Raises:
        InputError: The name is unknown, or the files are missing, damaged or do not fit in memory.
    """
    check_name(spec)
    assert channels in (None, 1, 3)
    size = native_size(spec) if image_size is None else image_size
    if spec.startswith(FOLDER):
        dataset = read_folder(spec, size, channels or FOLDER_CHANNELS, skip_bad_images)
    else:
        part = parts.dataset[spec]
        count = part.traits["images"] + (part.traits["unlabelled"] if pretraining else 0)
        check_memory(spec, count, channels or part.traits["channels"], max(size, part.traits["size"]))
        request = DatasetRequest(spec, data_dir.expanduser(), size, pretraining)
        dataset = read_part(part, request, parameters or {})
    channels = channels or dataset.train_images.shape[1]
    splits = {name: getattr(dataset, name) for name in ("train_images", "test_images", "unlabelled", "val_images")}
    converted: dict[str, Any] = {
        name: convert(images, size, channels) for name, images in splits.items() if images is not None
    }
    dataset = replace(dataset, **converted)
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
