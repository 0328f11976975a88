"""An estimate of the time that a sweep takes, from a few steps of each kind of trial that are run on this machine."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import torch

from raysweep import parts
from raysweep.config import SETTINGS, Settings
from raysweep.data.selection import Datasets, TrialData, data_of
from raysweep.data.splits import fit_and_val
from raysweep.errors import Diverged
from raysweep.probes.evaluation import Evaluation
from raysweep.probes.features import batch_of, extract_layers
from raysweep.probes.grid import ProbeSpec
from raysweep.probes.label_free import IMAGES, LIDAR_IMAGES, LIDAR_VIEWS
from raysweep.probes.linear import LinearProbes, train_classifiers
from raysweep.space import Sweep, Trial
from raysweep.space.sharing import taking_over
from raysweep.system.cpus import allowed_cpus
from raysweep.training.compute import device_of, fixed_threads, resident
from raysweep.training.loop import pretrain
from raysweep.training.state import State, fresh_state

ENOUGH_SECONDS, MOST_STEPS = 1.0, 8
"""A part of a trial is timed until it took this long or had this many steps, after one step that does not count."""
FIXED_SECONDS = 1.0
"""Seconds of a trial that do not depend on epochs, such as its files, kNN and k-means; 0.9 measured for digits."""
UNTIMED = ("seed", "split_seed", "usl_epochs", "le_epochs", "finetune_epochs", "data_dir")
"""Settings that do not change the time of a step."""


@dataclass(frozen=True)
class Estimate:
    """How long a sweep would take."""

    shortest: float
    """The seconds of its shortest trial."""
    longest: float
    """The seconds of its longest trial."""
    total: float
    """The seconds of the whole sweep, from the first trial to the last one."""
    at_once: int
    """The number of trials at a time."""


def estimate(sweep: Sweep, datasets: Datasets, local: bool, share: bool = True) -> Estimate:
    """Time a few steps of pretraining, of the features, of the linear probe and of fine-tuning, for each kind of trial.

    Trials of one kind agree in all settings except seeds, epochs and real numbers above 0, which hardly change the time
    of a step. Linear probes of single blocks and the probes that are off by default are not timed, and `FIXED_SECONDS`
    stand for kNN, k-means and the online measures. Each view for LiDAR counts as one more image. The time of its
    augmentation is left out. A trial with several workers is timed in one process.

    Args:
        sweep: The sweep. If a searcher proposes its points, examples stand for them.
        datasets: Its data, loaded.
        local: Whether the trials run one after the other in one process.
        share: Whether trials share pretrainings. A shared pretraining counts once.
    """
    resources = sweep.resources
    with fixed_threads(resources.cpu):
        costs: dict[tuple[object, ...], Costs] = {}
        seconds = []
        taking = taking_over(sweep) if share else frozenset()
        for trial in sweep.examples:
            kind = kind_of(trial.settings)
            if kind not in costs:
                costs[kind] = time_steps(trial, data_of(trial, datasets), resources.gpu > 0)
            seconds.append(costs[kind].seconds(trial.settings, pretrains=trial.name not in taking))
    at_once = 1 if local else max(1, allowed_cpus().count // (resources.cpu * resources.workers))
    if resources.gpu > 0 and not local:
        at_once = max(1, min(at_once, int(torch.cuda.device_count() / (resources.gpu * resources.workers))))
    if sweep.tune.max_concurrent:
        at_once = min(at_once, sweep.tune.max_concurrent)
    mean = sum(seconds) / len(seconds)
    total = max(mean * sweep.total / at_once, max(seconds))
    return Estimate(min(seconds), max(seconds), total, at_once)


def kind_of(settings: Settings) -> tuple[object, ...]:
    """Return what decides how long a step of a trial takes. For a real number this is whether it is above 0."""
    values = {name: getattr(settings, name) for name in SETTINGS if name not in UNTIMED}
    kinds = {name: value > 0 if isinstance(value, float) else value for name, value in values.items()}
    return settings.usl_epochs > 0, *kinds.items()


@dataclass(frozen=True)
class Costs:
    """The seconds that the parts of one kind of trial take."""

    epoch: float
    """An epoch of pretraining."""
    features: float
    """The features of all images of the evaluation, once, and of the views of LiDAR."""
    probe_epoch: float
    """An epoch of the linear probe."""
    finetune_epoch: float = 0.0
    """An epoch of fine-tuning."""

    def seconds(self, settings: Settings, pretrains: bool = True) -> float:
        """Return the seconds of a trial with these settings. A trial that takes over a state does not pretrain."""
        probe_epochs = int(getattr(settings, "le_epochs"))  # noqa: B009  # a part declares it
        pretraining = self.epoch * settings.pretrain_epochs if pretrains else 0.0
        tuning = self.finetune_epoch * int(getattr(settings, "finetune_epochs"))  # noqa: B009
        return FIXED_SECONDS + pretraining + self.features + self.probe_epoch * probe_epochs + tuning


def time_steps(trial: Trial, data: TrialData, gpu: bool) -> Costs:
    """Time the parts of a trial on its own data, with the functions that a trial runs. Nothing is written."""
    settings, device = trial.settings, device_of(gpu)
    channels, size = data.pretrain.shape[1:3]
    images = resident(data.pretrain, device)
    state = fresh_state(settings, channels, size, device, data.classes, images)
    epoch = 0.0
    if settings.pretrain_epochs:
        labels = resident(data.labels, device) if data.labels is not None else None
        longer = settings.model_copy(update={"usl_epochs": 2 + MOST_STEPS})  # an epoch may have a single step
        chosen = torch.from_numpy(data.chosen) if data.chosen is not None else None
        steps = pretrain(longer, state, images, pause=lambda: True, labels=labels, chosen=chosen)
        with suppress(Diverged):  # the trial will report it; here only the time matters
            epoch = seconds_of_step(steps, device) * (data.count // settings.batch_size)
    features, probe_epoch = time_evaluation(settings, state, data, device)
    return Costs(epoch, features, probe_epoch, time_fine_tuning(settings, state, data, device))


def time_evaluation(settings: Settings, state: State, data: TrialData, device: torch.device) -> tuple[float, float]:
    """Return the seconds for the features of all images of the evaluation, and for an epoch of the linear probe."""
    train = data.probe.train_images
    images = resident(train[: batch_of(train.shape[-1])], device)
    index, layers = torch.arange(len(images), device=device), parts.layers_read(settings)
    extracted = extract_layers(state.encoder, images, index, layers)

    def extractions() -> Iterator[None]:
        while True:
            extract_layers(state.encoder, images, index, layers)
            yield

    per_image = seconds_of_step(extractions(), device) / len(images)
    if not settings.probe_labels:
        whole = bool(parts.layers_read(settings, of_all_images=True))
        extracted_images = len(train) if whole else min(len(train), IMAGES)
        return per_image * (extracted_images + count_views(settings, len(train))), 0.0
    fit, val = fit_and_val(data.probe, settings.val_fraction, settings.split_seed)
    test = 0 if data.probe.test_images is None else len(data.probe.test_images)
    probe = parts.probe["linear"].arguments(settings)
    classes, batch_size, per_class = len(data.probe.classes), probe["le_batch_size"], probe["labels_per_class"]
    labelled = len(fit.index) if per_class is None else classes * per_class
    width = extracted[probe["probe_layer"]].shape[1]
    probes = LinearProbes([ProbeSpec("trunk", 1e-3, 0.0)], {"trunk": width}, classes, 0, device)
    count = min(labelled, batch_size)
    sample = {"trunk": torch.randn(count, width, device=device)}
    labels = torch.randint(classes, (count,), device=device)
    epochs = train_classifiers(probes, sample, labels, epochs=1 + MOST_STEPS, batch_size=batch_size)
    step = seconds_of_step(epochs, device)
    extracted_images = len(fit.index) + len(val.index) + test + count_views(settings, len(fit.index))
    return per_image * extracted_images, step * math.ceil(labelled / batch_size)


def count_views(settings: Settings, images: int) -> int:
    """Return the number of augmented views whose features LiDAR computes; 0 without LiDAR.

    `images` is the number of available images.
    """
    is_on = parts.probe["label_free"] in parts.probes_in_use(settings) and settings.strength > 0
    return LIDAR_VIEWS * min(images, LIDAR_IMAGES) if is_on else 0


def time_fine_tuning(settings: Settings, state: State, data: TrialData, device: torch.device) -> float:
    """Return the seconds of an epoch of fine-tuning, 0 without it."""
    part = parts.probe["finetune"]
    if part not in parts.probes_in_use(settings) or not parts.trains(settings):
        return 0.0
    images = data.pretrain, resident(data.pretrain, device)
    evaluation = Evaluation(settings, state.encoder, data.probe, images, device)
    arguments = {**part.arguments(settings), "finetune_epochs": 1 + MOST_STEPS, "standardize": False}
    tuning = part.function(evaluation, **arguments)
    drawn = evaluation.drawn(arguments["labels_per_class"])
    count, batch_size = len(evaluation.labels("fit") if drawn is None else drawn), int(arguments["finetune_batch_size"])
    with suppress(Diverged):
        return seconds_of_step(tuning.run(), device) * math.ceil(count / batch_size)
    return 0.0


def seconds_of_step(steps: Iterator[object], device: torch.device) -> float:
    """Return the mean seconds of a step. The first step is not timed, because it allocates memory."""
    count, started = 0, 0.0
    for count, _ in enumerate(itertools.islice(steps, 1 + MOST_STEPS)):
        if count == 0:
            started = now(device)
        elif now(device) - started >= ENOUGH_SECONDS:
            break
    return (now(device) - started) / count if count else 0.0


def now(device: torch.device) -> float:
    """Return the time in seconds, after the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
