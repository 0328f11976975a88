"""Running the trials of a sweep: the preparation of its data and its backend, its end, and its interruption."""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from raysweep import preparation
from raysweep.backends.progress import Progress, TrialProgress
from raysweep.backends.stopping import Stopping
from raysweep.errors import InputError, ResultsLost, SweepBrokeOff, SweepInterrupted
from raysweep.preparation import importing_report
from raysweep.results.cleaning import clean_up
from raysweep.results.encoders import ENCODER
from raysweep.results.feature_cache import cache_words
from raysweep.results.result import Result, describe_error, note_traceback
from raysweep.results.store import TAKE_SECONDS, Store, shown_place
from raysweep.results.sweep_file import write_race
from raysweep.space import Sweep, Trial, missing_words, race_words, words_without_labels
from raysweep.space.hints import long_defaults, seeds_apart
from raysweep.space.sharing import count_pretrainings
from raysweep.system.files import write_atomically
from raysweep.system.places import settle_cache_directory, settle_ray_directory, shown_path
from raysweep.system.terminal import counted

if TYPE_CHECKING:
    from raysweep.backends.sweep_run import SweepRun
    from raysweep.data.selection import Datasets
    from raysweep.report.contents import Report


@dataclass(frozen=True)
class Outcome:
    """A sweep whose trials have run, or were found finished, and its report."""

    store: Store
    sweep: Sweep
    report: Report


@dataclass(frozen=True)
class RunOptions:
    """How and where a sweep runs."""

    local: bool = False
    """Run the trials one after the other in this process, without Ray."""
    address: str | None = None
    """The address of a Ray cluster; None takes `RAY_ADDRESS`, else Ray is started on this machine."""
    command: Callable[[Store], str] | None = None
    """Returns the command that resumes a sweep, for messages; None for a call in Python."""
    owns_process: bool = True
    """Whether this process ends after the sweep: True for a command, False for a notebook."""
    share: bool = True
    """Whether trials share a pretraining where this changes no result."""
    parts: Sequence[Callable[..., Any]] = ()
    """The parts that a resume in Python needs again."""

    def resume_command(self, store: Store) -> str:
        """Return the command that resumes a sweep in the same way, for messages."""
        if self.command is not None:
            return self.command(store)
        words = [repr(store.place)]
        words += ["local=True"] if self.local else []
        words += [f"address={self.address!r}"] if self.address is not None else []
        words += [f"parts=[{', '.join(part.__name__ for part in self.parts)}]"] if self.parts else []
        words += ["share=False"] if not self.share else []
        return f"raysweep.resume({', '.join(words)})"


DEFAULT = RunOptions()
"""On Ray, as a command."""


def run_new(
    sweep: Sweep,
    store: Store,
    options: RunOptions,
    progress: Progress,
    recorded: Mapping[str, str] = MappingProxyType({}),
    encoder: bytes | None = None,
) -> Outcome:
    """Create the results directory of a new sweep, run its trials and write its report.

    Args:
        sweep: the sweep.
        store: its planned results directory.
        options: how and where the trials run.
        progress: told what happens.
        recorded: the digests, by name, that datasets must have.
        encoder: the content of the encoder file that all trials evaluate; None if there is no such file.
    """
    datasets, words = prepare(sweep, store, recorded, options, progress)
    # Another process may have taken the name in the meantime: from here on the store is the one that was created.
    # An evaluation also records the images that its encoders were pretrained on, which it does not read.
    digests = {**recorded, **preparation.digests(datasets)}
    store = store.create(sweep, {**preparation.provenance(), "datasets": digests})
    with store.lock(wait=TAKE_SECONDS), explaining(store, options):
        if encoder is not None:  # first of all: without it the evaluation could not be resumed
            write_atomically(store.root / ENCODER, encoder)
            store.push()
        describe_for_tensorboard(store, sweep)
        count = len(sweep.encoders)
        evaluated = f" of {counted(count, 'trained encoder')}" if count else ""
        planned = race_words(sweep) if sweep.races else f"{counted(sweep.total, 'trial')}{evaluated}"
        progress.tell(f"{store.place}: {planned}{pretrainings(sweep, options.share)}, {words}")
        for words in filter(None, (words_without_labels(sweep), missing_words(sweep), seeds_apart(sweep))):
            progress.tell(words)
        if long_defaults(sweep):
            progress.tell(f"{long_defaults(sweep)} --dry-run --estimate says how long the sweep takes.")
        return finish(run_trials(sweep, store, datasets, [], options, progress), store, options)


def pretrainings(sweep: Sweep, share: bool, done: Collection[str] = ()) -> str:
    """Return text such as `, 3 pretrainings`.

    It is empty if there are as many pretrainings as trials, or no pretrainings, or a searcher.

    Args:
        sweep: The sweep. In a race of seeds, the trials of the rounds so far count.
        share: Whether trials share pretrainings.
        done: The names of the trials that do not run.
    """
    count, trials = count_pretrainings(sweep, share, done), sweep.total - len(done)
    is_told = 0 < count < trials and sweep.tune.searcher == "none"
    return f", {counted(count, 'pretraining')}" if is_told else ""


def describe_for_tensorboard(store: Store, sweep: Sweep) -> None:
    """Write what TensorBoard shows for the whole sweep, also into a bucket."""
    from raysweep.results.sweep_events import write_sweep_events  # takes half a second, which a refused sweep saves

    write_sweep_events(store.root, sweep)
    store.push()


def prepare(
    sweep: Sweep, store: Store, recorded: Mapping[str, str], options: RunOptions, progress: Progress
) -> tuple[Datasets, str]:
    """Load and check the data, and prepare the backend. Write nothing. Return the datasets and the plan in words."""
    with progress.waiting("loading the data; missing datasets are downloaded"):
        datasets = preparation.load_datasets(sweep, recorded)
    if options.local:
        from raysweep.backends import local

        return datasets, local.prepare(sweep, store, None)
    with progress.waiting("starting Ray"):
        # These must come before Ray is imported, which reads the environment.
        from raysweep.backends.ray.authentication import present_token
        from raysweep.backends.ray.environment import cluster_address, prepare_environment
        from raysweep.backends.ray.session import is_initialized

        address = cluster_address(options.address)
        if not is_initialized():  # a Ray that the user has initialised is used as it is
            prepare_environment(address)
            present_token(address)
            settle_cache_directory()
            if address is None:
                settle_ray_directory()
        from raysweep.backends.ray import tuner

        return datasets, tuner.prepare(sweep, store, options.address)


def run_trials(
    sweep: Sweep, store: Store, datasets: Datasets, kept: list[Result], options: RunOptions, progress: Progress
) -> Sweep:
    """Run the trials that have no result in `kept`, and the further rounds of a race of seeds.

    Returns:
        The sweep with the points that were proposed and the rounds that were added meanwhile.
    """
    from raysweep.backends.sweep_run import SweepRun

    done = {result.trial for result in kept}
    pending = [trial for trial in sweep.trials if trial.name not in done]
    if pending and sweep.race is not None and not sweep.encoders and sweep.race_end:
        sweep = replace(sweep, race_end="")  # a trial that failed before may change the verdict that ended the race
        write_race(store.root, sweep)
    stopping = Stopping(store, sweep.tune.time_budget, options.resume_command(store), options.owns_process)
    with stopping.running(), progress.trials(sweep, kept) as trials, importing_report():
        next_round = partial(add_next_round, store, trials, stopping)
        if not pending:  # the race was interrupted between two rounds
            sweep, pending = next_round(sweep)
        sweep_run = SweepRun(sweep, pending, kept, store, datasets, trials, stopping, options.share, next_round)
        if pending or sweep.race is None:
            sweep = run_on_backend(sweep_run, options)
        if stopping.number is not None:
            raise interrupted(store, options, stopping.number)
        clean_up(store, sweep, kept)
    if stopping.number is not None:  # the signal arrived after the last trial had ended
        raise interrupted(store, options, stopping.number)
    cached = cache_words(sweep.examples[0].settings) if sweep.encoders else ""
    if cached:
        progress.tell(cached)
    if not store.present():
        raise ResultsLost(
            f"{shown_place(store)}: the results directory was removed, renamed or replaced while its trials ran, so "
            f"nothing more was written; if it has another name now, resume with: --resume and that name"
        )
    if stopping.since is not None and sweep.tune.time_budget is not None:
        progress.warn(f"the time budget of {sweep.tune.time_budget:g} s is used up")
        if sweep.races:
            sweep = replace(sweep, race_end="budget")
            write_race(store.root, sweep)
    return sweep


def run_on_backend(sweep_run: SweepRun, options: RunOptions) -> Sweep:
    """Run the pending trials in this process or on Ray; see `raysweep.backends.sweep_run`."""
    if options.local:
        from raysweep.backends import local

        return local.run(sweep_run)
    from raysweep.backends.ray import tuner

    return tuner.run(sweep_run)


def add_next_round(store: Store, shown: TrialProgress, stopping: Stopping, sweep: Sweep) -> tuple[Sweep, list[Trial]]:
    """Look at the results of a race of seeds, and record and return its next round or its end.

    Returns:
        The sweep, and the trials of its next round. There are none without a race, while trials have not ended, or if
        the race has ended.
    """
    if not sweep.races or stopping.must_stop():
        return sweep, []
    ended = {result.trial for result in store.results(sweep)}
    if len(ended) < len(sweep.trials):
        return sweep, []
    from raysweep.report import building, racing  # SciPy takes time, which other sweeps spend while trials run

    grown = racing.decide(building.read(store, sweep))
    write_race(store.root, grown)
    store.push()
    shown.note(racing.round_words(grown))
    shown.extend(grown)
    return grown, [trial for trial in grown.trials if trial.name not in ended]


def finish(sweep: Sweep, store: Store, options: RunOptions) -> Outcome:
    """Write the report after trials have run; if it cannot be written, the results of the trials are still present."""
    try:
        return conclude(store, sweep)
    except OSError as fault:
        raise ResultsLost(
            f"the report cannot be written: {describe_error(fault)}; resume with: {options.resume_command(store)}"
        ) from None


def interrupted(store: Store, options: RunOptions, number: int) -> SweepInterrupted:
    """The exception for a sweep that the signal of this number interrupted."""
    return SweepInterrupted(f"interrupted; resume with: {options.resume_command(store)}", store.place, number)


@contextmanager
def explaining(store: Store, options: RunOptions) -> Iterator[None]:
    """Turn what ends a running sweep into an exception that says how the sweep is resumed.

    The traceback of an exception that nobody expected goes into the sweep's `error.txt`.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise interrupted(store, options, signal.SIGINT) from None
    except (InputError, ResultsLost, SweepInterrupted):
        raise
    except Exception as fault:
        note_traceback(store.root)
        raise SweepBrokeOff(
            f"the sweep broke off: {describe_error(fault)} (traceback in {shown_path(store.root / 'error.txt')}); "
            f"resume with: {options.resume_command(store)}"
        ) from None


def conclude(store: Store, sweep: Sweep) -> Outcome:
    """Write the report of a sweep from its present results.

    Raises:
        InputError: the results were not all evaluated alike; nothing is written.
        OSError: the report cannot be written.
    """
    from raysweep.report.building import build_report

    report = build_report(store, sweep)
    store.push()
    return Outcome(store, sweep, report)
