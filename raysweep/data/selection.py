"""The arrays that an experiment works on: which, loaded once, and checked against its settings. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysweep import parts
from raysweep.config import Settings
from raysweep.data import loading
from raysweep.data.dataset import Dataset, Images, pretraining_digest
from raysweep.data.layout import has_val_folder, no_classes
from raysweep.data.loading import native_size
from raysweep.data.splits import draw_labels, fit_and_val
from raysweep.errors import InputError

DataKey = tuple[str, int, int | None]
"""A dataset's name, image size and channels (None: its own): what decides the arrays."""
Datasets = MutableMapping[DataKey, Dataset]


@dataclass(frozen=True)
class TrialData:
    """What one experiment works on, as NumPy arrays, in the form its encoder needs."""

    pretrain: Images
    probe: Dataset


def select_data(settings: Settings, datasets: Datasets, load: bool = False) -> TrialData:
    """The arrays of an experiment, from `datasets`. With `load`, missing datasets are loaded into it.

    Raises:
        InputError: a dataset cannot be loaded, or lacks what the settings ask for.
    """
    size = settings.image_size or native_size(settings.dataset)

    def get(spec: str, channels: int | None) -> Dataset:
        parameters = parts.dataset[spec].arguments(settings) if spec in parts.dataset else {}
        key: DataKey = (labelled_name(spec, parameters), size, channels)
        if key not in datasets and load:
            datasets[key] = loading.load(
                spec,
                data_dir=Path(settings.data_dir),
                image_size=size,
                channels=channels,
                skip_bad_images=settings.skip_bad_images,
                pretraining=channels is None,
                parameters=parameters,
            )
        return datasets[key]

    pretrain = get(settings.dataset, None)
    images = pretrain.pretrain_images
    if settings.evaluated_dataset == settings.dataset:
        return TrialData(images, pretrain)
    return TrialData(images, get(settings.evaluated_dataset, images.shape[1]))


def labelled_name(spec: str, parameters: Mapping[str, Any]) -> str:
    """A dataset's name with the arguments that it has declared, such as `stripes(noise=0.1)`."""
    words = ", ".join(f"{name}={value}" for name, value in parameters.items())
    return f"{spec}({words})" if words else spec


def digests(datasets: Datasets) -> dict[str, str]:
    """What tells the images and labels of each dataset from others, by the dataset's name and the form it is in."""
    by_name = {}
    for (name, size, channels), dataset in datasets.items():
        form = f"{size}×{size}" if channels is None else f"{size}×{size}, {channels} channels"
        by_name[f"{name} {form}"] = dataset.digest if channels is not None else pretraining_digest(dataset)
    return by_name


def check_unchanged(datasets: Datasets, recorded: Mapping[str, str]) -> None:
    """Raises InputError if a dataset is not what `digests` once recorded of it."""
    for name, digest in digests(datasets).items():
        was = recorded.get(name, digest)
        if digest != was:
            raise InputError(
                f"dataset {name!r}: its images or labels are not those that the sweep was started with (digest {was}, "
                f"now {digest}); put them back, or start a new sweep"
            )


def check_validation(dataset: str, trials: Sequence[Settings]) -> None:
    """Check what trials that are evaluated on `dataset` say about its validation split.

    Raises:
        InputError: they differ in how it is drawn from the train split, but the dataset has a validation split.
    """
    if not has_val_folder(dataset):
        return
    validated = [settings for settings in trials if settings.val_fraction > 0]
    for name in ("val_fraction", "split_seed"):
        values = {getattr(settings, name) for settings in validated}
        if len(values) > 1:
            raise InputError(
                f"{name}: {min(values)} and {max(values)} would give the same results, as the val folder of {dataset} "
                "is the validation split"
            )


def check_data(settings: Settings, of: TrialData) -> None:
    """Raises InputError where the settings ask for more than the data holds."""
    images = len(of.pretrain)
    if settings.usl_epochs and settings.batch_size > images:
        raise InputError(
            f"batch_size: {settings.batch_size} is more than the {images} training images of {settings.dataset}"
        )
    if not of.probe.labelled:
        raise InputError(no_classes(settings.evaluated_dataset))
    if len(of.probe.classes) < 2:
        raise InputError(
            f"{settings.evaluated_dataset} has a single class, {of.probe.classes[0]!r}; an evaluation needs two"
        )
    fit, _ = fit_and_val(of.probe, settings.val_fraction, settings.split_seed)
    images = len(fit.index)
    knn_k = parts.probe["knn"].arguments(settings)["knn_k"]
    if knn_k > images:
        raise InputError(f"knn_k: {knn_k} is more than the {images} images of {settings.evaluated_dataset}'s fit split")
    labels_per_class = parts.probe["linear"].arguments(settings)["labels_per_class"]
    if labels_per_class is not None:
        draw_labels(fit.labels, labels_per_class, settings.seed, of.probe.classes)
    assert of.probe.test_images is not None
    tests, classes = len(of.probe.test_images), len(of.probe.classes)
    if tests < classes:
        raise InputError(
            f"{settings.evaluated_dataset}: k-means needs a test image per class, but {tests} are fewer than {classes}"
        )
