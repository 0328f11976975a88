"""The results directory of a sweep: names, atomic files, trial status, checkpoints. The truth that everything reads.

Ray, `--local` and the report all go through here; Ray's own state is never needed to go on and lies elsewhere.

    DIR/NAME/sweep.yaml                      the resolved sweep, and what made it
    DIR/NAME/proposals.json                  the points that a searcher has proposed, in their order
    DIR/NAME/TRIAL/attempt.json              which attempt, in which process
    DIR/NAME/TRIAL/checkpoints/00000012.pt   the 12th state saved, and its .json with the hash, written last
    DIR/NAME/TRIAL/events.out.tfevents.*     TensorBoard
    DIR/NAME/TRIAL/error.txt                 the traceback of an attempt that broke off
    DIR/NAME/TRIAL/result.json               written once, at the end
    DIR/NAME/TRIAL/encoder.pt                the trained encoder
"""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
import os
import pickle
import random
import re
import socket
import tempfile
import time
import traceback
import uuid
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, Field, StrictBool, TypeAdapter, ValidationError

from raysweep.bucket import Bucket, Held, Mirror, Replaced, is_uri, join
from raysweep.bucket import hold as hold_bucket
from raysweep.config import METRICS, SETTINGS, Settings, about, fingerprint, protocol
from raysweep.errors import InputError, masked
from raysweep.files import (
    Irregular,
    check_held,
    discard,
    existing_ancestor,
    holding,
    irregular,
    lies,
    make_directory,
    open_lock,
    open_regular,
    read_json,
    read_regular,
    same_file,
    set_aside,
    try_lock,
    write_atomically,
    write_json,
)
from raysweep.space import Proposal, Sweep, Trial, build, check_name, mapping, propose, read, to_yaml

if TYPE_CHECKING:
    from torch import Tensor

KEEP_CHECKPOINTS = 2
PROPOSALS = "proposals.json"
HOLD_SECONDS = 60.0
TAKE_SECONDS = 10.0
"""How long a name in a bucket is tried for while other processes try to take it."""
PUSH_SECONDS = 60.0
"""After how long a trial's events go into a bucket, where they do not go with a checkpoint before."""
LONGEST_PROPOSALS = 2**27
"""Bytes of `proposals.json` that are read: enough for 100,000 points."""
ROUNDING = 1e-6
"""By which a score in single precision may miss its range."""
STATE = ("attempt.json", "error.txt", "result.json")
"""The files of a trial that say how it stands."""
CHECKPOINT = re.compile(r"[0-9]{8}\.(pt|json)|\.[0-9]{8}\.(pt|json)\..+")
"""The files in `checkpoints/`, and what a process left that was killed while it wrote one."""
LONGEST_MANIFEST = 4096
TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")
"""What a process leaves that is killed in `replacing`."""
NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "Cannot allocate memory", "low on memory")
"""What PyTorch, on a CPU and on a GPU, the system and Ray say where memory ran out."""


Count = Annotated[int, Field(strict=True, ge=0, lt=10**9)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Plain = Annotated[int, Field(strict=True, ge=-(2**64), le=2**64)] | Number | StrictBool | str | None
"""A value of a setting."""


def check_metrics(metrics: dict[str, float]) -> dict[str, float]:
    """Raises ValueError if a metric has a value that it cannot have; any is fine for one that is not known here."""
    for name in metrics.keys() & METRICS.keys():
        lowest, highest = 0.0, float("inf")
        if name.endswith(("accuracy", "/nmi")):
            highest = 1.0
        elif name.endswith("/ari"):
            lowest, highest = -1.0, 1.0
        elif name.endswith("loss"):
            lowest = -highest
        if not lowest - ROUNDING <= metrics[name] <= highest + ROUNDING:
            raise ValueError(f"{name} is {metrics[name]}")
    return metrics


class Damaged(InputError):
    """A file of a trial is not what was once written."""


@dataclass(frozen=True)
class Result:
    """How one trial ended. The annotations are what `read_result` checks."""

    trial: str
    point: str
    status: Literal["finished", "failed", "stopped"]
    """`stopped` is early."""
    error: str | None
    """Why it failed or was stopped; None where it finished."""
    baseline: StrictBool
    varied: dict[str, Plain]
    settings: dict[str, Plain]
    metrics: Annotated[dict[str, Number], AfterValidator(check_metrics)]
    protocol: dict[str, Plain]
    fingerprint: str
    wall_s: Annotated[Number, Field(ge=0)]
    """Seconds spent on it, over all attempts, up to the last checkpoint of each that was cut off."""
    attempts: Count
    device: str
    warnings: list[str] = field(default_factory=list)
    linear_probe: str = ""
    """Which linear probe of a bank counted, as `Head` writes it; empty where there was only one."""
    precision: str = ""
    """In which it was pretrained, at last: what `auto` came to; empty where that is not known."""


class Attempt(BaseModel):
    """What is read of `attempt.json`."""

    attempt: Count
    settings: dict[str, Plain]


class ProposedPoint(BaseModel):
    """One point in `proposals.json`."""

    space: Count
    values: dict[str, Plain]


class ProposedPoints(BaseModel):
    """The content of `proposals.json`."""

    points: list[ProposedPoint]


RESULT = TypeAdapter(Result)


def make_result(
    trial: Trial,
    probe_digest: str,
    directory: Path,
    *,
    status: Literal["finished", "failed", "stopped"],
    error: str | None,
    metrics: dict[str, float],
    wall_s: float,
    device: str,
    warnings: list[str],
    linear_probe: str = "",
    precision: str = "",
) -> Result:
    """The result of a trial that ran in `directory` on the probe dataset with this digest."""
    assert (error is None) == (status == "finished")
    of = protocol(trial.settings, probe_digest)
    return Result(
        trial=trial.name,
        point=trial.point,
        status=status,
        error=error,
        baseline=trial.baseline,
        varied=dict(trial.varied),
        settings=trial.settings.model_dump(),
        metrics=metrics,
        protocol=of,
        fingerprint=fingerprint(of),
        wall_s=wall_s,
        attempts=attempts(directory),
        device=device,
        warnings=warnings,
        linear_probe=linear_probe,
        precision=precision,
    )


def reason(fault: BaseException) -> str:
    """Why something broke off, in one line that says so where memory or space ran out, and shows no credentials."""
    text = masked((str(fault).strip().splitlines() or [""])[0])
    if isinstance(fault, MemoryError) or any(words in str(fault) for words in NO_MEMORY):
        return f"out of memory: {text}" if text else "out of memory"
    if isinstance(fault, OSError) and fault.strerror is not None:
        what = "disk full" if fault.errno in (errno.ENOSPC, errno.EDQUOT) else type(fault).__name__
        return ": ".join([what, fault.strerror, *([str(fault.filename)] if fault.filename is not None else [])])
    return f"{type(fault).__name__}: {text}" if text else type(fault).__name__


def note_traceback(directory: Path) -> None:
    """Write the traceback of the exception that is being handled to the trial's `error.txt`."""
    with suppress(OSError):  # the disk may be full, and the exception itself goes on to whoever records it
        check_held(directory)
        (directory / "error.txt").write_text(masked(traceback.format_exc()))


class Store:
    """The results directory of one sweep.

    Args:
        place: a local path, or the URI of a directory in a bucket; then `root` is this machine's copy of it.
        copies: keeps apart the copies of those who write the trials and those who only read.
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
            there = bucket.names()
            stores = (cls(join(output, chosen)) for chosen in candidates(name, default) if chosen not in there)
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
        return store, store.proposed(build(read(store.root / "sweep.yaml"), {}, f"{place}/sweep.yaml"))

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
            f"{self.place}: another process has just made it; choose another name, or go on with it by --resume"
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
                    self._write(sweep, {"made_by": made_by})
                    self.push()
                    return True
            except Held:  # by another process that makes it or, where two tried at the same moment, perhaps by none
                if "sweep.yaml" in self.bucket.names() or time.monotonic() > end:
                    return False
            time.sleep(random.uniform(0.1, 1.0))

    def _make(self, sweep: Sweep, made_by: dict[str, Any]) -> bool:
        """`_take` on this machine. Leaves nothing behind where `sweep.yaml` cannot be written."""
        made = [path for path in (self.root, *self.root.parents) if not lies(path)]
        if not make_directory(self.root):
            return False
        try:
            self._write(sweep, {"made_by": made_by})
        except BaseException:
            with suppress(OSError):  # others may have put something into a parent meanwhile
                for path in made:
                    path.rmdir()
            raise
        return True

    def extend(self, sweep: Sweep, changed_by: dict[str, Any]) -> None:
        """Write `sweep.yaml` anew for the sweep as it is from now on; what made and changed it before stays noted."""
        made_by, *changes = self.history()
        self._write(sweep, {"made_by": made_by, "changed_by": [*changes, changed_by]})
        self.push()

    def history(self) -> list[dict[str, Any]]:
        """What made the sweep, and what changed it since: as `create` and `extend` were given it."""
        path = self.root / "sweep.yaml"
        found = read(path)
        changes = found.get("changed_by") or []
        if not isinstance(changes, list):
            raise InputError(f"{path}: changed_by: a list expected, not {changes!r}")
        return [mapping(entry, f"{path}: made_by and changed_by") for entry in (found.get("made_by"), *changes)]

    def recorded_datasets(self) -> dict[str, str]:
        """The digests of the datasets that the sweep was made and changed with, by name; none before it is made."""
        if not (self.root / "sweep.yaml").exists():
            return {}
        where = f"{self.root / 'sweep.yaml'}: datasets"
        recorded = {
            name: digest for each in self.history() for name, digest in mapping(each.get("datasets"), where).items()
        }
        for name, digest in recorded.items():
            if not isinstance(digest, str):
                raise InputError(f"{where}: {name}: a digest expected (text), not {digest!r}")
        return recorded

    def _write(self, sweep: Sweep, records: dict[str, Any]) -> None:
        header = "# The resolved sweep; it can be given to run_sweep.py as a search space.\n"
        text = to_yaml({**sweep.to_dict(), **records})
        write_atomically(self.root / "sweep.yaml", (header + text).encode())

    @contextmanager
    def lock(self, wait: float = 0.0) -> Iterator[None]:
        """Hold the sweep for one driver. The lock dies with its process.

        In a bucket, where others see that only after a while, it brings over how the trials stand.

        Args:
            wait: seconds in which others may let go of it, as those do that wanted its name for a new sweep.

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
            dead, own = file.read(), uuid.uuid4().hex
            file.truncate(0)
            file.write(own)
            file.flush()
            with hold_bucket(self.bucket / ".lock", own, dead):
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
        """Bring over from a bucket how this trial stands, or all of them, and the report.

        To be called where no worker has the trial. Raises OSError if the bucket does not answer; for a single trial
        that is a warning, and the copy on this machine stays as it is.
        """
        if self.bucket is not None and trial is not None:
            try:
                Mirror(self.bucket / trial, self.trial(trial)).pull(lambda name: name in STATE)
            except OSError as fault:
                warnings.warn(f"{trial}: {reason(fault)}", stacklevel=3)
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

    @contextmanager
    def at_work(self, name: str) -> Iterator[Callable[..., None]]:
        """Hold a trial's directory to run the trial here: brought over from a bucket before, and back at the end.

        Yields:
            What brings the files into the bucket meanwhile (`Mirror.push`). It raises OSError where the bucket does not
            take them: they are kept here until the trial is taken up again, and its `error.txt` says why. It raises
            Replaced where another process has taken the trial up.

        Raises:
            FileNotFoundError: the sweep does not lie there, as on a node that joined without the shared mount, or it
                was removed or renamed meanwhile.
        """
        absent = FileNotFoundError(
            errno.ENOENT, f"{socket.gethostname()} does not see the sweep's sweep.yaml", str(self.root)
        )
        if not self.present():  # or what it writes would be lost
            raise absent
        with hold(self.trial(name)):
            if self.bucket is None:
                try:
                    yield lambda every=0.0: check_held(self.trial(name))
                except OSError as fault:
                    if not self.present():
                        raise absent from fault
                    raise
                return
            mirror = Mirror(self.bucket / name, self.trial(name))
            try:
                mirror.pull()
                try:
                    yield mirror.push
                except Replaced:
                    raise
                except Exception:  # not SystemExit, by which Ray ends a stopped trial while the next one waits for it
                    mirror.push()
                    raise
                mirror.push()
            except Replaced:
                raise
            except OSError:
                note_traceback(self.trial(name))
                raise

    @contextmanager
    def recording(self, name: str) -> Iterator[Path]:
        """A trial's directory, to record how the trial ended where its own process does not; a bucket gets it then.

        Where that cannot be written it is a warning: the sweep goes on, and a resume runs the trial again.
        """
        try:
            yield self.trial(name)
            if self.bucket is not None:
                Mirror(self.bucket / name, self.trial(name)).push(lambda each: each.endswith((".json", ".stopped")))
        except OSError as fault:
            if self.present():  # the command says once that all of it is gone
                warnings.warn(f"{name}: how it ended cannot be recorded: {reason(fault)}", stacklevel=3)

    def record_failure(self, trial: Trial, probe_digest: str, error: str) -> Result:
        """Record that the trial's last attempt broke off, and why."""
        directory = self.trial(trial.name)
        result = make_result(
            trial,
            probe_digest,
            directory,
            status="failed",
            error=error,
            metrics={},
            wall_s=0.0,
            device="unknown",
            warnings=[],
        )
        if self.present():
            with self.recording(trial.name):
                directory.mkdir(parents=True, exist_ok=True)
                write_result(directory, result)
        return result

    def forget_checkpoints(self, name: str) -> None:
        """Remove the checkpoints of a trial that will not go on, in a bucket too."""
        remove_checkpoints(self.trial(name))
        if self.bucket is not None:
            there = self.bucket / name
            for each in there.files():
                if each.startswith("checkpoints/"):
                    there.remove(each)

    def trial(self, name: str) -> Path:
        """The directory of a trial."""
        return self.root / name

    def result(self, name: str) -> Result | None:
        """How the trial ended; None as long as it has not. Raises InputError if the file was damaged."""
        return read_result(self.trial(name), name)

    def proposals(self) -> list[Proposal]:
        """The points that a searcher has proposed, in their order; raises InputError if the file was damaged."""
        path = self.root / PROPOSALS
        try:
            content = ProposedPoints.model_validate(read_json(path, LONGEST_PROPOSALS))
        except FileNotFoundError:
            return []
        except ValueError as fault:
            raise InputError(
                f"{path}: is damaged ({brief(fault)}); the sweep cannot go on without its points: put the file back, "
                f"or start a new sweep"
            ) from None
        return [Proposal(point.space, point.values) for point in content.points]

    def record_proposals(self, points: Sequence[Proposal]) -> None:
        """Write down what was proposed, before any trial of it runs; raises OSError where that fails."""
        write_json(self.root / PROPOSALS, {"points": [asdict(point) for point in points]})
        if self.bucket is not None:
            self.bucket.write(PROPOSALS, (self.root / PROPOSALS).read_bytes())

    def proposed(self, sweep: Sweep) -> Sweep:
        """The sweep with the trials of the points that its searcher has proposed so far; without one, as it is.

        Raises:
            InputError: a point is none of the sweep's, as after `sweep.yaml` was changed by hand.
        """
        for number, point in enumerate(self.proposals() if sweep.tune.searcher != "none" else []):
            grown = propose(sweep, point)
            if grown is None:
                path = self.root / PROPOSALS
                raise InputError(f"{path}: point {number} is none of this sweep's: {point.values}; start a new sweep")
            sweep = grown
        return sweep

    def check_begun(self, sweep: Sweep) -> None:
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


def of_report(name: str) -> bool:
    """Whether a file of a sweep's directory is `sweep.yaml` or of the report."""
    return "/" not in name or name.startswith("figures/")


def check_settings(found: dict[str, Any], expected: Settings, where: str) -> None:
    """Compare settings that were written down with those of the sweep.

    A setting that was not there yet when they were written counts as having its default.

    Raises:
        Damaged: they are no settings of any experiment.
        InputError: they are others, as after `sweep.yaml` was changed by hand.
    """
    for name in SETTINGS:
        was, says = found.get(name, Settings.model_fields[name].default), getattr(expected, name)
        if about(name).search and was != says and not are_settings(found):
            raise Damaged(f"{where}: is damaged: its settings are those of no experiment")
        if about(name).search and was != says:
            raise InputError(
                f"{where}: was made with {name}: {was!r}, but the sweep says {says!r}; start a new sweep for other "
                f"settings"
            )


def complete_protocol(found: Mapping[str, Any]) -> dict[str, Any]:
    """A result's protocol, in which a setting that was not there yet when it was made has its default."""
    return {name: Settings.model_fields[name].default for name in SETTINGS if about(name).protocol} | dict(found)


def protocol_difference(
    one: Mapping[str, Any], other: Mapping[str, Any], aside: Collection[str] = ()
) -> tuple[str, Any, Any] | None:
    """The first key, but those `aside`, in which two protocols differ, and both values; None where they agree."""
    one, other = complete_protocol(one), complete_protocol(other)
    for key in dict.fromkeys([*one, *other]):
        if key not in aside and one.get(key) != other.get(key):
            return key, one.get(key), other.get(key)
    return None


def check_writable(directory: Path, locks: bool = False, option: str = "--output") -> None:
    """Check the place of a directory that is to be made, without making it.

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


def brief(fault: ValueError) -> str:
    """What a check found, in a few words: the first fault and where it is."""
    if not isinstance(fault, ValidationError):
        return str(fault)
    first = fault.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"][:2]))  # a union adds its members' names, which say nothing to users
    text = first["msg"].removeprefix("Value error, ")
    return f"{where}: {text}" if where else text


def are_settings(found: Mapping[str, Any]) -> bool:
    """Whether a mapping holds settings as an experiment has them. Those that this version lacks may be anything."""
    known = {name: found[name] for name in SETTINGS if name in found and about(name).search}
    try:
        settings = Settings.model_validate(known)
    except ValidationError:
        return False
    return all(getattr(settings, name) == value for name, value in known.items())


def read_result(directory: Path, trial: str | None = None) -> Result | None:
    """The `result.json` of a trial's directory, None if there is none; what older versions left out has its default.

    Args:
        directory: the trial's.
        trial: its name, where the result must be of this one.

    Raises:
        Damaged: it is something else than a file, not JSON, or a value is missing, of another type, not finite or out
            of its range.
    """
    path = directory / "result.json"
    try:
        result = RESULT.validate_python(read_json(path))
        if (result.error is None) != (result.status == "finished"):
            raise ValueError(f"status is {result.status} and error {result.error!r}")
        if trial not in (None, result.trial):
            raise ValueError(f"it is of the trial {result.trial}")
    except FileNotFoundError:
        return None
    except ValueError as fault:
        raise Damaged(f"{path}: is damaged ({brief(fault)}); --resume puts it aside and runs the trial again") from None
    return result


def set_result_aside(
    directory: Path, trial: str, settings: Settings | None = None, bucket: Bucket | None = None
) -> None:
    """Rename a damaged `result.json` with a warning; a sound one stays.

    Args:
        directory: the trial's.
        trial: its name.
        settings: the trial's, where those in the file are to be compared with them.
        bucket: the trial's directory in a bucket, if it has one; the file is renamed there too.

    Raises:
        InputError: the file is sound, but of other settings.
    """
    path = directory / "result.json"
    try:
        result = read_result(directory, trial)
        if result is not None and settings is not None:
            check_settings(result.settings, settings, str(path))
    except Damaged:
        aside = set_aside(path)
        if bucket is not None and aside.is_file():
            bucket.write(aside.name, aside.read_bytes())
        if bucket is not None:
            bucket.remove(path.name)
        warnings.warn(f"{path} was damaged and is now {aside.name}; the trial runs again", stacklevel=3)


def write_result(directory: Path, result: Result) -> None:
    """Write how the trial ended. From here on it is not run again. A damaged file that lies there is set aside."""
    set_result_aside(directory, result.trial)
    write_json(directory / "result.json", asdict(result))


@contextmanager
def hold(directory: Path) -> Iterator[None]:
    """Hold a trial's directory for this process, waiting for the process that has it: it dies with that process.

    A worker whose driver was killed lives on for seconds, in which the sweep may be resumed already.

    Raises:
        TimeoutError: another process still has it after `HOLD_SECONDS`.
        InputError: the file system cannot lock files.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path, end = directory / ".lock", time.monotonic() + HOLD_SECONDS
    while True:
        with open_lock(path) as file:
            # The file may be one that its last holder has removed.
            if try_lock(file, directory) and same_file(file.fileno(), path):
                try:
                    with holding(directory, file):
                        yield
                finally:
                    with suppress(OSError):  # read-only by now; the lock itself goes with the open file
                        if same_file(file.fileno(), path):
                            path.unlink()
                return
        if time.monotonic() > end:
            raise TimeoutError(errno.ETIMEDOUT, "another process still runs the trial in it", str(directory))
        time.sleep(0.1)


def begin_attempt(directory: Path, settings: Settings) -> int:
    """Note that this process now runs the trial with these settings; returns which attempt this is, from 1.

    What does not belong where a file of the trial will be written is set aside.
    """
    check_held(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for left in ("result.json", "error.txt"):  # of an attempt that failed
        discard(directory / left)
    for path in directory.iterdir():
        if TEMPORARY.fullmatch(path.name) and path.is_file():  # of a process that was killed in `replacing`
            path.unlink()
        elif path.name.startswith("events.out.tfevents.") and irregular(path) is not None:
            set_aside(path, name=f"set-aside.{path.name}")  # its own name would count as an event file
    checkpoints = directory / "checkpoints"
    if lies(checkpoints) and not checkpoints.is_dir():
        set_aside(checkpoints)
    attempt = attempts(directory) + 1
    write_json(
        directory / "attempt.json",
        {
            "attempt": attempt,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),  # of those that Ray gave it on this host; None is all
            "started": time.time(),
            "settings": settings.model_dump(),
        },
    )
    return attempt


def attempts(directory: Path) -> int:
    """How often the trial was begun: as `attempt.json` says or, were it lost, the event files, one for each attempt."""
    begun = read_attempt(directory)
    if begun is not None:
        return begun.attempt
    numbers = [path.name.split(".")[3] for path in directory.glob("events.out.tfevents.*.raysweep")]
    return max((int(number) for number in numbers if re.fullmatch(r"[0-9]{1,8}", number)), default=0)


def read_attempt(directory: Path) -> Attempt | None:
    """What `begin_attempt` wrote; None if there is nothing or, with a warning, if the file is damaged."""
    path = directory / "attempt.json"
    try:
        return Attempt.model_validate(read_json(path))
    except FileNotFoundError:
        return None
    except ValueError:
        warnings.warn(f"{path} is damaged; counting attempts by the event files", stacklevel=2)
        return None


def save_checkpoint(directory: Path, state: dict[str, Any]) -> None:
    """Save `state` (tensors and plain values) under the next number; the newest `KEEP_CHECKPOINTS` are kept.

    The manifest with the hash is written last: a checkpoint without one does not exist.
    """
    check_held(directory)
    folder = directory / "checkpoints"
    folder.mkdir(exist_ok=True)
    earlier = sorted(path.stem for path in folder.glob("*.json") if CHECKPOINT.fullmatch(path.name))
    number = f"{int(earlier[-1]) + 1 if earlier else 1:08}"
    content = to_bytes(state)
    write_atomically(folder / f"{number}.pt", content)
    write_json(folder / f"{number}.json", {"sha256": hashlib.sha256(content).hexdigest()})
    kept = [*earlier, number][-KEEP_CHECKPOINTS:]
    for file in sorted(folder.iterdir()):  # manifests first; and what a process left that was killed while writing
        if CHECKPOINT.fullmatch(file.name) and file.stem not in kept:
            discard(file)


def load_checkpoint(directory: Path) -> dict[str, Any] | None:
    """The newest complete checkpoint, None if there is none; a damaged one is removed, with a warning."""
    import torch

    manifests = [path for path in (directory / "checkpoints").glob("*.json") if CHECKPOINT.fullmatch(path.name)]
    for manifest in sorted(manifests, reverse=True):
        file = manifest.with_suffix(".pt")
        try:
            content = read_regular(file)
            # As text, so that a damaged manifest is one that does not match.
            says = read_regular(manifest, LONGEST_MANIFEST).decode(errors="replace")
        except (FileNotFoundError, ValueError):
            content, says = b"", ""
        if content and hashlib.sha256(content).hexdigest() in says:
            state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            return state
        warnings.warn(f"checkpoint {file} is damaged; going on from the one before it, if there is one", stacklevel=2)
        discard(manifest)  # so that it does not count among the checkpoints that are kept
        discard(file)
    return None


def remove_checkpoints(directory: Path) -> None:
    """Remove what only a running trial needs."""
    folder = directory / "checkpoints"
    for file in folder.glob("*"):
        if CHECKPOINT.fullmatch(file.name):
            discard(file)
    if folder.is_dir() and not any(folder.iterdir()):  # it may hold something of the user's
        folder.rmdir()


def save_encoder(directory: Path, encoder: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Save the trained encoder as the trial's `encoder.pt`.

    Args:
        directory: the trial's.
        encoder: its weights, on the CPU, so that they load where there is no GPU.
        description: `architecture`, `channels`, `image_size`, `embedding_dim`: what is needed to build it again.
    """
    write_atomically(directory / "encoder.pt", to_bytes({**description, "encoder": encoder}))


@dataclass(frozen=True, eq=False)
class SavedEncoder:
    """An encoder as a file describes it; whether the weights fit the description is for its builder to find out."""

    file: Path
    architecture: str
    channels: int
    image_size: int
    embedding_dim: int
    weights: dict[str, Tensor]


def encoder_file(path: Path) -> Path:
    """The file that holds the encoder: `path` itself, or the `encoder.pt` of a trial's directory.

    Raises:
        InputError: there is none.
    """
    if not path.exists():
        raise InputError(f"{path}: no such checkpoint")
    if not path.is_dir():
        return path
    if (path / "encoder.pt").is_file():
        return path / "encoder.pt"
    hint = "give a trial's directory, its encoder.pt or a training checkpoint"
    trial = min(path.glob("*/encoder.pt"), default=None)
    checkpoint = max((path / "checkpoints").glob("*.pt"), default=None)
    if trial is not None:
        hint = f"give one of the trials in it, such as {trial.parent}"
    elif checkpoint is not None:
        hint = f"its trial has not finished; its newest training checkpoint is {checkpoint}"
    raise InputError(f"{path}: has no encoder.pt; {hint}")


def load_encoder(path: Path) -> SavedEncoder:
    """Read an encoder from a trial's directory, its `encoder.pt` or a training checkpoint. Runs no code in the file.

    Takes memory in proportion to the file's size.

    Returns:
        The description and the weights, on the CPU: plain tensors that lie in memory as they look.

    Raises:
        InputError: the file is missing, damaged, something else, or describes an encoder that cannot be.
    """
    file = encoder_file(path)
    saved = load_plain(file)
    try:
        weights = dict(saved.get("state", saved))["encoder"]  # of a training checkpoint, or of `save_encoder`
        check_weights(weights, file)
        description = describe(saved["settings"], weights) if "state" in saved else saved
        architecture = description.get("architecture", "conv6")  # older files do not say it: there was no other
        channels, image_size, embedding_dim = (description[n] for n in ("channels", "image_size", "embedding_dim"))
    except (LookupError, TypeError, ValueError, AttributeError, StopIteration) as fault:
        if isinstance(fault, InputError):  # which says more
            raise
        raise InputError(f"{file}: is not a checkpoint of raysweep: it holds no encoder") from None
    known = get_args(Settings.model_fields["encoder"].annotation)
    if architecture not in known:
        raise InputError(f"{file}: unknown architecture {architecture!r}; valid: {', '.join(known)}")
    sizes = {"image_size": image_size, "embedding_dim": embedding_dim}
    if (
        type(channels) is not int
        or channels not in (1, 3)
        or any(type(size) is not int or not 1 <= size < 2**16 for size in sizes.values())
    ):
        raise InputError(f"{file}: is damaged: it describes an encoder with channels {channels!r}, {sizes}")
    return SavedEncoder(file, architecture, channels, image_size, embedding_dim, dict(weights))


def check_weights(weights: Any, file: Path) -> None:
    """Raises InputError unless these are named tensors as `save_encoder` writes them, no larger than their file."""
    import torch

    if not isinstance(weights, dict) or not all(isinstance(weight, torch.Tensor) for weight in weights.values()):
        raise InputError(f"{file}: is not a checkpoint of raysweep: its encoder is not a mapping of tensors")
    size = 0
    for name, weight in weights.items():
        kind = None
        if weight.is_nested:
            kind = "a nested tensor"
        elif weight.layout is not torch.strided:
            kind = f"a sparse tensor ({weight.layout})"
        elif weight.is_quantized:
            kind = "a quantised tensor"
        elif weight.device.type != "cpu":
            kind = f"a tensor without values (on the device {weight.device})"
        elif weight.is_complex() or weight.is_neg():
            kind = "a complex tensor, or a part of one"
        if kind is not None:
            raise InputError(f"{file}: its weight {name} is {kind}; save it as a plain tensor")
        size += weight.numel() * weight.element_size()
    if size > file.stat().st_size:
        raise InputError(
            f"{file}: its weights share their memory ({size} bytes in a file of {file.stat().st_size}); save each by "
            f"itself"
        )


def describe(settings: dict[str, Any], weights: dict[str, Tensor]) -> dict[str, Any]:
    """What `encoder.pt` says of an encoder, from the settings and the weights in a training checkpoint."""
    from raysweep import data

    return {
        "architecture": settings.get("encoder", "conv6"),
        "channels": next(weight.shape[1] for weight in weights.values() if weight.ndim == 4),
        "image_size": settings["image_size"] or data.native_size(settings["dataset"]),
        "embedding_dim": settings["embedding_dim"],
    }


def load_plain(file: Path) -> dict[str, Any]:
    """What `to_bytes` wrote. Any other file is refused, and code in it is never run.

    Raises:
        InputError: the file is not one of PyTorch's, is damaged, or holds more than tensors and plain values.
    """
    import torch

    reason = "it is not a file of PyTorch"
    try:
        with open_regular(file) as opened:
            if opened.read(4) == b"PK\x03\x04":
                reason = "it is cut off or damaged"
                with zipfile.ZipFile(opened) as archive:
                    members = archive.infolist()
                    intact = False
                    if not any(member.filename.endswith("/data.pkl") for member in members):
                        reason = "it is not a file of PyTorch"
                    elif sum(member.file_size for member in members) > file.stat().st_size:
                        # PyTorch does not compress. A small file must not fill the memory.
                        reason = "it is compressed, or holds the same bytes several times"
                    else:
                        intact = archive.testzip() is None  # PyTorch writes these sums but does not look at them
                if intact:
                    opened.seek(0)
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # PyTorch warns of kinds of tensors that are refused anyway
                        saved = torch.load(opened, map_location="cpu", weights_only=True)
                    if isinstance(saved, dict):
                        return saved
                    reason = "it holds no encoder"
    except MemoryError:
        raise
    except Irregular as fault:
        reason = f"it {fault}"
    except Exception as fault:  # what damaged archives and pickles raise is not documented
        if isinstance(fault, OSError) and fault.filename is not None:  # it cannot even be opened
            raise
        if isinstance(fault, pickle.UnpicklingError):
            reason = "it holds more than tensors and plain values, which could run code and is not loaded"
    raise InputError(f"{file}: is not a checkpoint of raysweep: {reason}")


def to_bytes(state: dict[str, Any]) -> bytes:
    """Tensors and plain values as PyTorch saves them."""
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
