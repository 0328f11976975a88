"""Helpers of the pretraining benchmarks: images, settings, and the bare step, which is the minimal work of a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import measure
import numpy as np
import torch
from torch import Tensor

from raysweep.augment.operations import to_float
from raysweep.augment.views import augment
from raysweep.config import Settings
from raysweep.data.dataset import Dataset
from raysweep.data.selection import Datasets
from raysweep.methods.method import Losses
from raysweep.methods.precision import autocast_for, precision_of
from raysweep.training.loop import pretrain
from raysweep.training.state import State, fresh_state

CPU = torch.device("cpu")
SHAPES = {"8×8×1": ("digits", 1, 8), "32×32×3": ("cifar10", 3, 32)}
"""The image shapes by name: the dataset with this shape, the channels and the side."""


def settings_for(shape: str, **changes: Any) -> Settings:
    """Return the default settings for images of a shape, with the default precision unless one is given."""
    return Settings.model_validate({"dataset": SHAPES[shape][0], "usl_lr": 1e-3, "usl_epochs": 10**6, **changes})


def precisions() -> tuple[str, ...]:
    """Return the precisions, with the default first."""
    default = precision_of(Settings(), "cpu")
    return (default, *(name for name in ("fp32", "bf16") if name != default))


def random_images(shape: str, count: int) -> Tensor:
    """Return random images, (count, C, H, W) uint8; the same arguments give the same images."""
    _, channels, size = SHAPES[shape]
    return torch.randint(256, (count, channels, size, size), generator=seeded(), dtype=torch.uint8)


def seeded() -> torch.Generator:
    """Return a generator whose draws are the same in every run."""
    return torch.Generator().manual_seed(0)


def random_datasets(shape: str, count: int) -> Datasets:
    """Return the datasets of an experiment on random images and labels."""
    name, _, size = SHAPES[shape]
    images, tests = random_images(shape, count).numpy(), random_images(shape, max(10, count // 5)).numpy()
    labels = np.arange(count) % 10
    dataset = Dataset(name, tuple("0123456789"), images, labels, tests, np.arange(len(tests)) % 10)
    return {(name, size, None): dataset}


def epochs(settings: Settings, images: Tensor) -> Callable[[], object]:
    """Return a function that pretrains for one more epoch with the loop of a trial."""
    state = fresh_state(settings, images.shape[1], images.shape[2], CPU)
    running: Iterator[object] = pretrain(settings, state, images)
    return lambda: next(running)


class BareSteps:
    """An epoch's steps reduced to forward, backward and optimiser on prepared tensors.

    Method, precision, batch and memory format are the same as in the loop. The views are made beforehand.
    """

    def __init__(self, settings: Settings, images: Tensor, prepared: int = 4) -> None:
        self.settings, self.steps = settings, len(images) // settings.batch_size
        self.state: State = fresh_state(settings, images.shape[1], images.shape[2], CPU)
        self.state.encoder.train()
        self.batches = []
        for part in images.split(settings.batch_size)[: min(prepared, self.steps)]:
            views = augment(part.repeat(settings.views, 1, 1, 1), settings, seeded())
            self.batches.append((views, to_float(part)))

    def step(self, number: int = 0) -> None:
        """Train on one of the prepared batches."""
        losses = self.losses(number)
        self.optimizer.zero_grad()
        losses.total.backward()
        self.optimizer.step()

    def losses(self, number: int = 0) -> Losses:
        """Compute the losses of one of the prepared batches in the settings' precision."""
        views, clean = self.batches[number % len(self.batches)]
        with autocast_for(self.settings, views):
            losses: Losses = self.state.method(views, clean)
        return losses

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser of the loop."""
        return self.state.optimizers[0]

    def epoch(self) -> None:
        """Run as many steps as an epoch has."""
        for number in range(self.steps):
            self.step(number)


def multiplication_rate(dtype: torch.dtype, sizes: tuple[int, ...] = (512, 1024, 2048)) -> dict[str, float]:
    """Return GFLOP per second of square matrix products on PyTorch's current threads, by size; best of eight."""
    rates = {}
    for size in sizes:
        a, b = (torch.randn(size, size, generator=seeded()).to(dtype) for _ in range(2))
        out = torch.empty(size, size, dtype=dtype)
        best = float("inf")
        for _ in range(8):
            began = time.perf_counter()
            torch.mm(a, b, out=out)
            best = min(best, time.perf_counter() - began)
        rates[str(size)] = measure.significant(2 * size**3 / best / 1e9)
    return rates
