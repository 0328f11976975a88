"""A pretraining that several trials share: handing out its state, and taking it over.

A trial that takes over a state continues in the middle of its last epoch of pretraining: the epoch is trained, and
nothing of it is measured or logged yet. So it computes everything at the end of its pretraining itself, as if it had
trained. Only the online measures during pretraining can differ between the trials that share it. The trial that
pretrains computes them for the others too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raysweep.data.selection import Datasets, TrialData, data_of
from raysweep.errors import Diverged
from raysweep.probes.evaluation import Evaluation
from raysweep.results.event_records import records_of, with_scalar
from raysweep.results.handout import TAKEN, Handout, Taken
from raysweep.results.store import Store
from raysweep.space import Trial
from raysweep.space.sharing import HandsOut, Role, TakesOver, online_key
from raysweep.system.files import check_held
from raysweep.trial_progress import ONLINE

BEFORE_ONLINE = "pretrain/rankme"
"""The metric that every online measurement reports directly before the accuracy of kNN."""
Measured = dict[str, dict[int, float | None]]
"""For each key of `online_key`: by epoch, the accuracy of kNN, or None without validation images."""


class Sharing:
    """The part of a trial in a shared pretraining. This class is for a trial that shares none."""

    def take(self) -> Taken | None:
        """Return the state that the trial takes over; None if it pretrains itself."""
        return None

    def begin(self, encoder: Any, data: TrialData, images: Tensor, device: torch.device) -> None:
        """Prepare the online measures for the trials that share the pretraining.

        Args:
            encoder: The encoder that is trained.
            data: The arrays of this trial.
            images: The images of pretraining on the device.
            device: The device.
        """

    def measure(self, epoch: int) -> None:
        """Measure the accuracy of kNN for the other trials, after the trial's own online measures of this epoch."""

    def state_dict(self) -> Measured:
        """Return what a checkpoint of the trial holds, so that the measures continue when the trial resumes."""
        return {}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned. Trials whose earlier measures are missing are no longer covered."""

    def hand_out(
        self, directory: Path, epoch: int, last: Mapping[str, float], content: Callable[[], Mapping[str, Any]]
    ) -> None:
        """Hand out the state after an epoch, if other trials need it.

        Args:
            directory: The directory of this trial.
            epoch: The number of finished epochs.
            last: The metrics of the last one.
            content: Returns the fields of `Taken` that a checkpoint has too.

        Raises:
            OSError: The state cannot be written.
        """


class TakingOver(Sharing):
    """The part of a trial that takes over a state.

    Args:
        trial: The trial.
        handout: The place of the states.
    """

    def __init__(self, trial: Trial, handout: Handout) -> None:
        self.trial, self.handout = trial, handout

    def take(self) -> Taken | None:
        """See `Sharing`. A state that is lost or damaged is not taken over."""
        key = online_key(self.trial.settings)
        state = self.handout.read(self.trial.settings.pretrain_epochs, key)
        if state is None:
            return None
        content, records = state
        metrics = dict(content["metrics"])
        if key != content["key"]:
            if key not in content["measured"]:
                return None
            accuracies = content["measured"][key]
            records = with_scalar(records, ONLINE, BEFORE_ONLINE, accuracies)
            metrics = with_accuracy(metrics, accuracies)
        kept = {name: content[name] for name in TAKEN}
        return Taken(**kept, metrics=metrics, records=records)


class HandingOut(Sharing):
    """The part of the trial that pretrains for others.

    Args:
        trial: The trial.
        role: What it hands out.
        handout: The place of the states.
        datasets: The datasets of the sweep, for the online measures of the other trials.
    """

    def __init__(self, trial: Trial, role: HandsOut, handout: Handout, datasets: Datasets) -> None:
        self.trial, self.role, self.handout, self.datasets = trial, role, handout, datasets
        self.variants: dict[str, Evaluation] = {}
        self.measured: Measured = {}

    def begin(self, encoder: Any, data: TrialData, images: Tensor, device: torch.device) -> None:
        """See `Sharing`."""
        for other in self.role.variants:
            probe = data_of(other, self.datasets).probe
            evaluation = Evaluation(other.settings, encoder, probe, (data.pretrain, images), device)
            self.variants[online_key(other.settings)] = evaluation
            self.measured[online_key(other.settings)] = {}

    def measure(self, epoch: int) -> None:
        """See `Sharing`. Trials whose measure diverges are not covered any more, so they pretrain themselves."""
        for key, evaluation in list(self.variants.items()):
            try:
                self.measured[key][epoch] = evaluation.online_accuracy()
            except Diverged:
                self._drop(key)

    def state_dict(self) -> Measured:
        """See `Sharing`."""
        return self.measured

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """See `Sharing`."""
        for key in list(self.variants):
            if key in saved:
                self.measured[key] = dict(saved[key])
            else:
                self._drop(key)

    def hand_out(
        self, directory: Path, epoch: int, last: Mapping[str, float], content: Callable[[], Mapping[str, Any]]
    ) -> None:
        """See `Sharing`."""
        if epoch not in self.role.epochs:
            return
        check_held(directory)
        key = online_key(self.trial.settings)
        state = {**content(), "last": dict(last), "trial": self.trial.name, "key": key, "measured": self.measured}
        self.handout.write(epoch, state, records_of(directory), [key, *self.measured])

    def _drop(self, key: str) -> None:
        del self.variants[key], self.measured[key]


ALONE = Sharing()
"""The part of a trial that shares no pretraining."""


def sharing_of(trial: Trial, role: Role | None, store: Store, datasets: Datasets) -> Sharing:
    """Return the part of a trial in a shared pretraining from its role; None is the role of a trial that shares none.

    Args:
        trial: The trial.
        role: Its role.
        store: The results directory of the sweep.
        datasets: The datasets of the sweep.
    """
    if role is None:
        return ALONE
    handout = Handout(store, role.digest)
    return TakingOver(trial, handout) if isinstance(role, TakesOver) else HandingOut(trial, role, handout, datasets)


def with_accuracy(metrics: Mapping[str, float], accuracies: Mapping[int, float | None]) -> dict[str, float]:
    """Return the newest metrics with the newest accuracy of kNN, in the order in which a trial alone measures them.

    The measures at step 0 are not among the metrics of a trial.
    """
    newest = accuracies.get(max(accuracies, default=0))
    values: dict[str, float] = {}
    for name, value in metrics.items():
        if name != ONLINE:
            values[name] = value
        if name == BEFORE_ONLINE and newest is not None:
            values[ONLINE] = newest
    return values
