"""Where a trial computes: its device, its threads, and the arrays that stay on the device."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor


@contextmanager
def fixed_threads(threads: int) -> Iterator[None]:
    """Let every library compute on `threads` threads: results depend on the number in their last bits."""
    torch.set_num_threads(threads)
    with threadpool_limits(limits=threads):
        yield


def device_of(gpu: bool) -> torch.device:
    """The device of a trial: this process's CUDA device if it is asked for and visible, else the CPU."""
    return torch.device("cuda" if gpu and torch.cuda.is_available() else "cpu")


def resident(array: NDArray[Any], device: torch.device) -> Tensor:
    """A NumPy array as a tensor on `device`; on the CPU the two share their memory, which nothing writes to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array).to(device)
