"""The results directory of a sweep: the only state that a resume and the report need.

Ray, `--local` and the report all use it. Ray's own state is never needed for a resume and is stored elsewhere.
    DIR/NAME/sweep.yaml                      the resolved sweep, and what made it
    DIR/NAME/plugins/*.py                    the text of the plugins
    DIR/NAME/proposals.json, race.json       the points that a searcher has proposed; the rounds of a race of seeds
    DIR/NAME/events.out.tfevents.*           TensorBoard's layout, HParams columns and text page of the sweep
    DIR/NAME/TRIAL/attempt.json              the number of the attempt, and its process
    DIR/NAME/TRIAL/checkpoints/00000012.pt   the 12th state saved, and its .json with the hash, written last
    DIR/NAME/TRIAL/events.out.tfevents.*     TensorBoard
    DIR/NAME/TRIAL/curves.csv                the metrics by step, written at the end from the event files
    DIR/NAME/TRIAL/error.txt                 the traceback of an attempt that broke off
    DIR/NAME/TRIAL/result.json               written once, at the end
    DIR/NAME/TRIAL/encoder.safetensors       the trained encoder; results/final_state.py has two more files
"""

from __future__ import annotations

import errno
import itertools
import random
import shutil
import time
import uuid
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raysweep.config import NEWEST_VERSION
from raysweep.errors import InputError
from raysweep.plugins import Plugin, activate
from raysweep.results.bucket import Bucket
from raysweep.results.credentials import is_uri, join
from raysweep.results.mirror import Held, Mirror, hold_bucket
from raysweep.results.result import (
    Damaged,
    Result,
    check_settings,
    describe_error,
    read_attempt,
    read_result,
    set_result_aside,
    with_point_of,
)
from raysweep.results.sweep_file import (
    PLUGINS,
    PROPOSALS,
    RACE,
    explanation,
    history,
    read_plugins,
    read_sweep,
    with_proposals,
    write_sweep,
)
from raysweep.space import Proposal, Sweep, check_name, rebuild
from raysweep.system.files import (
    check_held,
    holding,
    is_occupied,
    make_directory,
    open_lock,
    set_aside,
    try_lock,
    unwritable,
    write_json,
)
from raysweep.system.places import shown_path

TAKE_SECONDS = 10.0
"""Seconds during which a process tries to take a name in a bucket while other processes try the same."""
PUSH_SECONDS = 60.0
"""Longest time in seconds between two uploads of a trial's events, if no checkpoint is uploaded in between."""
STATE = ("attempt.json", "error.txt", "result.json", "curves.csv", "final_state.json")
"""The files of a trial that a resume or a report reads."""
REPORT = ("results.csv", "summary.csv", "differences.csv", "summary.md", "report.html")
"""The files of a sweep's report, beside the figures."""


class Store:
    """The results directory of one sweep.

    Args:
        place: A local path, or the URI of a directory in a bucket. For a URI, `root` is the local copy on this machine.
        copies: Separates the copies of processes that write trials from the copies of readers.
        others: The stores that `create` tries next if another process has created this one in the meantime.
    """

    def __init__(self, place: Path | str, copies: str = "sweeps", others: Iterable[Store] = ()) -> None:
        self.others, self.is_reader = others, copies != "sweeps"
        self.bucket = Bucket(place) if isinstance(place, str) and is_uri(place) else None
        self.root = Path(place).absolute() if self.bucket is None else self.bucket.copy(copies)
        self.place = str(self.root if self.bucket is None else place)
        self._mirror = None if self.bucket is None else Mirror(self.bucket, self.root)

    @classmethod
    def plan(cls, output: Path | str, name: str | None, default: str) -> Store:
        """Choose the directory of a new sweep without creating it.

        Args:
            output: The parent directory, which need not exist yet, or the URI of a directory in a bucket.
            name: The name that the user asked for; None takes `default` with the next free suffix.
            default: The search space's own name.

        Raises:
            InputError: The name is invalid or exists already, or `output` is not a writable directory.
        """
        if name is not None:
            check_name(name, "--name")
        if isinstance(output, str) and is_uri(output):
            bucket = Bucket(output)
            bucket.check(write=True)
            taken = bucket.names()
            stores = (cls(join(output, chosen)) for chosen in candidates(name, default) if chosen not in taken)
        else:
            check_writable(Path(output), locks=True)
            paths = (Path(output) / chosen for chosen in candidates(name, default))
            stores = (cls(path) for path in paths if not is_occupied(path))
        store = next(stores, None)
        if store is None:
            raise InputError(f"--name {name}: {output}/{name} exists; choose another name, or resume that sweep")
        if store.bucket is not None:
            check_writable(store.root, locks=True, option="RAYSWEEP_CACHE:")
        store.others = stores
        return store

    @classmethod
    def open(
        cls,
        place: Path | str,
        copies: str = "sweeps",
        given: Sequence[Plugin] = (),
        beside: Sequence[Plugin] = (),
        only_read: bool = False,
    ) -> tuple[Store, Sweep]:
        """Open an existing sweep and activate its plugins.

        Args:
            place: See `Store`.
            copies: See `Store`.
            given: The parts that the sweep needs and that no file has.
            beside: Plugins to activate beside the plugins of the sweep.
            only_read: See `read_plugins`.

        Raises:
            InputError: There is no sweep, its bucket cannot be reached, or a plugin is missing or faulty.
        """
        store = cls(place, copies)
        if store.bucket is not None and store._mirror is not None:
            store.bucket.check(write=False)
            store._mirror.pull(lambda name: name in ("sweep.yaml", PROPOSALS, RACE) or name.startswith(f"{PLUGINS}/"))
        path = store.root / "sweep.yaml"
        if not path.is_file():
            raise InputError(f"{place}: there is no sweep {explanation(place, path)}")
        content = read_sweep(path)
        plugins = read_plugins(store.root, content, str(place), given, only_read)
        others = {plugin.name: plugin for plugin in beside}  # of several with one name, only one can be active
        activate({**others, **{plugin.name: plugin for plugin in plugins}}.values())
        sweep = rebuild(content, f"{place}/sweep.yaml", plugins)
        return store, with_proposals(store.root, sweep)

    def create(self, sweep: Sweep, made_by: dict[str, Any]) -> Store:
        """Create the results directory and write `sweep.yaml`, with the protocol version in the record `made_by`.

        Returns:
            The store that was created: this one, or the next of `others` if another process has created this one.

        Raises:
            InputError: Other processes have created all candidates.
        """
        for store in itertools.chain([self], self.others):
            if store._take(sweep, {"protocol": NEWEST_VERSION, **made_by}):
                return store
        raise InputError(
            f"{self.place}: another process has just created it; choose another name, or resume that sweep"
        )

    def _take(self, sweep: Sweep, made_by: dict[str, Any]) -> bool:
        """Create the directory; returns False if another process created it before."""
        if self.bucket is None:
            return self._make(sweep, made_by)
        end = time.monotonic() + TAKE_SECONDS
        while True:
            try:
                with self.lock():
                    if "sweep.yaml" in self.bucket.names():
                        return False
                    write_sweep(self.root, sweep, {"made_by": made_by})
                    self.push()
                    return True
            except Held:  # another process creates it; or several tried at the same moment and perhaps none succeeded
                if "sweep.yaml" in self.bucket.names() or time.monotonic() > end:
                    return False
            time.sleep(random.uniform(0.1, 1.0))

    def _make(self, sweep: Sweep, made_by: dict[str, Any]) -> bool:
        """Create a local directory; returns False if it exists. If `sweep.yaml` cannot be written, nothing is left."""
        created = [path for path in (self.root, *self.root.parents) if not is_occupied(path)]
        if not make_directory(self.root):
            return False
        try:
            write_sweep(self.root, sweep, {"made_by": made_by})
        except BaseException:
            shutil.rmtree(self.root / PLUGINS, ignore_errors=True)
            with suppress(OSError):  # other processes may have added files to a parent in the meantime
                for path in created:
                    path.rmdir()
            raise
        return True

    def extend(self, sweep: Sweep, changed_by: dict[str, Any]) -> None:
        """Rewrite `sweep.yaml` for the extended sweep; the record of how it was made and changed before is kept."""
        made_by, *changes = history(self.root)
        write_sweep(self.root, sweep, {"made_by": made_by, "changed_by": [*changes, changed_by]})
        self.push()

    @contextmanager
    def lock(self, wait: float = 0.0) -> Iterator[None]:
        """Hold the sweep's lock for one driver. The lock ends when its process ends.

        For a bucket, other processes notice this later, and the driver copies the state of the trials to this machine.

        Args:
            wait: Seconds to wait while another process holds the lock, for example to claim the name.

        Raises:
            Held: Another process holds the lock.
            InputError: The file system cannot lock files.
        """
        end = time.monotonic() + wait
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(self._locked())
                    break
                except Held:
                    if time.monotonic() >= end:
                        raise
                time.sleep(random.uniform(0.1, 0.5))
            yield

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self.bucket is not None:
            self.root.mkdir(parents=True, exist_ok=True)
        with open_lock(self.root / ".lock") as file:
            if not try_lock(file, self.root):
                raise Held(f"{self.place}: another process is running this sweep")
            if self.bucket is None:
                with holding(self.root, file):
                    yield
                return
            # The local lock was free, so the process that held the bucket's lock from this copy before has ended.
            file.seek(0)
            dead, token = file.read(), uuid.uuid4().hex
            file.truncate(0)
            file.write(token)
            file.flush()
            with hold_bucket(self.bucket / ".lock", token, dead):
                self.pull()
                yield

    def present(self) -> bool:
        """Return whether the results directory still exists and is still the directory that this process holds.

        Always True for a bucket, because the local copy is recreated when needed.
        """
        if self.bucket is not None:
            return True
        try:
            check_held(self.root)
            (self.root / "sweep.yaml").stat()
        except OSError as fault:  # other errors, of a disk that does not answer, are reported by whoever writes
            return fault.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
        return True

    def pull(self, trial: str | None = None) -> None:
        """Copy the status files of this trial, or of all trials and also the report, from a bucket.

        Call this only while no worker runs the trial. If the bucket does not answer, this raises OSError. For a single
        trial it only warns instead and leaves the copy on this machine unchanged.
        """
        if self.bucket is not None and trial is not None:
            try:
                Mirror(self.bucket / trial, self.trial(trial)).pull(lambda name: name in STATE)
            except OSError as fault:
                warnings.warn(f"{trial}: {describe_error(fault)}", stacklevel=3)
        elif self._mirror is not None:
            self._mirror.pull(lambda name: is_sweep_file(name) or name.partition("/")[2] in STATE)

    def pull_events(self) -> None:
        """Copy the event files of all trials from a bucket; raises OSError if it does not answer."""
        if self._mirror is not None:
            self._mirror.pull(
                lambda name: name.count("/") == 1 and name.split("/")[1].startswith("events.out.tfevents.")
            )

    def push(self) -> None:
        """Upload `sweep.yaml` and the report to a bucket; raises OSError if it does not accept them.

        A reader uploads only the report. Its copies of other files may be older than the files of the running sweep.
        """
        if self._mirror is not None:
            self._mirror.push(is_report_file if self.is_reader else is_sweep_file)

    def trial(self, name: str) -> Path:
        """Return a trial's directory."""
        return self.root / name

    def result(self, name: str) -> Result | None:
        """Return the trial's result, None if it has not ended; raises InputError if the file is damaged."""
        return read_result(self.trial(name), name)

    def record_proposals(self, points: Sequence[Proposal]) -> None:
        """Write the proposed points before any of their trials runs; raises OSError if that fails."""
        write_json(self.root / PROPOSALS, {"points": [asdict(point) for point in points]})
        if self.bucket is not None:
            self.bucket.write(PROPOSALS, (self.root / PROPOSALS).read_bytes())

    def check_settings_of_attempts(self, sweep: Sweep) -> None:
        """Raise InputError if a trial was started with settings that differ from the sweep's current ones."""
        for trial in sweep.trials:
            attempt = read_attempt(self.trial(trial.name))
            if attempt is not None:
                try:
                    check_settings(attempt.settings, trial.settings, str(self.trial(trial.name)))
                except Damaged as fault:  # the next attempt of the trial rewrites the file
                    warnings.warn(str(fault), stacklevel=2)

    def set_damaged_aside(self, sweep: Sweep) -> None:
        """Rename every damaged `result.json` with a warning; its trial then counts as not finished."""
        for trial in sweep.trials:
            directory = self.trial(trial.name)
            if is_occupied(directory) and not directory.is_dir():
                aside = set_aside(directory)
                warnings.warn(f"{directory} was not a directory; it was renamed to {aside.name}", stacklevel=2)
            bucket = None if self.bucket is None else self.bucket / trial.name
            set_result_aside(directory, trial.name, trial.settings, bucket)

    def results(self, sweep: Sweep, skip_damaged: bool = False) -> list[Result]:
        """Return the existing results in the order of the trials; raises InputError if one has other settings.

        With `skip_damaged`, a damaged result counts as missing. Without, it raises InputError.
        """
        results = []
        for trial in sweep.trials:
            try:
                result = self.result(trial.name)
                if result is not None:
                    results.append(with_point_of(result, trial, f"{self.trial(trial.name) / 'result.json'}"))
            except Damaged:
                if not skip_damaged:
                    raise
        return results


def candidates(name: str | None, default: str) -> Iterator[str]:
    """Yield the names that a new sweep may take: the requested one, or the default with growing suffixes."""
    if name is not None:
        yield name
        return
    yield default
    yield from (f"{default}-{number}" for number in itertools.count(2))


def shown_place(store: Store) -> str:
    """Return a sweep's location as a user would type it."""
    return shown_path(store.root) if store.bucket is None else store.place


def is_report_file(name: str) -> bool:
    """Return whether a file of a sweep's directory belongs to the report."""
    return name in REPORT or name.startswith("figures/")


def is_sweep_file(name: str) -> bool:
    """Return whether a file of a sweep's directory belongs to the whole sweep, such as `sweep.yaml` or the report."""
    return "/" not in name or name.startswith(("figures/", f"{PLUGINS}/"))


def check_writable(directory: Path, locks: bool = False, option: str = "--output") -> None:
    """Check that a new directory can be created and written to, without creating it.

    Args:
        directory: The path of the new directory.
        locks: Whether files in it must be lockable.
        option: The option's name, for messages.

    Raises:
        InputError: The directory, or its nearest existing ancestor, is not writable or cannot lock files.
    """
    reason = unwritable(directory, locks)
    if reason:
        raise InputError(f"{option} {directory}: {reason}")
