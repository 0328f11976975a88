"""The choice of the finished trials that longer trials of a sweep continue."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace

from raysweep.config import SETTINGS, Settings, about
from raysweep.config.prefix import obstacle
from raysweep.results.final_state import FINAL_STATE, Manifest, misfit, numbers_of, read_manifest
from raysweep.results.result import Result
from raysweep.results.store import Store
from raysweep.space import Sweep, Trial
from raysweep.space.sharing import taking_over

KEEPS = "final_state"
"""The value of the setting `keep` with which a trial keeps its final state."""


def with_continuations(store: Store, sweep: Sweep, kept: Sequence[Result], share: bool = True) -> tuple[Sweep, str]:
    """Let the trials that have not ended continue shorter ones that have finished and kept their final state.

    Each continues the longest finished trial that differs from it only in `usl_epochs`. A scheduler or a searcher
    compares trials by the reports of all their epochs, so with one of them no trial continues another.

    Args:
        store: The results directory.
        sweep: The sweep.
        kept: The results of the trials that have ended and are not run again.
        share: Whether trials share pretrainings. A trial that takes over a pretraining does not count as one that
            continues, but keeps `continues` for the case that the state to take over is lost.

    Returns:
        The sweep, in which those trials have `continues`, and a text for the plan, such as `, 6 continue from shorter
        ones`. The text also says why trials do not continue a shorter trial that exists. It is empty if there is no
        such shorter trial.
    """
    finished = {result.trial: result for result in kept if result.status == "finished"}
    ended = {result.trial for result in kept}
    groups: dict[Settings, list[Trial]] = defaultdict(list)
    for trial in sweep.trials:
        if trial.name in finished and finished[trial.name].settings.get("keep") == KEEPS:
            groups[without_epochs(trial.settings)].append(trial)
    trials, reasons = [], Counter[str]()
    for trial in sweep.trials:
        shorter = [] if trial.name in ended else groups.get(without_epochs(trial.settings), [])
        shorter = [each for each in shorter if 0 < each.settings.usl_epochs < trial.settings.usl_epochs]
        reason = None
        for each in sorted(shorter, key=lambda each: each.settings.usl_epochs, reverse=True):
            reason = hindrance(store, sweep, each, trial)
            if reason is None:
                trial = replace(trial, continues=each.name)
                break
        if reason is not None:
            reasons[reason] += 1
        trials.append(trial)
    sweep = replace(sweep, trials=tuple(trials))
    count = len(continuing(sweep, ended, share))
    words = [f"{count} {'continues' if count == 1 else 'continue'} from shorter ones"] if count else []
    words += [f"{number} from the beginning ({reason})" for reason, number in reasons.items()]
    return sweep, "".join(f", {each}" for each in words)


def continuing(sweep: Sweep, ended: Collection[str], share: bool) -> frozenset[str]:
    """Return the names of the trials that continue shorter ones, if no state is lost.

    Args:
        sweep: The sweep that `with_continuations` returns.
        ended: The names of the trials that have ended.
        share: Whether trials share pretrainings.
    """
    names = frozenset(trial.name for trial in sweep.trials if trial.continues)
    return names - taking_over(sweep, ended) if share and names else names


def planned_continuations(store: Store, sweep: Sweep, kept: Sequence[Result], share: bool) -> Sweep:
    """Return the sweep for a plan, in which only the trials that will continue shorter ones have `continues`."""
    sweep, _ = with_continuations(store, sweep, kept, share)
    names = continuing(sweep, {result.trial for result in kept}, share)
    trials = (trial if trial.name in names else replace(trial, continues="") for trial in sweep.trials)
    return replace(sweep, trials=tuple(trials))


def without_epochs(settings: Settings) -> Settings:
    """Return settings that are equal for trials that differ only in `usl_epochs` and in what changes no score."""
    defaults = {name: Settings.model_fields[name].default for name in SETTINGS if not about(name).changes_scores}
    return settings.model_copy(update={**defaults, "usl_epochs": 0})


def hindrance(store: Store, sweep: Sweep, shorter: Trial, longer: Trial) -> str | None:
    """Return why a trial cannot continue a finished shorter one that differs only in `usl_epochs`; None if it can."""
    if sweep.tune.searcher != "none":
        return f"tune.searcher: {sweep.tune.searcher}"
    if sweep.tune.scheduler != "fifo":
        return f"tune.scheduler: {sweep.tune.scheduler}"
    if sweep.resources.workers > 1:
        return f"resources.workers: {sweep.resources.workers}"
    reason = obstacle(longer.settings)
    if reason is not None:
        return reason
    directory = store.trial(shorter.name)
    try:
        manifest = read_manifest(directory)
    except ValueError:
        return f"the final state of {shorter.name} is damaged"
    if manifest is None or (store.bucket is None and not (directory / FINAL_STATE).is_file()):
        return f"the final state of {shorter.name} is missing"
    why = misfit(manifest, longer.settings) or other_collapse(manifest, sweep, longer)
    return None if why is None else f"the final state of {shorter.name} {why}"


def other_collapse(manifest: Manifest, sweep: Sweep, trial: Trial) -> str | None:
    """Return why a final state does not fit `tune.collapse_stop`, which might have stopped the trial earlier."""
    collapse = None if trial.baseline else sweep.tune.collapse
    return None if manifest.collapse == numbers_of(collapse) else "was kept with another collapse_stop"
