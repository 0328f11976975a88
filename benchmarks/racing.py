"""Simulates races of seeds: how often any look shows a false difference, and how many trials a race needs.

    python benchmarks/racing.py --races 2000

Scores are point + seed + residual, with normal seeds and residuals. The unit is the standard deviation of a residual.
It prints a line for each case and writes `benchmarks/results/racing.json`.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import measure
import numpy as np

from raysweep.report.racing import is_open
from raysweep.report.statistics import compare_pairs, compare_with_control, fit_blocks
from raysweep.space import Race


@dataclass(frozen=True)
class Raced:
    """The outcome of one simulated race."""

    trials: int
    """The number of trials of the points, without the trials of the control."""
    false_pair: bool
    """Whether any look showed a difference between two points whose true means are equal."""
    false_control: bool
    """Whether any look showed a difference between the control and a point with the same true mean."""
    separated: bool
    """Whether the race ended with the best point separated from every other point and from the control."""
    best: int
    """The index of the point that was best at the end."""


def run(race, scores, metric, truth):
    """Race the points of one table with the rule of `raysweep.report.racing`.

    Args:
        race: the numbers of seeds.
        scores: the scores that the verdicts are about, shape (1 + points, most); the first row is the control.
        metric: the metric that ranks the points, of the same shape.
        truth: the true means, shape (1 + points,).
    """
    counts = np.full(len(scores), race.least)
    seen, divisor = [False, False], 2 * race.looks  # the tables of the pairs and of the control
    while True:
        present = np.arange(race.most) < counts[:, None]
        width = counts.max()
        values = np.where(present, scores, np.nan)[:, :width]
        effects = fit_blocks(np.where(present, metric, np.nan)[1:, :width]).effects
        best = int(np.argsort(-effects, kind="stable")[0])
        pairs = compare_pairs(values[1:], divisor=divisor)
        control = compare_with_control(values, 0, divisor)
        seen[0] |= any(pairs[i, j].differs for i, j in pairs if truth[1 + i] == truth[1 + j])
        seen[1] |= any(each.differs for row, each in control.items() if truth[row] == truth[0])
        rivals = [1 + i + j - best for i, j in pairs if best in (i, j) and is_open(pairs[i, j])]
        unclear = [1 + best, *rivals, *([0] if is_open(control[1 + best]) else [])]
        widest = int(counts[1:].max())
        if len(unclear) == 1 or widest == race.most:
            return Raced(int(counts[1:].sum()), *seen, len(unclear) == 1, best)
        counts[unclear] = widest + 1


def simulate(race, truth, spread=1.0, agreement=0.7, races=1000, state=0):
    """Return the outcomes of simulated races.

    Args:
        race: the numbers of seeds.
        truth: the true means, the control's first.
        spread: the standard deviation of the residuals of each point, or one for all.
        agreement: the correlation of the residuals of the metric that ranks the points with the residuals of the score.
        races: the number of races.
        state: the state of the random numbers.
    """
    random, truth = np.random.default_rng(state), np.asarray(truth, dtype=float)
    sizes = np.broadcast_to(spread, truth.shape)[:, None]
    outcomes = []
    for _ in range(races):
        seeds = random.standard_normal((2, 1, race.most))
        residuals = random.standard_normal((2, len(truth), race.most))
        residuals[1] = agreement * residuals[0] + np.sqrt(1 - agreement**2) * residuals[1]
        scores, metric = truth[:, None] + seeds + sizes * residuals
        outcomes.append(run(race, scores, metric, truth))
    return outcomes


def summary(outcomes):
    """Return the shares of races with a false difference, and the means over races."""
    shares = {
        "false pair": np.mean([each.false_pair for each in outcomes]),
        "false control": np.mean([each.false_control for each in outcomes]),
        "any false": np.mean([each.false_pair or each.false_control for each in outcomes]),
        "separated": np.mean([each.separated for each in outcomes]),
        "trials": np.mean([each.trials for each in outcomes]),
    }
    return {name: round(float(value), 4) for name, value in shares.items()}


@dataclass(frozen=True)
class Case:
    """The true means of the control and the points, the control's first, and the spread of each."""

    truth: Sequence[float]
    spread: Sequence[float] | float = 1.0


CASES = {
    "7 equal points and an equal control": Case([0.0] * 8),
    "the same, and one point scatters five times as much": Case([0.0] * 8, [1.0, 5.0, *[1.0] * 6]),
    "7 equal points 3 above the control": Case([-3.0] + [0.0] * 7),
    "one of 7 points is 3 above the others": Case([-3.0, 3.0] + [0.0] * 6),
    "one of 7 points is 6 above the others": Case([-3.0, 6.0] + [0.0] * 6),
    "2 good, 5 others 4 below": Case([-6.0, 0.0, 0.0] + [-4.0] * 5),
    "points 1.5 apart": Case([-3.0, *np.arange(7) * 1.5]),
}


def main():
    """Simulate, print and write the cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--races", type=int, default=1000)
    parser.add_argument("--most", type=int, default=10)
    arguments = parser.parse_args()
    race, summaries = Race(most=arguments.most), {}
    for name, case in CASES.items():
        summaries[name] = summary(simulate(race, case.truth, case.spread, races=arguments.races))
        print(name, summaries[name], flush=True)
    measure.save("racing", {"races": arguments.races, "most": arguments.most, "cases": summaries})


if __name__ == "__main__":
    main()
