"""Points that Optuna proposes while a sweep runs, by the results of those before."""

from __future__ import annotations

import itertools
import warnings
from collections import deque
from collections.abc import Iterable, Mapping
from statistics import mean
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from ray.tune.search import Searcher

from raysweep.backends.stopping import Stopping
from raysweep.results.result import Result, describe_error
from raysweep.results.store import Store
from raysweep.results.sweep_file import read_proposals
from raysweep.space import Proposal, Sweep, Trial, draw, propose

ASKED = 20
"""How often Optuna is asked for a point that is new, before one is drawn at random."""
SPACE = "sub-space"


class Queue:
    """The trials of a sweep whose points a searcher proposes: those that are left, then one point after the other.

    Every point is in the results directory before a trial of it runs. What is proposed depends on the results there
    are and on the point's number alone, so a sweep that is resumed goes on as if it had not been interrupted.

    Args:
        sweep: with the points proposed so far.
        pending: trials of these points that are to run.
        results: how trials ended, by name; grows while the sweep runs.
        store: where proposals are recorded.
    """

    def __init__(self, sweep: Sweep, pending: Iterable[Trial], results: Mapping[str, Result], store: Store) -> None:
        self.sweep, self.results, self.store = sweep, results, store
        self.waiting = deque(pending)
        self.points = read_proposals(store.root)

    def next(self) -> Trial | None:
        """The trial that is to run next; None where the last one has been given out."""
        if not self.waiting and len(self.points) < self.sweep.tune.num_samples:
            point, grown = self._new_point()
            self.store.record_proposals([*self.points, point])
            there = set(self.sweep.trials)
            self.waiting.extend(trial for trial in grown.trials if trial not in there)
            self.points.append(point)
            self.sweep = grown
        return self.waiting.popleft() if self.waiting else None

    def _new_point(self) -> tuple[Proposal, Sweep]:
        """A point that is not there yet, and the sweep with it."""
        known = self._known()
        asked = (ask(self.sweep, known, len(self.points) * ASKED + attempt) for attempt in range(ASKED))
        # Of few choices Optuna may propose the best again and again. The search space has enough points: it is checked.
        drawn = (draw_point(self.sweep, sample) for sample in itertools.count())
        for point in itertools.chain(asked, drawn):
            grown = propose(self.sweep, point)
            if grown is not None:
                return point, grown
        raise AssertionError("the random draws do not end")

    def _known(self) -> list[FrozenTrial]:
        """The points as Optuna knows them, scored by the mean over their seeds.

        One of which a seed failed or was stopped has no score, and ranks below all that have one.
        """
        metric = self.sweep.metric
        assert metric is not None, "checked with the search space"
        ended: dict[str, list[Result | None]] = {}
        for trial in self.sweep.trials:
            if not trial.baseline:
                ended.setdefault(trial.point, []).append(self.results.get(trial.name))
        known = []
        for point, results in zip(self.points, ended.values(), strict=True):
            state, score = TrialState.RUNNING, None
            if all(results):
                scores = [of.metrics[metric] for of in results if of is not None and of.status == "finished"]
                state = TrialState.COMPLETE if len(scores) == len(results) else TrialState.PRUNED
                score = mean(scores) if state == TrialState.COMPLETE else None
            distributions = distributions_of(self.sweep, point.space)
            values = {key: point.values[name] for name, key in keys(self.sweep, point.space).items()}
            if SPACE in distributions:
                values[SPACE] = point.space
            known.append(create_trial(state=state, value=score, params=values, distributions=distributions))
        return known


def keys(sweep: Sweep, space: int) -> dict[str, str]:
    """The settings that are chosen in a sub-space, and Optuna's names of them: each sub-space has its own."""
    several = len(sweep.search) > 1
    return {
        name: f"{space}.{name}" if several else name
        for name, spec in sweep.search[space].items()
        if name != "seed" and "grid" not in spec
    }


def distributions_of(sweep: Sweep, space: int) -> dict[str, BaseDistribution]:
    """Optuna's names for what is chosen in a sub-space, among several which one, and the distributions."""
    found: dict[str, BaseDistribution] = {}
    if len(sweep.search) > 1:
        found[SPACE] = CategoricalDistribution(tuple(range(len(sweep.search))))
    for name, key in keys(sweep, space).items():
        how, values = next(iter(sweep.search[space][name].items()))
        if how == "choice":
            found[key] = CategoricalDistribution(tuple(values))
        elif how == "randint":
            found[key] = IntDistribution(values[0], values[1] - 1)
        else:
            found[key] = FloatDistribution(values[0], values[1], log=how == "loguniform")
    return found


def ask(sweep: Sweep, known: list[FrozenTrial], number: int) -> Proposal:
    """What Optuna's TPE proposes after the known points; the same for the same number."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would say every trial on standard error
    # Points that still run count as bad ones, so that those proposed meanwhile are others.
    sampler = optuna.samplers.TPESampler(seed=number, constant_liar=True)
    study = optuna.create_study(direction="maximize" if sweep.mode == "max" else "minimize", sampler=sampler)
    study.add_trials(known)
    trial = study.ask()
    space = 0
    if len(sweep.search) > 1:
        space = trial.suggest_categorical(SPACE, range(len(sweep.search)))
    fixed = {name: spec["grid"][0] for name, spec in sweep.search[space].items() if "grid" in spec and name != "seed"}
    distributions = distributions_of(sweep, space)
    return Proposal(
        space, fixed | {name: suggest(trial, key, distributions[key]) for name, key in keys(sweep, space).items()}
    )


def suggest(trial: optuna.Trial, name: str, of: BaseDistribution) -> Any:
    """A value of one parameter."""
    if isinstance(of, CategoricalDistribution):
        return trial.suggest_categorical(name, of.choices)
    if isinstance(of, IntDistribution):
        return trial.suggest_int(name, of.low, of.high)
    assert isinstance(of, FloatDistribution)
    return trial.suggest_float(name, of.low, of.high, log=of.log)


def draw_point(sweep: Sweep, sample: int) -> Proposal:
    """The `sample`-th point drawn at random."""
    space = sample % len(sweep.search)
    values = {}
    for name, spec in sweep.search[space].items():
        how, among = next(iter(spec.items()))
        if name != "seed":
            values[name] = among[0] if how == "grid" else draw(name, how, among, sample)
    return Proposal(space, values)


class Proposer(Searcher):
    """Gives Tune the trials of a queue, one whenever it has room.

    Results reach the queue as they are recorded, a trial's whole at its end, so nothing of what Tune tells is needed.
    """

    def __init__(self, queue: Queue, stopping: Stopping) -> None:
        super().__init__()
        self.queue, self.stopping = queue, stopping

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles it to restore a run, which is never done here (the store is the truth)."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        """The next trial, or that there is none; nothing is proposed any more once the sweep is to end."""
        if self.stopping.asked():
            return Searcher.FINISHED
        try:
            trial = self.queue.next()
        except OSError as fault:  # the trials at work go on; nothing runs of which a resume would not know
            warnings.warn(
                f"no more points are proposed, as they cannot be recorded: {describe_error(fault)}", stacklevel=2
            )
            return Searcher.FINISHED
        return Searcher.FINISHED if trial is None else {"trial": trial}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """It ended."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing, as the store is the truth."""
