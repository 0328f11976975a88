"""Racing seeds: all points start with a few seeds, and only points whose comparison is open get more of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from raysweep.errors import InputError
from raysweep.space.expansion import MAX_TRIALS, make_controls, point_name, trial_name
from raysweep.space.model import FrozenDict, Sweep, Trial, Tune
from raysweep.space.race_settings import Race, Round
from raysweep.system.terminal import counted


def check_race(
    race: Race, tune: Tune, base: Mapping[str, Any], search: tuple[Mapping[str, Mapping[str, Any]], ...], where: str
) -> None:
    """Raise InputError if something else than the race would decide about seeds, trials or points."""
    who = f"{where}: seeds"
    if race.least > race.most:
        raise InputError(f"{who}: least: {race.least} is above most: {race.most}")
    if "seed" in base or any("seed" in space for space in search):
        raise InputError(f"{who}: a race gives every point the seeds 0, 1, 2, …; remove the setting seed")
    if tune.scheduler != "fifo":
        raise InputError(f"{who}: a race adds trials, and tune.scheduler: {tune.scheduler} stops some; remove one")
    if tune.searcher != "none":
        raise InputError(f"{who}: a race needs all points from the start, and tune.searcher: {tune.searcher} proposes "
                         "them one by one; remove one")  # fmt: skip
    for space in search:
        for name, spec in space.items():
            if "grid" not in spec:
                raise InputError(f"{who}: a race cannot draw points at random; write search.{name} as a grid")


def check_racers(sweep: Sweep, where: str) -> None:
    """Raise InputError if the sweep has nothing to compare, cannot say which point is best, or is too large."""
    points, controls = names_of_points(sweep)
    if len(points) < 2 and not controls:
        raise InputError(f"{where}: seeds: one point has nothing to race with; search two values, or add a baseline")
    if not all(trial.settings.probe_labels for trial in sweep.trials):
        raise InputError(f"{where}: seeds: a race compares scores, which need labels, and the evaluation reads "
                         "none; set seed to a list instead")  # fmt: skip
    if sweep.metric is None:
        raise InputError(f"{where}: seeds: a race needs a best point; set val_fraction above 0, or tune.metric")
    if largest(sweep) > MAX_TRIALS:
        raise InputError(f"{where}: seeds: up to {largest(sweep)} trials; at most {MAX_TRIALS} in one sweep")


def names_of_points(sweep: Sweep) -> tuple[list[str], list[str]]:
    """Return the names of the points of the search, and the names of the controls."""
    points = dict.fromkeys(trial.point for trial in sweep.trials if not trial.baseline)
    controls = dict.fromkeys(trial.point for trial in sweep.trials if trial.baseline)
    return list(points), list(controls)


def largest(sweep: Sweep) -> int:
    """Return the number of trials of the race if every point and control gets all seeds."""
    assert sweep.race is not None
    return sum(map(len, names_of_points(sweep))) * sweep.race.most


def race_words(sweep: Sweep) -> str:
    """Return the plan of a race: `7 points and 1 control, 3 seeds each, at most 10; 24 to 80 trials`."""
    assert sweep.race is not None
    points, controls = names_of_points(sweep)
    several = f" and {counted(len(controls), 'control')}" if controls else ""
    least = sum(1 for trial in sweep.trials if trial.settings.seed < sweep.race.least)
    return (
        f"{counted(len(points), 'point')}{several}, {sweep.race.least} seeds each, at most {sweep.race.most}; "
        f"{least} to {largest(sweep)} trials"
    )


def add_round(sweep: Sweep, added: Round, where: str = "race") -> Sweep:
    """Return the sweep with one more round: its points and controls have the seeds 0 to `added.seeds` - 1.

    Raises:
        InputError: a point does not belong to the sweep, or the round gives more seeds than the race may.
    """
    by_point: dict[str, list[Trial]] = {}
    for trial in sweep.trials:
        by_point.setdefault(trial.point, []).append(trial)
    strange = next((name for name in added.points if name not in by_point), None)
    if sweep.race is None or strange is not None or not sweep.race.least < added.seeds <= sweep.race.most:
        what = f"{added.seeds} seeds" if strange is None else strange
        raise InputError(f"{where}: {what} does not belong to this sweep; start a new sweep")
    racers = [name for name in added.points if not by_point[name][0].baseline]
    for name in racers:
        by_point[name] += [with_seed(by_point[name][0], seed) for seed in range(len(by_point[name]), added.seeds)]
    # A control is made from the trials of the points. It also gets the seeds that it lacks from earlier rounds.
    for control in make_controls([trial for name in racers for trial in by_point[name]], sweep.baseline):
        if control.point in added.points and control not in by_point[control.point]:
            by_point[control.point].append(control)
    trials = tuple(trial for name in by_point for trial in by_point[name])
    return replace(sweep, trials=trials, rounds=(*sweep.rounds, added))


def with_seed(trial: Trial, seed: int) -> Trial:
    """Return the trial of the same point with another seed."""
    varied = {**trial.varied, "seed": seed}
    settings = trial.settings.model_copy(update={"seed": seed})
    return Trial(trial_name(varied), point_name(varied), settings, FrozenDict(varied))


def complete_rounds(sweep: Sweep, ended: Collection[str]) -> Sweep:
    """Return the sweep with only the rounds before the first unfinished one. The first round always stays.

    A verdict reads only complete rounds. Otherwise the points whose trials happened to end first would be compared, and
    the others would count as points with missing seeds.

    Args:
        sweep: the sweep.
        ended: the names of the trials that have a result, whatever it is.
    """
    if not sweep.rounds:
        return sweep
    numbers = {trial.name: round_of(sweep, trial) for trial in sweep.trials}
    open_rounds = [number for name, number in numbers.items() if number and name not in ended]
    last = min(open_rounds, default=len(sweep.rounds) + 1) - 1
    kept = tuple(trial for trial in sweep.trials if numbers[trial.name] <= last)
    return replace(sweep, trials=kept, rounds=sweep.rounds[:last])


def round_of(sweep: Sweep, trial: Trial) -> int:
    """Return the number of the round that added a trial; 0 for the seeds that every point starts with."""
    assert sweep.race is not None
    if trial.settings.seed < sweep.race.least:
        return 0
    return next(
        number
        for number, added in enumerate(sweep.rounds, 1)
        if trial.point in added.points and trial.settings.seed < added.seeds
    )
