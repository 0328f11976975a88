"""A searcher with which Optuna proposes points while a sweep runs, based on the results so far."""

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

from raysweep.backends.ray.limit import UnsavedSearcher
from raysweep.backends.ray.study import StudyWriter
from raysweep.backends.stopping import Stopping
from raysweep.results.result import Result, describe_error
from raysweep.results.store import Store
from raysweep.results.sweep_file import read_proposals
from raysweep.space import Proposal, Sweep, Trial, draw, propose

ASKED = 20
"""The number of times that Optuna is asked for a new point before one is drawn at random."""
SPACE = "sub-space"


class Queue:
    """The trials of a sweep whose points a searcher proposes: first the pending ones, then one point after the other.

    Every point is recorded in the results directory before any of its trials runs. A proposal depends only on the
    existing results and on the point's number, so a resumed sweep continues as if it had not been interrupted.

    Args:
        sweep: The sweep with the points proposed so far.
        pending: The trials of these points that must still run.
        results: The trials' results by name; the mapping grows while the sweep runs.
        store: The store that records the proposals.
        study: The writer of the study in a database (`tune.storage`); None if there is none.
    """

    def __init__(
        self,
        sweep: Sweep,
        pending: Iterable[Trial],
        results: Mapping[str, Result],
        store: Store,
        study: StudyWriter | None = None,
    ) -> None:
        self.sweep, self.results, self.store, self.study = sweep, results, store, study
        self.waiting = deque(pending)
        self.points = read_proposals(store.root)

    def next(self) -> Trial | None:
        """Return the next trial to run; None after the last one."""
        if not self.waiting and len(self.points) < self.sweep.tune.num_samples:
            point, grown = self._new_point()
            self.store.record_proposals([*self.points, point])
            existing = set(self.sweep.trials)
            self.waiting.extend(trial for trial in grown.trials if trial not in existing)
            self.points.append(point)
            self.sweep = grown
            self.write_study()
        return self.waiting.popleft() if self.waiting else None

    def write_study(self) -> None:
        """Write the present state of all points into the study, if there is one."""
        if self.study is not None:
            self.study.write(zip(self.sweep.proposed, self._known(), strict=True))

    def _new_point(self) -> tuple[Proposal, Sweep]:
        """Return a new point, and the sweep extended by it."""
        known = self._known()
        asked = (ask(self.sweep, known, len(self.points) * ASKED + attempt) for attempt in range(ASKED))
        # With few choices Optuna may propose the best point again and again. A check ensured that there are enough.
        drawn = (draw_point(self.sweep, sample) for sample in itertools.count())
        for point in itertools.chain(asked, drawn):
            grown = propose(self.sweep, point)
            if grown is not None:
                return point, grown
        raise AssertionError("the random draws do not end")

    def _known(self) -> list[FrozenTrial]:
        """Return the points so far as Optuna trials, scored by the mean over their seeds.

        A point with a seed that failed, was stopped or lacks the metric has no score and ranks below all points with a
        score.
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
                finished = [each for each in results if each is not None and each.status == "finished"]
                scores = [each.metrics[metric] for each in finished if metric in each.metrics]
                state = TrialState.COMPLETE if len(scores) == len(results) else TrialState.PRUNED
                score = mean(scores) if state == TrialState.COMPLETE else None
            distributions = distributions_of(self.sweep, point.space)
            values = {key: point.values[name] for name, key in keys(self.sweep, point.space).items()}
            if SPACE in distributions:
                values[SPACE] = point.space
            known.append(create_trial(state=state, value=score, params=values, distributions=distributions))
        return known


def keys(sweep: Sweep, space: int) -> dict[str, str]:
    """Return Optuna's name of each setting that it chooses in a sub-space. Names differ between sub-spaces."""
    several = len(sweep.search) > 1
    return {
        name: f"{space}.{name}" if several else name
        for name, spec in sweep.search[space].items()
        if name != "seed" and "grid" not in spec
    }


def distributions_of(sweep: Sweep, space: int) -> dict[str, BaseDistribution]:
    """Return the distributions of a sub-space by Optuna's names, with the choice of the sub-space if several."""
    distributions: dict[str, BaseDistribution] = {}
    if len(sweep.search) > 1:
        distributions[SPACE] = CategoricalDistribution(tuple(range(len(sweep.search))))
    for name, key in keys(sweep, space).items():
        distribution, values = next(iter(sweep.search[space][name].items()))
        if distribution == "choice":
            distributions[key] = CategoricalDistribution(tuple(values))
        elif distribution == "randint":
            distributions[key] = IntDistribution(values[0], values[1] - 1)
        else:
            distributions[key] = FloatDistribution(values[0], values[1], log=distribution == "loguniform")
    return distributions


def ask(sweep: Sweep, known: list[FrozenTrial], number: int) -> Proposal:
    """Return the proposal of Optuna's TPE after the known points. The same `number` gives the same proposal."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # otherwise Optuna prints every trial on standard error
    # Running points count as bad ones, so that new proposals differ from them.
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


def suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    """Return Optuna's value for one parameter."""
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(name, distribution.low, distribution.high)
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)


def draw_point(sweep: Sweep, sample: int) -> Proposal:
    """Return the `sample`-th random point."""
    space = sample % len(sweep.search)
    values = {}
    for name, spec in sweep.search[space].items():
        distribution, options = next(iter(spec.items()))
        if name != "seed":
            values[name] = options[0] if distribution == "grid" else draw(name, distribution, options, sample)
    return Proposal(space, values)


class Proposer(UnsavedSearcher):
    """Gives Tune the next trial of a queue whenever Tune has room.

    The queue reads each result from the recorded results when its trial ends, so Tune's reports are not needed.
    """

    def __init__(self, queue: Queue, stopping: Stopping) -> None:
        super().__init__()
        self.queue, self.stopping = queue, stopping

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial, or FINISHED if there is none or the sweep must end."""
        if self.stopping.must_stop():
            return Searcher.FINISHED
        try:
            trial = self.queue.next()
        except OSError as fault:  # running trials continue; a trial that cannot be recorded must not start
            warnings.warn(
                f"no more points are proposed, because they cannot be recorded: {describe_error(fault)}", stacklevel=2
            )
            return Searcher.FINISHED
        return Searcher.FINISHED if trial is None else {"trial": trial}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing, because results come from the store."""
