"""`raysweep.trainable`: one experiment as a function trainable, for a Tuner that the user makes."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import ray
from ray import tune

from raysweep import parts
from raysweep.config import FOLDER, METRICS, SETTINGS, Settings, about, default_of, has_metric, make_settings, plain
from raysweep.data.folders import check_exists, is_meant_unlabelled
from raysweep.data.selection import Datasets, TrialData, check_data, refuse_unlabelled, select_data
from raysweep.errors import InputError
from raysweep.results.checkpoints import load_plain, save_checkpoint
from raysweep.results.encoders import ENCODER
from raysweep.space import Trial
from raysweep.space.seen_labels import reads_labels
from raysweep.space.unlabelled import check_labels, needs_no_labels
from raysweep.system.memory import kept_memory
from raysweep.system.temporary import temporary_directory
from raysweep.trial_progress import ProgressReport

if TYPE_CHECKING:
    from raysweep.trial_run import TrialRun

CHECKPOINT_EVERY = "checkpoint_every"
"""The key for the number of epochs between two checkpoints. All other keys are settings."""
DEFAULTS = {"probe_every": 1, "images_every": 0, "projector_images": 0}
"""Defaults that differ from a sweep's defaults. They change no score."""
STRUCTURE = ("usl_type", "encoder", "layerwise", "head", "embedding_dim", "dataset", "image_size", "optimizer")
"""Settings that a trial cannot change between two checkpoints, as well as the parameters of the kinds `FIXED`."""
FIXED = ("encoder", "head", "dataset", "optimizer")
"""The kinds of parts whose parameters a trial cannot change. A checkpoint has the parameters of the optimiser."""
FRESH_EVALUATION: dict[str, Any] = {"probes_done": {}, "probe": None, "best_linear_probe": ""}
"""The saved state of an evaluation that has not started."""
_datasets: dict[tuple[str, bool], Datasets] = {}
"""The datasets that this worker process has loaded for its next trial too, by `data_dir` and `skip_bad_images`."""


def trainable(config: Mapping[str, Any]) -> None:
    """Run one experiment in a trial of Ray Tune.

    It reports after every epoch of pretraining, and once more after the evaluation. Every report has all metrics of the
    experiment and `epoch`. A metric is NaN until it has its first value, so the scores of the evaluation are numbers in
    the last report only. Each report has a checkpoint, from which Tune resumes the trial or lets another trial
    continue with other settings, as in population based training.

    A trial uses as many threads as it has CPUs, and CUDA if it has a GPU. A dataset is loaded once in each worker
    process; with `reuse_actors=True`, trials that follow one another share it.

    Args:
        config: Settings by name, as under `base` in a search space. `checkpoint_every` is the number of epochs between
            two checkpoints (default 1). `probe_every` is 1 if it is not given, and no pictures are drawn.

    Raises:
        RaysweepError: A setting is unknown or faulty, or a checkpoint does not fit the settings.
        ArithmeticError: A loss or weight became NaN or infinite.

    Example:
        >>> tuner = tune.Tuner(
        ...     raysweep.trainable,
        ...     param_space={"usl_type": "simclr", "strength": tune.uniform(0, 1), "usl_epochs": 20},
        ...     tune_config=tune.TuneConfig(metric="online/knn_val_accuracy", mode="max", num_samples=8),
        ... )
        >>> tuner.fit().get_dataframe()
    """
    settings, every = read_config(config)
    data = load_data(settings)
    context = tune.get_context()
    threads = max(1, int(context.get_trial_resources().required_resources.get("CPU", 1)))
    trial = Trial(context.get_trial_name(), context.get_trial_name(), settings, {})
    from raysweep.training.compute import fixed_threads
    from raysweep.trial_run import TrialRun

    with temporary_directory() as folder, fixed_threads(threads), kept_memory():
        restore(folder, settings)
        run = TrialRun(trial, data, folder, 1, bool(ray.get_gpu_ids()), [])
        reported = run.state.epoch
        try:
            for moment in run.steps(None, lambda: False):
                if isinstance(moment, ProgressReport) and moment.epoch > reported:
                    reported = moment.epoch
                    report(run, is_saved=reported % every == 0)
            report(run, is_saved=True)
        finally:
            run.events.close()


def read_config(config: Mapping[str, Any]) -> tuple[Settings, int]:
    """Return the settings of an experiment, and the number of epochs between two checkpoints.

    Raises:
        InputError: A setting is unknown or faulty.
    """
    values = {**DEFAULTS, "data_dir": default_of("data_dir"), **plain(config)}
    every = values.pop(CHECKPOINT_EVERY, 1)
    if type(every) is not int or every < 1:
        raise InputError(f"trainable: {CHECKPOINT_EVERY}: must be a whole number of epochs, at least 1, not {every!r}")
    if isinstance(values["data_dir"], str):
        values["data_dir"] = from_start(values["data_dir"])
    for name in ("dataset", "probe_dataset"):
        if str(values.get(name)).startswith(FOLDER):
            values[name] = FOLDER + from_start(values[name].removeprefix(FOLDER))
    settings = make_settings(values, "trainable")
    datasets = [settings.evaluated_dataset]
    asks = "probe_labels" in values
    if settings.probe_labels and needs_no_labels(settings, datasets, (), is_meant_unlabelled, "trainable", asks):
        settings = make_settings({**values, "probe_labels": False}, "trainable")
    check_labels(settings, values, (), "trainable")
    return settings, every


def from_start(path: str) -> str:
    """Return a path joined to the directory in which the worker started. Tune changes to the trial's directory."""
    return path if path.startswith("~") else os.path.join(os.environ.get("TUNE_ORIG_WORKING_DIR", ""), path)


def load_data(settings: Settings) -> TrialData:
    """Return the data of an experiment; this process keeps the datasets.

    Raises:
        InputError: A dataset cannot be loaded, or does not fit the settings.
    """
    for name in dict.fromkeys((settings.dataset, settings.evaluated_dataset)):
        check_exists(name)
    data = select_data(settings, _datasets.setdefault((settings.data_dir, settings.skip_bad_images), {}), load=True)
    if reads_labels(settings) and data.labels is None:
        refuse_unlabelled(settings)
    check_data(settings, data)
    return data


def report(run: TrialRun, is_saved: bool) -> None:
    """Report all metrics of the trial, with a checkpoint if `is_saved`."""
    names = [name for name in METRICS if has_metric(name, run.settings)]
    values = {**dict.fromkeys(names, math.nan), **run.metrics, "epoch": run.state.epoch}
    if not is_saved:
        tune.report(values)
        return
    with saved(run) as directory:
        tune.report(values, checkpoint=tune.Checkpoint.from_directory(directory))


@contextmanager
def saved(run: TrialRun) -> Iterator[Path]:
    """Yield a directory with the state of the trial in `checkpoints/`, and the encoder once it has been evaluated."""
    with TemporaryDirectory(dir=run.directory) as name:
        run.save(Path(name))
        if (run.directory / ENCODER).exists():
            shutil.copy(run.directory / ENCODER, name)
        yield Path(name)


def restore(folder: Path, settings: Settings) -> None:
    """Write the checkpoint from which Tune starts the trial, if there is one, into the trial's folder.

    Raises:
        InputError: The checkpoint is of another kind or damaged, or does not fit the settings.
    """
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return
    with checkpoint.as_directory() as directory:
        file = max(Path(directory, "checkpoints").glob("*.pt"), default=None)
        if file is None:
            raise InputError(f"{directory}: is not a checkpoint of raysweep.trainable")
        save_checkpoint(folder, adapted(load_plain(file), settings, str(file)))


def adapted(saved: dict[str, Any], settings: Settings, where: str) -> dict[str, Any]:
    """Return the saved state of a trial, changed so that a trial with these settings can continue from it.

    Args:
        saved: The content of a checkpoint.
        settings: The settings of the trial that continues from it.
        where: The start of messages.

    Raises:
        InputError: The settings are for another network, another optimiser or other images.
    """
    before, after = saved["settings"], settings.model_dump()
    for name in (*STRUCTURE, *parts.declared_parameters(FIXED)):
        if before.get(name, default_of(name)) != getattr(settings, name):
            raise InputError(
                f"{where}: was made with {name}: {before.get(name)!r}, so it cannot be continued with "
                f"{getattr(settings, name)!r}"
            )
    state = saved["state"]
    for optimizer in state["optimizers"]:
        for group in optimizer["param_groups"]:
            group["lr"] = settings.usl_lr
    is_pretrained = state["epoch"] >= settings.pretrain_epochs
    is_same = all(before.get(n, default_of(n)) == after[n] for n in SETTINGS if about(n).changes_scores)
    evaluation = saved["evaluation"] if is_pretrained and is_same else FRESH_EVALUATION
    return {**saved, "settings": after, "evaluation": evaluation}
