"""The state of a running sweep: counts, the time left, and the best point so far. All displays of progress use it."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from statistics import fmean

from raysweep.results.result import Result
from raysweep.space import Sweep, Trial
from raysweep.space.controls import RANDOM
from raysweep.space.race import round_of
from raysweep.space.sharing import taking_over
from raysweep.system.terminal import counted, duration
from raysweep.trial_progress import Status


class Tally:
    """The state of the trials of a sweep.

    Args:
        sweep: The sweep.
        kept: Results of earlier runs, which count as done.
    """

    def __init__(self, sweep: Sweep, kept: list[Result]) -> None:
        self.sweep = sweep
        self.metric = sweep.metric  # stored, because the property looks at all trials
        taking = taking_over(sweep, {result.trial for result in kept})
        taking |= {result.trial for result in kept if result.pretrained_by}
        self.weights = {trial.name: 1.0 if trial.name in taking else weight(trial) for trial in sweep.trials}
        self.usual = fmean(weight(trial) for trial in sweep.examples)  # weight of a trial not yet proposed
        self.fractions: dict[str, float] = {result.trial: 1.0 for result in kept}
        # Stored, because adding it up at the end of every trial took 5 ms each time for 10,000 trials.
        self.whole = sum(self.weights.values())
        self.kept = self.done = sum(self.weights[name] for name in self.fractions)
        self.running: dict[str, Status] = {}
        self.reached: dict[str, float] = {}
        """The fraction done of each trial that has left its worker without an end."""
        self.reports: dict[str, tuple[Moment, Moment]] = {}
        """The first and the newest report of each running trial."""
        self.spent = self.worked = 0.0
        """The seconds that the ended trials of this run took, and their total weight."""
        self.most_running = 1
        self.failed = self.stopped = 0
        self.planned = Counter(trial.point for trial in sweep.missing_trials)
        self.values: dict[str, list[float]] = defaultdict(list)
        self.means: dict[str, Mean] = {}  # stored, because `best` needs them at the end of every trial
        self.protocols: set[str] = set()
        self.random: dict[str, list[float]] = defaultdict(list)
        """The scores of the random encoder, by the fingerprint of the evaluation."""
        results = {result.trial: result for result in kept}
        for trials in rounds_of(sweep):  # one after the other, so that a point has the mean of its last complete round
            self.planned.update(trial.point for trial in trials)
            for trial in trials:
                if trial.name in results:
                    self._count(results[trial.name])
        self.started = time.monotonic()

    def extend(self, sweep: Sweep) -> None:
        """The sweep has more trials than before. A point keeps its mean until its new seeds have finished."""
        self.sweep = sweep
        taking = taking_over(sweep, self.weights)
        new = [trial for trial in sweep.trials if trial.name not in self.weights]
        self.weights |= {trial.name: 1.0 if trial.name in taking else weight(trial) for trial in new}
        self.whole += sum(self.weights[trial.name] for trial in new)
        self.planned = Counter(trial.point for trial in sweep.trials)

    def begin(self, trial: Trial) -> None:
        """A worker has started the trial."""
        if trial.name not in self.weights:
            self.weights[trial.name] = weight(trial)
            self.whole += self.weights[trial.name]
            self.planned[trial.point] = len(self.sweep.seeds)  # a searcher proposes a point with every seed
        self.running[trial.name] = Status(self.reached.get(trial.name, 0.0), "starting")
        self.most_running = max(self.most_running, len(self.running))

    def progress(self, trial: Trial, status: Status) -> None:
        """The trial has reported its state."""
        now = Moment(time.monotonic(), status.fraction)
        if status.phase == "pretraining" and self.weights[trial.name] < weight(trial):
            # The trial pretrains itself, because the sweep shares nothing, or because a shared pretraining was lost.
            self.whole += weight(trial) - self.weights[trial.name]
            self.weights[trial.name] = weight(trial)
        self.running[trial.name] = status
        self.reports[trial.name] = (self.reports.get(trial.name, (now, now))[0], now)

    def leave(self, trial: Trial) -> None:
        """The trial has left its worker, to be resumed another time."""
        status = self.running.pop(trial.name, None)
        self.reports.pop(trial.name, None)
        if status is not None:
            self.reached[trial.name] = status.fraction

    def end(self, result: Result) -> None:
        """The trial has ended."""
        status = self.running.pop(result.trial, None)
        self.reports.pop(result.trial, None)
        fraction = 1.0 if status is None else status.fraction
        if result.status == "stopped":  # the rest of the trial does not count as work done
            self.whole -= self.weights[result.trial] * (1 - fraction)
            self.weights[result.trial] *= fraction
        self.done += self.weights[result.trial]
        if result.status != "failed":
            self.spent += result.wall_s
            self.worked += self.weights[result.trial]
        self.fractions[result.trial] = 1.0
        self._count(result)

    def outcome(self, result: Result) -> str:
        """Return how the trial ended, in words."""
        if result.status != "finished":
            return f"FAILED: {result.error}" if result.status == "failed" else str(result.error)
        metric = self.metric
        return f"{result.wall_s:.1f} s" + (
            f"  {metric} {result.metrics[metric]:.4f}" if metric in result.metrics else ""
        )

    def _count(self, result: Result) -> None:
        self.failed += result.status == "failed"
        self.stopped += result.status == "stopped"
        metric = self.metric
        if metric in result.metrics and not result.baseline and result.status == "finished":
            self.values[result.point].append(result.metrics[metric])
            values = self.values[result.point]
            if len(values) == self.planned[result.point]:
                self.means[result.point] = Mean(fmean(values), len(values))
            self.protocols.add(result.fingerprint)
        if metric in result.metrics and result.point == RANDOM and result.status == "finished":
            self.random[result.fingerprint].append(result.metrics[metric])

    def best(self) -> tuple[str, str] | None:
        """Return the best point so far whose planned seeds have all finished, and its score, in words.

        In a race of seeds, a point whose new seeds have not finished has the mean of its seeds of the round before.
        The score of the random encoder follows if it is known. None means that no two points can be compared.
        """
        means, protocols = dict(self.means), set(self.protocols)  # trials may end while a thread draws
        if not means or len(protocols) > 1 or self.total == 1:
            return None
        choose = max if self.sweep.mode == "max" else min
        point = choose(means, key=lambda point: means[point].value)
        mean = means[point]
        score = f"{self.metric} {mean.value:.4f} ({counted(mean.count, 'seed')})"
        random = [value for protocol in protocols for value in self.random.get(protocol, ())]
        return point, score + (f", random encoder {fmean(random):.4f}" if random else "")

    @property
    def total(self) -> int:
        """The expected number of trials at the end."""
        return max(self.sweep.total, len(self.weights))

    def rest(self) -> float:
        """Return the total weight of the trials that are not proposed yet."""
        return self.usual * (self.total - len(self.weights))

    def under_way(self) -> float:
        """Return the weight of the finished parts of the running trials."""
        return sum(self.weights[name] * status.fraction for name, status in list(self.running.items()))

    def left(self) -> str:
        """Return how many trials run and wait, and the time left, in words."""
        waiting = self.total - len(self.fractions) - len(self.running)
        seconds = self.seconds_left()
        return f"{len(self.running)} running, {waiting} waiting" + (f", about {rough(seconds)} left" if seconds else "")

    def seconds_left(self) -> float | None:
        """Return an estimate of the time left in seconds; None before a trial has ended or reported twice.

        The estimate multiplies the remaining weight by the seconds that this run has needed per weight so far. It
        assumes that as many trials run at a time as before.
        """
        spent, worked = self.spent, self.worked
        for name, (first, last) in list(self.reports.items()):
            spent += last.time - first.time
            worked += self.weights[name] * (last.fraction - first.fraction)
        if not worked:
            return None
        work = self.rest() + self.whole - self.done - self.under_way()
        at_a_time = max(1, min(self.most_running, self.total - len(self.fractions)))
        return max(0.0, work * spent / worked / at_a_time)

    def state(self) -> str:
        """Return how many trials run and wait, the time left, and the best point so far, in words."""
        best = self.best()
        return self.left() + (f"; best so far: {'  '.join(best)}" if best else "")

    def words(self) -> str:
        """Return the state of the sweep in one line."""
        return f"[{len(self.fractions)}/{self.total}] {self.state()}"


@dataclass(frozen=True)
class Mean:
    """The mean score of a point."""

    value: float
    count: int
    """The mean is over this number of seeds."""


@dataclass(frozen=True)
class Moment:
    """The moment of a report."""

    time: float
    """The monotonic time of the report."""
    fraction: float
    """The fraction of the trial that was done then."""


def rounds_of(sweep: Sweep) -> list[list[Trial]]:
    """Return the trials that each round of a race of seeds has added, in order. Without a race there is one round."""
    rounds: list[list[Trial]] = [[] for _ in range(len(sweep.rounds) + 1)]
    for trial in sweep.trials:
        rounds[round_of(sweep, trial) if sweep.rounds else 0].append(trial)
    return rounds


def rough(seconds: float) -> str:
    """Return an estimated time in words, without a precision that it does not have."""
    if seconds < 90:
        return f"{max(5, 5 * round(seconds / 5))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else duration(60 * round(seconds / 60))


def fit_to_width(text: str, width: int) -> str:
    """Return the text in at most `width` characters. The middle of a longer text becomes `…`.

    Example:
        `fit_to_width("alpha=0.1,strength=0.5,seed=3", 17)` gives `alpha=0.…5,seed=3`.
    """
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def weight(trial: Trial) -> float:
    """Return a trial's cost: its pretraining epochs, plus one for the evaluation.

    A trial of an evaluation does not pretrain, although its settings say for how long its encoder was pretrained.
    """
    return 1.0 if trial.source is not None else trial.settings.pretrain_epochs + 1.0
