"""The Optuna study of a sweep in a database (`tune.storage`), which optuna-dashboard shows.

The study only copies what the results directory has. Proposals never read it, so a sweep with a study proposes the same
points as one without.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable

import optuna
from optuna.storages import RDBStorage
from optuna.study import StudySummary
from optuna.trial import FrozenTrial, TrialState, create_trial

from raysweep.errors import InputError, masked
from raysweep.results.result import describe_error
from raysweep.results.store import Store, check_writable
from raysweep.results.sweep_file import history
from raysweep.space import Sweep
from raysweep.space.storage import database_file

SWEEP = "raysweep sweep"
"""The attribute of a study that identifies its sweep, even after the results directory was renamed."""
POINT = "point"
"""The attribute of a trial of Optuna that names its point."""


def check_study(sweep: Sweep, store: Store) -> None:
    """Check that the study of a new sweep can be kept, without creating the study.

    A resume is not checked, because it does not depend on the study; see `open_study`.

    Args:
        sweep: The sweep.
        store: The sweep's results, which may not exist yet.

    Raises:
        InputError: The database cannot be used, or it has a study of another sweep with this sweep's name.
    """
    url = sweep.tune.storage
    if url is None or sweep_id(store) is not None:
        return
    file = database_file(url)
    if file is None or file.exists():
        find_study(url, connect(url), store)
    else:
        check_writable(file.parent, option="tune.storage:")


def connect(url: str) -> RDBStorage:
    """Return Optuna's connection to a database.

    Raises:
        InputError: The database cannot be reached, or is not a database of this version of Optuna.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # otherwise Optuna prints every study on standard error
    try:
        return RDBStorage(url)
    except Exception as fault:  # each driver has its own exceptions, and SQLAlchemy passes some of them on
        reason = str(fault.__cause__ or fault).partition("\n")[0].strip()
        raise InputError(f"tune.storage: {url}: cannot be used: {reason or type(fault).__name__}") from None


def sweep_id(store: Store) -> str | None:
    """Return the text that identifies an existing sweep: a digest of the record of its start. None for a new sweep."""
    if not (store.root / "sweep.yaml").exists():
        return None
    start = json.dumps(history(store.root)[0], sort_keys=True, default=str)
    return hashlib.sha256(start.encode()).hexdigest()


def find_study(url: str, storage: RDBStorage, store: Store) -> StudySummary | None:
    """Return the study of this sweep in the database; None if there is none yet.

    Raises:
        InputError: Another sweep has a study with this sweep's name.
    """
    name, identity = store.root.name, sweep_id(store)
    summaries = optuna.get_all_study_summaries(storage, include_best_trial=False)
    for summary in summaries:
        if identity is not None and summary.user_attrs.get(SWEEP) == identity:
            return summary
    if any(summary.study_name == name for summary in summaries):
        raise InputError(
            f"tune.storage: {url} already has a study {name!r} of another sweep; choose another name with --name, "
            "or another storage"
        )
    return None


def open_study(sweep: Sweep, store: Store) -> StudyWriter | None:
    """Return the writer of a sweep's study. If the study cannot be used, warn and return None.

    The proposals and a resume do not depend on the study, so the sweep continues without it.
    """
    try:
        return StudyWriter(sweep, store)
    except Exception as fault:  # see `StudyWriter.write`
        reason = str(fault) if isinstance(fault, InputError) else f"the Optuna study: {describe_error(fault)}"
        warnings.warn(f"{masked(reason)}; the sweep continues without a study", stacklevel=2)
        return None


class StudyWriter:
    """Writes the points of a sweep into its study.

    A point is a trial of Optuna, whose value is the mean over the seeds. If a resume runs a failed or stopped point
    again, the point gets a second trial, because Optuna changes no trial that has ended.

    Args:
        sweep: The sweep, which has a `tune.storage`.
        store: The sweep's existing results directory.

    Raises:
        InputError: See `check_study`.
    """

    def __init__(self, sweep: Sweep, store: Store) -> None:
        url = sweep.tune.storage
        assert url is not None
        storage = connect(url)
        known = find_study(url, storage, store)
        if known is not None:
            self.study = optuna.load_study(study_name=known.study_name, storage=storage)
        else:
            self.study = optuna.create_study(
                storage=storage, study_name=store.root.name, direction="maximize" if sweep.mode == "max" else "minimize"
            )
            self.study.set_user_attr(SWEEP, sweep_id(store))
            with warnings.catch_warnings():  # the dashboard shows the name, and nothing depends on it
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self.study.set_metric_names([str(sweep.metric)])
        self.identity = sweep_id(store)
        trials = [trial for trial in self.study.trials if POINT in trial.user_attrs]  # another program may add trials
        self.written = {trial.user_attrs[POINT]: (trial.number, trial.state) for trial in trials}
        """For each point: the number of its newest trial of Optuna, and the state of that trial."""
        self.is_failing = False
        """Whether the last attempt to write failed."""

    def write(self, points: Iterable[tuple[str, FrozenTrial]]) -> None:
        """Write what is new about the points, each given by its name and its present trial of Optuna.

        If this fails, a warning says so and the sweep continues. The next call writes the rest. If the study was
        deleted, a warning says so too, and nothing is written any more.
        """
        changed = [(name, trial) for name, trial in points if self.written.get(name, (None, None))[1] != trial.state]
        if not changed:
            return
        try:
            if not self._exists():
                self._warn("the Optuna study was deleted; the sweep continues without a study")
                return
            for name, trial in changed:
                number, state = self.written.get(name, (None, None))
                if number is not None and state == TrialState.RUNNING:
                    # Another program may have ended the trial of Optuna.
                    self.study.tell(number, trial.value, trial.state, skip_if_finished=True)
                else:
                    number = self._add(name, trial)
                self.written[name] = (number, trial.state)
            self.is_failing = False
        # Each driver of a database has its own exceptions. Optuna raises KeyError and ValueError if another program
        # has deleted or changed something.
        except Exception as fault:
            self._warn(f"the Optuna study cannot be written: {masked(describe_error(fault))}; the sweep continues")

    def _exists(self) -> bool:
        """Return whether the study is still there. SQLite may give the number of a deleted study to a new one."""
        try:
            return self.study.user_attrs.get(SWEEP) == self.identity
        except KeyError:
            return False

    def _warn(self, message: str) -> None:
        """Warn that the points were not written, once until the next success."""
        if not self.is_failing:
            warnings.warn(message, stacklevel=3)
        self.is_failing = True

    def _add(self, name: str, trial: FrozenTrial) -> int:
        """Add a trial of Optuna for a point, and return its number."""
        self.study.add_trial(
            create_trial(
                state=trial.state,
                value=trial.value,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={POINT: name},
            )
        )
        trials = self.study.get_trials(deepcopy=False)  # another program may have added trials in the meantime
        return max(each.number for each in trials if each.user_attrs.get(POINT) == name)
