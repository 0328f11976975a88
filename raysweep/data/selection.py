"""Selection of the arrays for an experiment: loaded once, and checked against its settings. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from raysweep import parts
from raysweep.config import Settings
from raysweep.config.images import dataset_name, labelled_name, side_of
from raysweep.data import loading
from raysweep.data.dataset import Dataset, Images, Indices, Labels, class_name, pretraining_digest
from raysweep.data.layout import no_classes
from raysweep.data.splits import fit_and_val, split_train
from raysweep.errors import InputError
from raysweep.part_functions import explained
from raysweep.space import Trial
from raysweep.space.seen_labels import reads_labels

DataKey = tuple[str, int, int | None]
"""The dataset's name, image size and channels (None means the dataset's own), which together determine the arrays."""
Datasets = MutableMapping[DataKey, Dataset]


@dataclass(frozen=True)
class TrialData:
    """The NumPy arrays for one experiment, in the form that its encoder needs."""

    pretrain: Images
    probe: Dataset
    labels: Labels | None = None
    """The labels of `pretrain`, if the method reads them."""
    digest: str = ""
    """The digest of the dataset that has `pretrain`."""
    chosen: Indices | None = None
    """The positions in `pretrain` of the images that pretraining reads; None: all of them.

    A method that reads labels must not read the labels of the validation images.
    """

    @property
    def count(self) -> int:
        """The number of images that pretraining reads."""
        return len(self.pretrain) if self.chosen is None else len(self.chosen)

    @property
    def classes(self) -> int:
        """The number of classes of `labels`."""
        return 0 if self.labels is None else int(self.labels.max()) + 1


def select_data(settings: Settings, datasets: Datasets, load: bool = False) -> TrialData:
    """Return an experiment's arrays from `datasets`. With `load`, missing datasets are loaded into `datasets`.

    Raises:
        InputError: A dataset cannot be loaded or lacks something that the settings need.
    """
    size = side_of(settings)
    pretrain = select_dataset(settings, settings.dataset, size, None, datasets, load)
    images = pretrain.pretrain_images
    labels = pretrain.pretrain_labels if reads_labels(settings) else None
    probe = pretrain
    if settings.evaluated_dataset != settings.dataset:
        probe = select_dataset(settings, settings.evaluated_dataset, size, images.shape[1], datasets, load)
    chosen = None
    if labels is not None and probe.digest == pretrain.digest:  # two folders may hold the same images
        chosen = labels_to_read(settings, pretrain)
    return TrialData(images, probe, labels, pretrain.digest, chosen)


def labels_to_read(settings: Settings, dataset: Dataset) -> Indices | None:
    """Return the positions of the training images whose labels pretraining may read; None: all of them.

    Args:
        settings: An experiment that is evaluated on the dataset on which it pretrains.
        dataset: That dataset.

    Raises:
        InputError: A class has too few images to be divided.
    """
    if not settings.probe_labels or not settings.val_fraction or dataset.val_images is not None:
        return None
    assert dataset.train_labels is not None
    return split_train(dataset.train_labels, settings.val_fraction, settings.split_seed, dataset.classes)[0]


def data_of(trial: Trial, datasets: Datasets, load: bool = False) -> TrialData:
    """Return a trial's arrays; see `select_data`.

    A trial that evaluates a trained encoder reads no images of pretraining. The images of its evaluation are converted
    to the channels and the size of the encoder.
    """
    if trial.source is None:
        return select_data(trial.settings, datasets, load)
    size, channels = trial.source.image_size, trial.source.channels
    probe = select_dataset(trial.settings, trial.settings.evaluated_dataset, size, channels, datasets, load)
    return TrialData(probe.train_images, probe)


def select_dataset(
    settings: Settings, spec: str, size: int, channels: int | None, datasets: Datasets, load: bool
) -> Dataset:
    """Return one dataset of an experiment in this size and with these channels; see `select_data`."""
    key: DataKey = (labelled_name(spec, settings), size, channels)
    if key not in datasets and load:
        datasets[key] = loading.load(
            spec,
            data_dir=Path(settings.data_dir),
            image_size=size,
            channels=channels,
            skip_bad_images=settings.skip_bad_images,
            pretraining=channels is None,
            parameters=parts.dataset[spec].arguments(settings) if spec in parts.dataset else {},
        )
    return datasets[key]


def digests(datasets: Datasets) -> dict[str, str]:
    """Return a digest of each dataset's images and labels, by the dataset's name, size and channels."""
    return {
        dataset_name(*key): dataset.digest if key[2] is not None else pretraining_digest(dataset)
        for key, dataset in datasets.items()
    }


def check_unchanged(datasets: Datasets, recorded: Mapping[str, str]) -> None:
    """Raise InputError if a dataset's digest differs from the recorded one."""
    for name, digest in digests(datasets).items():
        was = recorded.get(name, digest)
        if digest != was:
            raise InputError(
                f"dataset {name!r}: its images or labels changed after the sweep was started (digest {was}, now "
                f"{digest}); restore them, or start a new sweep"
            )


def check_validation(dataset: str, trials: Sequence[Settings]) -> None:
    """Check the validation settings of the trials that are evaluated on `dataset`, which has its own validation split.

    Raises:
        InputError: The trials differ in how validation images would be drawn from the train split.
    """
    validated = [settings for settings in trials if settings.val_fraction > 0]
    for name in ("val_fraction", "split_seed"):
        values = {getattr(settings, name) for settings in validated}
        if len(values) > 1:
            raise InputError(
                f"{name}: {min(values)} and {max(values)} would give the same results, because {dataset} has its "
                "own validation split"
            )


def check_unseen(trained: Settings, trial: Trial, data: TrialData) -> None:
    """Check that an encoder was not trained with the labels of the images that would now validate its probes.

    Args:
        trained: The settings of the trial that trained the encoder.
        trial: The trial that evaluates it.
        data: The arrays of this trial.

    Raises:
        InputError: It was trained with the labels of some of them.
    """
    settings, source = trial.settings, trial.source
    assert source is not None
    if not reads_labels(trained) or not settings.probe_labels:
        return
    has_same_images = data.probe.digest == source.labels_of  # two folders may hold the same images
    if not has_same_images and settings.evaluated_dataset != trained.dataset:
        return
    fit, val = fit_and_val(data.probe, settings.val_fraction, settings.split_seed)
    if val.images is not fit.images:
        return
    is_divided = source.leaves_out and (has_same_images or not source.labels_of)
    read = labels_to_read(trained, data.probe) if is_divided else None
    seen = len(val.index) if read is None else len(np.intersect1d(val.index, read))
    if seen:
        ways = ["set val_fraction: 0"]
        if read is not None:
            ways.append(f"keep val_fraction: {trained.val_fraction} and split_seed: {trained.split_seed}")
        if trial.control:
            ways.append(f"leave {trial.control} out of baseline")
        raise InputError(
            f"{trial.name}: its encoder was trained with the labels of {seen} of the {len(val.index)} validation "
            f"images: {', or '.join(ways)}"
        )


def refuse_unlabelled(settings: Settings, key: str = "usl_type") -> NoReturn:
    """Raise InputError, because an experiment needs the labels of all its pretraining images.

    Args:
        settings: The experiment.
        key: The setting that asks for them.
    """
    has_some = settings.dataset in parts.dataset and parts.dataset[settings.dataset].traits["unlabelled"]
    lacks = "also pretrains on images without labels" if has_some else "has no labels"
    raise InputError(f"{key}: {settings.usl_type}: dataset {settings.dataset} {lacks}")


def check_data(settings: Settings, data: TrialData) -> None:
    """Raise InputError if the settings need more than the data holds."""
    if settings.usl_epochs and settings.batch_size > data.count:
        which = f"the {data.count} training images of {settings.dataset}"
        if data.chosen is not None:
            which += f" that are not kept for validation, and usl_type: {settings.usl_type} reads no others"
        raise InputError(f"batch_size: {settings.batch_size} is more than {which}")
    encoder = parts.encoder[settings.encoder]
    if encoder.traits["check_images"] is not None:
        with explained(encoder):
            encoder.traits["check_images"](settings, data.pretrain.shape)
    check_evaluation(settings, data)
    if data.labels is not None:
        check_classes(settings.dataset, data.labels, (), f"usl_type: {settings.usl_type}")


def check_classes(dataset: str, labels: Labels, classes: Sequence[str], what: str) -> None:
    """Raise InputError if all training images have one class, even if the dataset declares more of them.

    Each class keeps an image in the fit split, so the fit split has the classes of all training images.

    Args:
        dataset: The dataset's name.
        labels: The labels of its training images.
        classes: The names of its classes; () if they are not known.
        what: What needs two classes, for the message.
    """
    present = np.unique(labels)
    if len(present) < 2:
        name = class_name(int(present[0]), classes)
        raise InputError(f"{dataset} has training images of a single class, {name}; {what} needs two")


def check_evaluation(settings: Settings, data: TrialData) -> None:
    """Raise InputError if the evaluation needs more than the data holds."""
    if not settings.probe_labels:
        if len(data.probe.train_images) < 2:
            raise InputError(f"{settings.evaluated_dataset} has a single image; an evaluation needs two")
        return
    if not data.probe.labelled:
        raise InputError(no_classes(settings.evaluated_dataset))
    assert data.probe.train_labels is not None
    check_classes(settings.evaluated_dataset, data.probe.train_labels, data.probe.classes, "an evaluation")
    fit, _ = fit_and_val(data.probe, settings.val_fraction, settings.split_seed)
    for part in parts.probes_in_use(settings):
        if part.traits["check_fit"] is not None:
            with explained(part):
                part.traits["check_fit"](settings, fit.labels, data.probe.classes)
    assert data.probe.test_images is not None
    tests, classes = len(data.probe.test_images), len(data.probe.classes)
    if tests < classes:
        raise InputError(
            f"{settings.evaluated_dataset}: k-means needs a test image per class, but {tests} are fewer than {classes}"
        )
