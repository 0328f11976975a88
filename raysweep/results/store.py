"""The results directory of a sweep: names, atomic files, trial status, checkpoints. The truth that everything reads.

Ray, `--local` and the report all use it. Ray's own state is never needed for a resume and lies elsewhere.

    DIR/NAME/sweep.yaml                      the resolved sweep, and what made it
    DIR/NAME/proposals.json                  the points that a searcher has proposed, in their order
    DIR/NAME/TRIAL/attempt.json              which attempt, in which process
    DIR/NAME/TRIAL/checkpoints/00000012.pt   the 12th state saved, and its .json with the hash, written last
    DIR/NAME/TRIAL/events.out.tfevents.*     TensorBoard
    DIR/NAME/TRIAL/error.txt                 the traceback of an attempt that broke off
    DIR/NAME/TRIAL/result.json               written once, at the end
    DIR/NAME/TRIAL/encoder.safetensors       the trained encoder
"""

from __future__ import annotations

import errno
import itertools
import random
import tempfile
import time
import uuid
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raysweep.errors import InputError
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
)
from raysweep.results.sweep_file import PROPOSALS, history, with_proposals, write_sweep
from raysweep.space import Proposal, Sweep, build, check_name, read
from raysweep.system.files import (
    check_held,
    existing_ancestor,
    holding,
    irregular,
    lies,
    make_directory,
    open_lock,
    set_aside,
    try_lock,
    write_json,
)
from raysweep.system.places import shown_path

TAKE_SECONDS = 10.0
"""How long a name in a bucket is tried for while other processes try to take it."""
PUSH_SECONDS = 60.0
"""After how long a trial's events go into a bucket, where they do not go with a checkpoint before."""
STATE = ("attempt.json", "error.txt", "result.json")
"""The files of a trial that say how it stands."""


class Store:
    """The results directory of one sweep.

    Args:
        place: a local path, or the URI of a directory in a bucket; then `root` is this machine's copy of it.
        copies: separates the copies of processes that write trials from the copies of readers.
        others: what `create` takes where another process has made this one meanwhile.
    """

    def __init__(self, place: Path | str, copies: str = "sweeps", others: Iterable[Store] = ()) -> None:
        self.others = others
        self.bucket = Bucket(place) if isinstance(place, str) and is_uri(place) else None
        self.root = Path(place).absolute() if self.bucket is None else self.bucket.copy(copies)
        self.place = str(self.root if self.bucket is None else place)
        self._mirror = None if self.bucket is None else Mirror(self.bucket, self.root)

    @classmethod
    def plan(cls, output: Path | str, name: str | None, default: str) -> Store:
        """Choose the directory of a new sweep without making it.

        Args:
            output: the parent directory, which may not exist yet, or the URI of one in a bucket.
            name: the wish of the user, refused if it exists; None takes `default` with the next free suffix.
            default: the search space's own name.

        Raises:
            InputError: the name is none, exists already, or `output` is not a directory that can be written to.
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
            stores = (cls(path) for path in paths if not lies(path))
        store = next(stores, None)
        if store is None:
            raise InputError(f"--name {name}: {output}/{name} exists; choose another name, or --resume it")
        if store.bucket is not None:
            check_writable(store.root, locks=True, option="RAYSWEEP_CACHE:")
        store.others = stores
        return store

    @classmethod
    def open(cls, place: Path | str, copies: str = "sweeps") -> tuple[Store, Sweep]:
        """The sweep that lies there; raises InputError if none does, or its bucket cannot be reached."""
        store = cls(place, copies)
        if store.bucket is not None and store._mirror is not None:
            store.bucket.check(write=False)
            store._mirror.pull(lambda name: name in ("sweep.yaml", PROPOSALS))
        path = store.root / "sweep.yaml"
        if not path.is_file():
            what = f"its sweep.yaml is {irregular(path)}" if lies(path) else "no sweep.yaml"
            raise InputError(f"{place}: no sweep lies there ({what})")
        return store, with_proposals(store.root, build(read(store.root / "sweep.yaml"), {}, f"{place}/sweep.yaml"))

    def create(self, sweep: Sweep, made_by: dict[str, Any]) -> Store:
        """Make a new results directory and write `sweep.yaml`.

        Returns:
            The store that was made: this one, or the next of `others` where another process has made this one.

        Raises:
            InputError: all were made by others.
        """
        for store in itertools.chain([self], self.others):
            if store._take(sweep, made_by):
                return store
        raise InputError(
            f"{self.place}: another process has just made it; choose another name, or resume it with --resume"
        )

    def _take(self, sweep: Sweep, made_by: dict[str, Any]) -> bool:
        """Make the directory; returns False if another process made it before."""
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
            except Held:  # by another process that makes it or, where two tried at the same moment, perhaps by none
                if "sweep.yaml" in self.bucket.names() or time.monotonic() > end:
                    return False
            time.sleep(random.uniform(0.1, 1.0))

    def _make(self, sweep: Sweep, made_by: dict[str, Any]) -> bool:
        """`_take` on this machine. Leaves nothing behind where `sweep.yaml` cannot be written."""
        created = [path for path in (self.root, *self.root.parents) if not lies(path)]
        if not make_directory(self.root):
            return False
        try:
            write_sweep(self.root, sweep, {"made_by": made_by})
        except BaseException:
            with suppress(OSError):  # others may have put something into a parent meanwhile
                for path in created:
                    path.rmdir()
            raise
        return True

    def extend(self, sweep: Sweep, changed_by: dict[str, Any]) -> None:
        """Write `sweep.yaml` anew for the sweep as it is from now on; what made and changed it before stays noted."""
        made_by, *changes = history(self.root)
        write_sweep(self.root, sweep, {"made_by": made_by, "changed_by": [*changes, changed_by]})
        self.push()

    @contextmanager
    def lock(self, wait: float = 0.0) -> Iterator[None]:
        """Hold the sweep for one driver. The lock dies with its process.

        In a bucket, where others see that only after a while, it brings over how the trials stand.

        Args:
            wait: seconds to wait for another process that holds the sweep, for example because it wants its name.

        Raises:
            Held: another process holds it.
            InputError: the file system cannot lock files.
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
            # Who held the bucket's lock from this copy before is no more, as the file could be locked.
            file.seek(0)
            dead, token = file.read(), uuid.uuid4().hex
            file.truncate(0)
            file.write(token)
            file.flush()
            with hold_bucket(self.bucket / ".lock", token, dead):
                self.pull()
                yield

    def present(self) -> bool:
        """Whether the results directory is still there, and still the one that this process holds.

        A directory in a bucket always is: the copy on this machine is made again where it is needed.
        """
        if self.bucket is not None:
            return True
        try:
            check_held(self.root)
            (self.root / "sweep.yaml").stat()
        except OSError as fault:  # of a disk that does not answer, those tell who want to write to it
            return fault.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
        return True

    def pull(self, trial: str | None = None) -> None:
        """Copy the state of this trial, or of all trials, and the report from a bucket.

        To be called where no worker has the trial. Raises OSError if the bucket does not answer; for a single trial
        that is a warning, and the copy on this machine stays as it is.
        """
        if self.bucket is not None and trial is not None:
            try:
                Mirror(self.bucket / trial, self.trial(trial)).pull(lambda name: name in STATE)
            except OSError as fault:
                warnings.warn(f"{trial}: {describe_error(fault)}", stacklevel=3)
        elif self._mirror is not None:
            self._mirror.pull(lambda name: of_report(name) or (name.count("/") == 1 and name.split("/")[1] in STATE))

    def pull_events(self) -> None:
        """Bring over the event files of all trials from a bucket; raises OSError if it does not answer."""
        if self._mirror is not None:
            self._mirror.pull(lambda name: name.rpartition("/")[2].startswith("events.out.tfevents."))

    def push(self) -> None:
        """Bring `sweep.yaml` and the report into a bucket; raises OSError if it does not take them."""
        if self._mirror is not None:
            self._mirror.push(of_report)

    def trial(self, name: str) -> Path:
        """The directory of a trial."""
        return self.root / name

    def result(self, name: str) -> Result | None:
        """How the trial ended; None as long as it has not. Raises InputError if the file was damaged."""
        return read_result(self.trial(name), name)

    def record_proposals(self, points: Sequence[Proposal]) -> None:
        """Write down the proposed points, before any trial of them runs; raise OSError where that fails."""
        write_json(self.root / PROPOSALS, {"points": [asdict(point) for point in points]})
        if self.bucket is not None:
            self.bucket.write(PROPOSALS, (self.root / PROPOSALS).read_bytes())

    def check_settings_of_attempts(self, sweep: Sweep) -> None:
        """Raises InputError if a trial was begun with settings other than the sweep now has."""
        for trial in sweep.trials:
            begun = read_attempt(self.trial(trial.name))
            if begun is not None:
                try:
                    check_settings(begun.settings, trial.settings, str(self.trial(trial.name)))
                except Damaged as fault:  # the file is written anew with the trial's next attempt
                    warnings.warn(str(fault), stacklevel=2)

    def set_damaged_aside(self, sweep: Sweep) -> None:
        """Rename every damaged `result.json`, with a warning: its trial counts as one that has not finished."""
        for trial in sweep.trials:
            directory = self.trial(trial.name)
            if lies(directory) and not directory.is_dir():
                aside = set_aside(directory)
                warnings.warn(f"{directory} was no directory and is now {aside.name}", stacklevel=2)
            bucket = None if self.bucket is None else self.bucket / trial.name
            set_result_aside(directory, trial.name, trial.settings, bucket)

    def results(self, sweep: Sweep) -> list[Result]:
        """The results there are, in the order of the trials; raises InputError if one is of other settings."""
        results = []
        for trial in sweep.trials:
            result = self.result(trial.name)
            if result is not None:
                check_settings(result.settings, trial.settings, f"{self.trial(trial.name) / 'result.json'}")
                results.append(result)
        return results


def candidates(name: str | None, default: str) -> Iterator[str]:
    """The names that a new sweep may take: the one that was asked for, or the default with the next suffix."""
    if name is not None:
        yield name
        return
    yield default
    yield from (f"{default}-{number}" for number in itertools.count(2))


def shown_place(store: Store) -> str:
    """Where a sweep lies, as a user types it."""
    return shown_path(store.root) if store.bucket is None else store.place


def of_report(name: str) -> bool:
    """Whether a file of a sweep's directory is `sweep.yaml` or of the report."""
    return "/" not in name or name.startswith("figures/")


def check_writable(directory: Path, locks: bool = False, option: str = "--output") -> None:
    """Check the place of a new directory, without creating it.

    Args:
        directory: where it will be.
        locks: whether files in it must be lockable.
        option: how the user named it, for messages.

    Raises:
        InputError: nothing can be written to it, or to the nearest path above it that exists; or no file be locked.
    """
    existing = existing_ancestor(directory)
    if not existing.is_dir():
        raise InputError(f"{option} {directory}: {existing} is not a directory")
    try:
        # Trying is the only sure test: root passes os.access on a read-only mount.
        with tempfile.TemporaryFile(dir=existing) as file:
            if locks:
                try_lock(file, existing)
    except OSError as fault:
        raise InputError(f"{option} {directory}: cannot write to {existing}: {fault.strerror}") from None
