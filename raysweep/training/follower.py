"""The part of a data-parallel trial that runs in every process except the main one."""

from __future__ import annotations

from contextlib import suppress

import torch

from raysweep.config import Settings
from raysweep.data.selection import Datasets, select_data
from raysweep.errors import Diverged
from raysweep.system.memory import kept_memory
from raysweep.training.compute import device_of, fixed_threads, resident
from raysweep.training.distributed import DistributedContext
from raysweep.training.loop import pretrain
from raysweep.training.state import broadcast_state, fresh_state


def follow_trial(
    settings: Settings, datasets: Datasets, context: DistributedContext, *, threads: int, gpu: bool
) -> None:
    """Training loop for ranks above 0. Only rank 0 evaluates and writes results.

    Rank 0 runs `raysweep.trial.run_trial`.

    Args:
        settings: the settings of the trial.
        datasets: the datasets that the trial needs.
        context: the processes of the trial. This process is not the main one.
        threads: the number of threads of this process.
        gpu: whether to use CUDA where it is visible.
    """
    assert not context.is_main
    if not context.meet():
        return
    with fixed_threads(threads), kept_memory(), suppress(Diverged):  # the main process reports it
        data = select_data(settings, datasets)
        device = device_of(gpu)
        channels, size = data.pretrain.shape[1:3]
        state = fresh_state(settings, channels, size, device, data.classes)
        broadcast_state(state, context)
        labels = resident(data.labels, device) if data.labels is not None else None
        chosen = None if data.chosen is None else torch.from_numpy(data.chosen)
        images = resident(data.pretrain, device)
        for _ in pretrain(settings, state, images, context=context, labels=labels, chosen=chosen):
            pass
