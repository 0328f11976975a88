"""The order in which the trials of a sweep start, where several trials share one pretraining."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from raysweep.results.handout import Handout
from raysweep.results.result import describe_error, read_attempt
from raysweep.results.store import Store
from raysweep.space import Trial
from raysweep.space.sharing import Pretraining, Role, TakesOver, hands_out, online_key, pretrainings_of

LOOK_SECONDS, LOOK_SECONDS_BUCKET = 0.5, 5.0
"""Seconds between two checks for a state. In a bucket each check is a request."""


@dataclass
class Group:
    """The unfinished trials of one pretraining."""

    pretraining: Pretraining
    waiting: list[Trial]
    """The trials that have not started in this run."""
    running: set[str] = field(default_factory=set)
    """The names of the trials that run."""
    leader: str = ""
    """The name of the trial that pretrains for the others at the moment; empty if there is none."""
    is_kept: bool = False
    """Whether a trial has failed or left, so that the state must be kept for a resume."""
    looked: dict[int, float] = field(default_factory=dict)
    """For each epoch, the monotonic time of the last check for its state."""
    states: dict[int, frozenset[str]] = field(default_factory=dict)
    """For each epoch that had a state at the last check: the keys of the trials that can take it over."""


@dataclass(frozen=True)
class Start:
    """A trial that starts now."""

    trial: Trial
    role: Role | None
    """Its part in a shared pretraining; None if it shares none."""


class PretrainingQueue:
    """The trials of a sweep that must still run. Trials that wait for a pretraining start after it.

    Args:
        pending: The trials.
        store: The results directory of the sweep.
        share: Whether trials share pretrainings.
        ahead: The number of shared pretrainings that may be unfinished while another one starts. A larger number leaves
            fewer workers idle at the end, but more states in the results directory.
    """

    def __init__(self, pending: Iterable[Trial], store: Store, share: bool, ahead: int = 0) -> None:
        pending = list(pending)
        self.store, self.ahead = store, ahead
        shared = {}
        if share:
            shared = {trial.name: each for each in pretrainings_of(pending) for trial in each.trials}
        self.unopened: list[Group] = []
        for trial in pending:
            pretraining = shared.get(trial.name)
            if pretraining is None:
                self.unopened.append(Group(Pretraining("", (trial,)), [trial]))
            elif pretraining.trials[0] is trial:
                self.unopened.append(Group(pretraining, list(pretraining.trials)))
        self.unopened.reverse()  # the last one is next
        self.open: list[Group] = []
        """The groups in which a trial has started and another one waits or runs."""
        self.groups: dict[str, Group] = {}
        """The group of each running trial, by the trial's name."""

    def is_empty(self) -> bool:
        """Return whether no trial is left to start."""
        return not self.unopened and not any(group.waiting for group in self.open)

    def next(self) -> Start | None:
        """Return the trial that starts next. Call `ended` when the trial has ended.

        Return None if no trial is left, or if all remaining trials wait for a running pretraining.
        """
        unfinished = sum(1 for group in self.open if group.waiting)
        if self.unopened and unfinished < self.ahead:
            return self._begin(self.unopened.pop())
        for group in self.open:
            start = self._next_of(group)
            if start is not None:
                return start
        return self._begin(self.unopened.pop()) if self.unopened else None

    def ended(self, trial: Trial, failed: bool, left: bool = False) -> list[Trial]:
        """Take note that a trial has ended.

        Args:
            trial: The trial.
            failed: Whether it failed.
            left: Whether it left without a result, for example because the sweep ends early.

        Returns:
            The trials that cannot run, because this trial failed while it pretrained for them.
        """
        group = self.groups.pop(trial.name)
        group.running.discard(trial.name)
        group.is_kept |= failed or left
        dependents: list[Trial] = []
        if group.leader == trial.name:
            group.leader, group.looked = "", {}
            if failed:
                able = [other for other in group.waiting if self._is_able(group, other)]
                dependents = [other for other in group.waiting if other not in able]
                group.waiting = [other for other in group.waiting if other not in dependents]
        if not group.waiting and not group.running:
            self.open.remove(group)
            if (group.states or len(group.pretraining.trials) > 1) and not group.is_kept:
                try:
                    Handout(self.store, group.pretraining.digest).remove()
                except OSError as fault:  # the end of the sweep tries it again
                    warnings.warn(f"a shared pretraining cannot be removed: {describe_error(fault)}", stacklevel=2)
        return dependents

    def _begin(self, group: Group) -> Start:
        """Open a group and return its first trial."""
        self.open.append(group)
        start = self._next_of(group)
        assert start is not None, "no trial of the group runs"
        return start

    def _next_of(self, group: Group) -> Start | None:
        """Return a trial of the group that may start; None if there is none."""
        ready = next((trial for trial in group.waiting if self._is_ready(group, trial)), None)
        if ready is None and group.leader:  # a trial with a checkpoint needs no state, as after a run that shared none
            ready = next((trial for trial in group.waiting if self._has_checkpoint(trial)), None)
        if ready is not None:
            return self._start(group, ready, TakesOver(group.pretraining.digest))
        if group.leader or not group.waiting:
            return None
        leader = self._choose_leader(group.waiting)
        others = [trial for trial in group.waiting if trial is not leader]
        role = hands_out(leader, group.pretraining, others) if others else None
        group.leader = leader.name
        return self._start(group, leader, role)

    def _start(self, group: Group, trial: Trial, role: Role | None) -> Start:
        group.waiting = [other for other in group.waiting if other is not trial]
        group.running.add(trial.name)
        self.groups[trial.name] = group
        return Start(trial, role)

    def _choose_leader(self, waiting: Sequence[Trial]) -> Trial:
        """Return the longest trial, which pretrains.

        Among equally long trials, one that an earlier run has begun is best, and then one that continues a shorter one.
        """

        def rank(trial: Trial) -> tuple[int, bool, bool]:
            has_begun = read_attempt(self.store.trial(trial.name)) is not None
            return trial.settings.pretrain_epochs, has_begun, bool(trial.continues)

        return max(waiting, key=rank)

    def _has_checkpoint(self, trial: Trial) -> bool:
        """Return whether the trial resumes from a checkpoint of its own in this directory."""
        return any(self.store.trial(trial.name).glob("checkpoints/*.json"))

    def _is_able(self, group: Group, trial: Trial) -> bool:
        """Return whether a trial can run although the leader of its group has failed.

        If there is a state of its last epoch, the pretraining did not fail. A trial that cannot take the state over,
        because it evaluates otherwise during pretraining, then pretrains itself.
        """
        is_ready = self._is_ready(group, trial) or self._has_checkpoint(trial)
        return is_ready or trial.settings.pretrain_epochs in group.states

    def _is_ready(self, group: Group, trial: Trial) -> bool:
        """Return whether the state that the trial can take over is there."""
        if not group.pretraining.digest:
            return False
        epoch, key = trial.settings.pretrain_epochs, online_key(trial.settings)
        if key not in group.states.get(epoch, ()):  # a later leader may hand out a state for these trials too
            every = LOOK_SECONDS if self.store.bucket is None else LOOK_SECONDS_BUCKET
            if time.monotonic() - group.looked.get(epoch, -math.inf) < every:
                return False
            group.looked[epoch] = time.monotonic()
            covered = Handout(self.store, group.pretraining.digest).covered(epoch)
            if covered is None:
                return False
            group.states[epoch] = covered
        return key in group.states[epoch]


def failure(leader: str, error: str | None) -> str:
    """Return the error of a trial that depends on a failed pretraining."""
    return f"the pretraining that it shares with {leader} failed: {error}"


def cut(pending: Sequence[Trial], size: int, share: bool) -> Iterator[list[Trial]]:
    """Cut the trials into parts of about `size` trials, so that the trials of a pretraining are in one part.

    Args:
        pending: The trials.
        size: The number of trials of a part.
        share: Whether trials share pretrainings. If not, the trials keep their order.
    """
    groups: dict[str, list[Trial]] = {}
    shared = {}
    if share:
        shared = {trial.name: each.digest for each in pretrainings_of(pending) for trial in each.trials}
    for trial in pending:
        groups.setdefault(shared.get(trial.name, trial.name), []).append(trial)
    part: list[Trial] = []
    for group in groups.values():
        if part and len(part) + len(group) > size:
            yield part
            part = []
        part += group
    if part:
        yield part
