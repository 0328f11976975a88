"""The table of named datasets. To add a dataset, add a function here that reads it into memory.

Readers are imported inside the functions, because commands import this module just to print their help.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.parts import dataset

if TYPE_CHECKING:
    from raysweep.data.dataset import Dataset


@dataclass(frozen=True)
class DatasetRequest:
    """A request for a dataset: which one, where its files are, and the size of the images."""

    name: str
    data_dir: Path
    """The folder that holds downloaded datasets."""
    size: int
    """The side in pixels to which the trial scales the images. `digits_m` draws its images at this size."""
    pretraining: bool
    """Whether to read also the unlabelled images, which only pretraining uses."""


@dataset(size=8, channels=1, images=1_797)
def digits(request: DatasetRequest) -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8×8, gray."""
    from raysweep.data.named import read_digits

    return read_digits(request.name)


@dataset(size=16, channels=3, images=1_797)
def digits_m(request: DatasetRequest) -> Dataset:
    """The images of `digits` over patches of photographs, 16×16, in colour, made as MNIST-M is made from MNIST."""
    from raysweep.data.named import read_digits_m

    return read_digits_m(request.name, request.size)


@dataset(size=28, channels=1, images=70_000)
def mnist(request: DatasetRequest) -> Dataset:
    """MNIST: 70,000 handwritten digits, 28×28, gray."""
    from raysweep.data.named import read_mnist

    return read_mnist(request.name, request.data_dir)


@dataset(size=28, channels=1, images=70_000)
def fashion_mnist(request: DatasetRequest) -> Dataset:
    """Fashion-MNIST: 70,000 pictures of clothes, 28×28, gray."""
    from raysweep.data.named import read_mnist

    return read_mnist(request.name, request.data_dir)


@dataset(size=32, channels=3, images=60_000)
def cifar10(request: DatasetRequest) -> Dataset:
    """CIFAR-10: 60,000 colour photographs of 10 classes, 32×32."""
    from raysweep.data.named import read_cifar

    return read_cifar(request.name, request.data_dir)


@dataset(size=32, channels=3, images=60_000)
def cifar100(request: DatasetRequest) -> Dataset:
    """CIFAR-100 with its 100 fine labels: 60,000 colour photographs, 32×32."""
    from raysweep.data.named import read_cifar

    return read_cifar(request.name, request.data_dir)


@dataset(size=32, channels=3, images=99_289)
def svhn(request: DatasetRequest) -> Dataset:
    """SVHN: 99,289 house-number digits, cropped, 32×32, in colour."""
    from raysweep.data.named import read_svhn

    return read_svhn(request.name, request.data_dir)


@dataset(size=96, channels=3, images=13_000, unlabelled=105_000)
def stl10(request: DatasetRequest) -> Dataset:
    """STL-10: 13,000 labelled and 100,000 unlabelled colour photographs, 96×96."""
    from raysweep.data.named import read_stl10

    return read_stl10(request.name, request.data_dir, request.pretraining)
