"""Small trials that run in this process."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from raysweep import space
from raysweep.data.dataset import Dataset
from raysweep.results.encoders import load_encoder
from raysweep.trial import run_trial

TINY = {"usl_epochs": 3, "le_epochs": 4, "batch_size": 50, "le_batch_size": 50, "probe_every": 1, "knn_k": 5}
CLOCK = "pretrain/images_per_s"


def few_digits(channels=1, train=200, test=80):
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 1, 8, 8) * 255 / 16).round().astype(np.uint8).repeat(channels, 1)
    labels = labels.astype(np.int64)
    return Dataset(
        "digits",
        tuple("0123456789"),
        images[:train],
        labels[:train],
        images[train : train + test],
        labels[train : train + test],
        None,
        "x",
    )


DATASETS = {("digits", 8, None): few_digits()}
HALF = {("digits", 8, None): few_digits(train=100, test=40)}


def trial_of(**settings):
    """Return a trial with these settings, which need not all have an effect, as in an older sweep."""
    return space.build({"base": {**TINY, **settings}}, {}, "test", recorded=True).trials[0]


def trial_on_half(**settings):
    """Return a trial for the images in `HALF`. It has as many steps as the same trial on `DATASETS`."""
    return trial_of(batch_size=25, le_batch_size=25, **settings)


class Killed(Exception):
    """Stands for the process being killed."""


def run(directory, trial, datasets=DATASETS, checkpoint_seconds=1e9, report=lambda at: None, **options):
    return run_trial(
        trial, datasets, directory, threads=1, gpu=True, checkpoint_seconds=checkpoint_seconds, report=report, **options
    )


def read_encoder(directory):
    """Return the encoder description and weights that a trial has saved."""
    saved = load_encoder(directory)
    names = ("architecture", "channels", "image_size", "embedding_dim")
    sizes = {name: getattr(saved, name) for name in names}
    return {**sizes, "encoder": saved.weights}


def run_on_half(directory, trial, **options):
    return run(directory, trial, HALF, **options)
