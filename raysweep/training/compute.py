"""The computing environment of a trial: its device, its threads, and the arrays that stay on the device."""

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
    """Let every library use `threads` threads inside the block. The last bits of results depend on this number.

    Afterwards PyTorch uses as many as before, for a program that runs a sweep and then computes something else.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(limits=threads):
            yield
    finally:
        torch.set_num_threads(before)


def device_of(gpu: bool) -> torch.device:
    """Return a trial's device: this process's CUDA device if `gpu` is set and one is visible, else the CPU."""
    return torch.device("cuda" if gpu and torch.cuda.is_available() else "cpu")


def resident(array: NDArray[Any], device: torch.device) -> Tensor:
    """Return a NumPy array as a tensor on `device`. On the CPU both share memory, which must not be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array).to(device)
