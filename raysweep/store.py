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
import fcntl
import hashlib
import io
import itertools
import json
import os
import pickle
import socket
import tempfile
import time
import traceback
import uuid
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, get_args

from raysweep.bucket import Bucket, Mirror, Replaced, is_uri, join
from raysweep.bucket import hold as hold_bucket
from raysweep.config import SETTINGS, Settings, about, fingerprint, protocol
from raysweep.errors import InputError
from raysweep.space import Proposal, Sweep, Trial, build, check_name, mapping, read, to_yaml

if TYPE_CHECKING:
    from torch import Tensor

KEEP_CHECKPOINTS = 2
PROPOSALS = "proposals.json"
HOLD_SECONDS = 60.0
PUSH_SECONDS = 60.0
"""After how long a trial's events go into a bucket, where they do not go with a checkpoint before."""
STATE = ("attempt.json", "error.txt", "result.json")
"""The files of a trial that say how it stands."""
NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "Cannot allocate memory", "low on memory")
"""What PyTorch, on a CPU and on a GPU, the system and Ray say where memory ran out."""


@dataclass(frozen=True)
class Result:
    """How one trial ended."""

    trial: str
    point: str
    status: str
    """`finished`, `failed`, or `stopped` early."""
    error: str | None
    """Why it failed or was stopped."""
    baseline: bool
    varied: dict[str, Any]
    settings: dict[str, Any]
    metrics: dict[str, float]
    protocol: dict[str, Any]
    fingerprint: str
    wall_s: float
    """Seconds spent on it, over all attempts, up to the last checkpoint of each that was cut off."""
    attempts: int
    device: str
    warnings: list[str] = field(default_factory=list)
    linear_probe: str = ""
    """Which linear probe of a bank counted, as `Head` writes it; empty where there was only one."""
    precision: str = ""
    """In which it was pretrained, at last: what `auto` came to; empty where that is not known."""


def make_result(
    trial: Trial,
    probe_digest: str,
    directory: Path,
    *,
    status: str,
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
    """Why something broke off, in one line that says so where memory or space ran out."""
    text = (str(fault).strip().splitlines() or [""])[0]
    if isinstance(fault, MemoryError) or any(words in str(fault) for words in NO_MEMORY):
        return f"out of memory: {text}" if text else "out of memory"
    if isinstance(fault, OSError) and fault.strerror is not None:
        what = "disk full" if fault.errno in (errno.ENOSPC, errno.EDQUOT) else type(fault).__name__
        return ": ".join([what, fault.strerror, *([str(fault.filename)] if fault.filename is not None else [])])
    return f"{type(fault).__name__}: {text}" if text else type(fault).__name__


def note_traceback(directory: Path) -> None:
    """Write the traceback of the exception that is being handled to the trial's `error.txt`."""
    with suppress(OSError):  # the disk may be full, and the exception itself goes on to whoever records it
        (directory / "error.txt").write_text(traceback.format_exc())


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file that becomes `path` where the block ends: until then, a crash included, `path` is absent or old."""
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide results from colleagues
        os.replace(temporary, path)
    except BaseException as fault:
        if isinstance(fault, OSError) and f".{path.name}." in str(fault.filename or f".{path.name}."):
            fault.filename = str(path)  # what a full disk raises names no file
        if temporary is not None:
            with suppress(OSError):  # where nothing can be removed either, what was raised says more
                os.unlink(temporary)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that at every moment, a crash included, it is absent, old or complete."""
    with replacing(path) as file:
        file.write(content)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """`content` as strict JSON (NaN is a fault of ours), atomically."""
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False).encode())


class Store:
    """The results directory of one sweep.

    Args:
        place: a local path, or the URI of a directory in a bucket; then `root` is this machine's copy of it.
        copies: keeps apart the copies of those who write the trials and those who only read.
    """

    def __init__(self, place: Path | str, copies: str = "sweeps") -> None:
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
            check_writable(Path(output))
            paths = (Path(output) / chosen for chosen in candidates(name, default))
            stores = (cls(path) for path in paths if not os.path.lexists(path))
        store = next(stores, None)
        if store is None:
            raise InputError(f"--name {name}: {output}/{name} exists; choose another name, or --resume it")
        return store

    @classmethod
    def open(cls, place: Path | str, copies: str = "sweeps") -> tuple[Store, Sweep]:
        """The sweep that lies there; raises InputError if none does, or its bucket cannot be reached."""
        store = cls(place, copies)
        if store.bucket is not None and store._mirror is not None:
            store.bucket.check(write=False)
            store._mirror.pull(lambda name: name in ("sweep.yaml", PROPOSALS))
        if not (store.root / "sweep.yaml").is_file():
            raise InputError(f"{place}: no sweep lies there (no sweep.yaml)")
        return store, store.proposed(build(read(store.root / "sweep.yaml"), {}, f"{place}/sweep.yaml"))

    def create(self, sweep: Sweep, made_by: dict[str, Any]) -> None:
        """Make the directory, which must not exist, and write `sweep.yaml`."""
        if self.bucket is not None:
            with self.lock():
                if "sweep.yaml" in self.bucket.names():
                    raise InputError(f"{self.place}: another process has just made it; run the command again")
                self._write(sweep, {"made_by": made_by})
                self.push()
            return
        try:
            self.root.mkdir(parents=True)
        except FileExistsError:
            raise InputError(f"{self.root}: another process has just made it; run the command again") from None
        self._write(sweep, {"made_by": made_by})

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
        return {name: of for entry in self.history() for name, of in mapping(entry.get("datasets"), where).items()}

    def _write(self, sweep: Sweep, records: dict[str, Any]) -> None:
        header = "# The resolved sweep; it can be given to run_sweep.py as a search space.\n"
        text = to_yaml({**sweep.to_dict(), **records})
        write_atomically(self.root / "sweep.yaml", (header + text).encode())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the sweep for one driver; raises InputError where another holds it. The lock dies with its process.

        In a bucket, where others see that only after a while, it brings over how the trials stand.
        """
        if self.bucket is not None:
            self.root.mkdir(parents=True, exist_ok=True)
        with open(self.root / ".lock", "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{self.place}: another process is running this sweep") from None
            except OSError as fault:
                raise InputError(f"{self.root}: its file system cannot lock files ({fault.strerror})") from None
            if self.bucket is None:
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
            FileNotFoundError: the sweep does not lie there, as on a node that joined without the shared mount.
        """
        if self.bucket is None and not (self.root / "sweep.yaml").exists():  # or what it writes would be lost
            raise FileNotFoundError(
                errno.ENOENT, f"{socket.gethostname()} does not see the sweep's sweep.yaml", str(self.root)
            )
        with hold(self.trial(name)):
            if self.bucket is None:
                yield lambda every=0.0: None
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
        return read_result(self.trial(name))

    def proposals(self) -> list[Proposal]:
        """The points that a searcher has proposed, in their order; raises InputError if the file was damaged."""
        path = self.root / PROPOSALS
        if not path.exists():
            return []
        try:
            points = json.loads(path.read_text())["points"]
            return [Proposal(int(point["space"]), dict(point["values"])) for point in points]
        except (ValueError, KeyError, TypeError) as fault:
            raise InputError(f"{path}: is damaged ({fault}); the sweep cannot go on without its points") from None

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
            grown = sweep.propose(point)
            if grown is None:
                path = self.root / PROPOSALS
                raise InputError(f"{path}: point {number} is none of this sweep's: {point.values}; start a new sweep")
            sweep = grown
        return sweep

    def check_begun(self, sweep: Sweep) -> None:
        """Raises InputError if a trial was begun with settings other than the sweep now has."""
        for trial in sweep.trials:
            path = self.trial(trial.name) / "attempt.json"
            begun = read_attempt(path) if path.exists() else None
            if begun is not None:
                check_settings(begun["settings"], trial.settings, str(path.parent))

    def set_damaged_aside(self, sweep: Sweep) -> None:
        """Rename every damaged `result.json`, with a warning: its trial counts as one that has not finished."""
        for trial in sweep.trials:
            try:
                self.result(trial.name)
            except InputError:
                path = self.trial(trial.name) / "result.json"
                number = 1 + len(list(path.parent.glob("result.json.damaged-*")))
                aside = path.rename(path.with_name(f"result.json.damaged-{number}"))
                if self.bucket is not None:
                    (self.bucket / trial.name).write(aside.name, aside.read_bytes())
                    (self.bucket / trial.name).remove(path.name)
                warnings.warn(f"{path} was damaged and is now {aside.name}; the trial runs again", stacklevel=2)

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


def existing_ancestor(path: Path) -> Path:
    """`path` itself or the nearest directory above it that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def check_settings(found: dict[str, Any], expected: Settings, where: str) -> None:
    """Raises InputError if what was found is of other settings, as after `sweep.yaml` was changed by hand.

    A setting that was not there yet when it was made counts as having its default.
    """
    for name in SETTINGS:
        was, says = found.get(name, Settings.model_fields[name].default), getattr(expected, name)
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


def check_writable(directory: Path) -> None:
    """Raises InputError unless `directory`, or the nearest ancestor that exists, can be written to."""
    existing = existing_ancestor(directory)
    if not existing.is_dir():
        raise InputError(f"--output {directory}: {existing} is not a directory")
    try:
        # Trying is the only sure test: root passes os.access on a read-only mount.
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as fault:
        raise InputError(f"--output {directory}: cannot write to {existing}: {fault.strerror}") from None


def read_result(directory: Path) -> Result | None:
    """The `result.json` of a trial's directory, None if there is none; what older versions left out has its default."""
    path = directory / "result.json"
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        optional = {item.name for item in fields(Result) if (item.default, item.default_factory) != (MISSING, MISSING)}
        names = [item.name for item in fields(Result) if item.name in content or item.name not in optional]
        return Result(**{name: content[name] for name in names})
    except (ValueError, KeyError, TypeError) as fault:
        raise InputError(f"{path}: is damaged ({fault}); --resume puts it aside and runs the trial again") from None


def write_result(directory: Path, result: Result) -> None:
    """Write how the trial ended. From here on it is not run again."""
    write_json(directory / "result.json", asdict(result))


def same_file(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one that now lies at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def hold(directory: Path) -> Iterator[None]:
    """Hold a trial's directory for this process, waiting for the process that has it: it dies with that process.

    A worker whose driver was killed lives on for seconds, in which the sweep may be resumed already.

    Raises:
        TimeoutError: another process still has it after `HOLD_SECONDS`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path, end = directory / ".lock", time.monotonic() + HOLD_SECONDS
    while True:
        with open(path, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = same_file(file.fileno(), path)  # not one that its last holder has removed
            except BlockingIOError:
                held = False
            if held:
                try:
                    yield
                finally:
                    with suppress(OSError):  # read-only by now; the lock itself goes with the open file
                        path.unlink()
                return
        if time.monotonic() > end:
            raise TimeoutError(errno.ETIMEDOUT, "another process still runs the trial in it", str(directory))
        time.sleep(0.1)


def begin_attempt(directory: Path, settings: Settings) -> int:
    """Note that this process now runs the trial with these settings; returns which attempt this is, from 1."""
    directory.mkdir(parents=True, exist_ok=True)
    for left in ("result.json", "error.txt"):  # of an attempt that failed
        (directory / left).unlink(missing_ok=True)
    for left_over in directory.glob(".*.*"):  # of a process that was killed while writing (see `replacing`)
        left_over.unlink()
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
    path = directory / "attempt.json"
    begun = read_attempt(path) if path.exists() else None
    if begun is not None:
        return int(begun["attempt"])
    numbers = [path.name.split(".")[3] for path in directory.glob("events.out.tfevents.*.raysweep")]
    return max((int(number) for number in numbers if number.isdigit()), default=0)


def read_attempt(path: Path) -> dict[str, Any] | None:
    """What `begin_attempt` wrote; None, with a warning, if the file was damaged."""
    try:
        content = json.loads(path.read_text())
        return {"attempt": int(content["attempt"]), "settings": dict(content["settings"])}
    except (ValueError, KeyError, TypeError):
        warnings.warn(f"{path} is damaged; counting attempts by the event files", stacklevel=2)
        return None


def save_checkpoint(directory: Path, state: dict[str, Any]) -> None:
    """Save `state` (tensors and plain values) under the next number; the newest `KEEP_CHECKPOINTS` are kept.

    The manifest with the hash is written last: a checkpoint without one does not exist.
    """
    folder = directory / "checkpoints"
    folder.mkdir(exist_ok=True)
    earlier = sorted(path.stem for path in folder.glob("*.json"))
    number = f"{int(earlier[-1]) + 1 if earlier else 1:08}"
    content = to_bytes(state)
    write_atomically(folder / f"{number}.pt", content)
    write_json(folder / f"{number}.json", {"sha256": hashlib.sha256(content).hexdigest()})
    kept = [*earlier, number][-KEEP_CHECKPOINTS:]
    for file in sorted(folder.iterdir()):  # manifests first; and what a process left that was killed while writing
        if file.stem not in kept:
            file.unlink()


def load_checkpoint(directory: Path) -> dict[str, Any] | None:
    """The newest complete checkpoint, None if there is none; a damaged one is removed, with a warning."""
    import torch

    for manifest in sorted((directory / "checkpoints").glob("*.json"), reverse=True):
        file = manifest.with_suffix(".pt")
        content = file.read_bytes() if file.exists() else b""
        # As text, so that a damaged manifest is one that does not match.
        if content and hashlib.sha256(content).hexdigest() in manifest.read_text(errors="replace"):
            state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            return state
        warnings.warn(f"checkpoint {file} is damaged; going on from the one before it, if there is one", stacklevel=2)
        manifest.unlink()  # so that it is not one of those that are kept
        file.unlink(missing_ok=True)
    return None


def remove_checkpoints(directory: Path) -> None:
    """Remove what only a running trial needs."""
    for file in (directory / "checkpoints").glob("*"):
        file.unlink()
    if (directory / "checkpoints").exists():
        (directory / "checkpoints").rmdir()


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

    Returns:
        The description and the weights, on the CPU.

    Raises:
        InputError: the file is missing, damaged, something else, or describes an encoder that cannot be.
    """
    import torch

    file = encoder_file(path)
    saved = load_plain(file)
    try:
        if "state" in saved:  # a training checkpoint
            description, weights = describe(saved["settings"], saved["state"]["encoder"]), saved["state"]["encoder"]
        else:
            description, weights = saved, saved["encoder"]
        architecture = description.get("architecture", "conv6")  # older files do not say it: there was no other
        channels, image_size, embedding_dim = (description[n] for n in ("channels", "image_size", "embedding_dim"))
    except (KeyError, TypeError, AttributeError, StopIteration):
        raise InputError(f"{file}: is not a checkpoint of raysweep: it holds no encoder") from None
    if not isinstance(weights, dict) or not all(isinstance(weight, torch.Tensor) for weight in weights.values()):
        raise InputError(f"{file}: is not a checkpoint of raysweep: its encoder is not a mapping of tensors")
    known = get_args(Settings.model_fields["encoder"].annotation)
    if architecture not in known:
        raise InputError(f"{file}: unknown architecture {architecture!r}; valid: {', '.join(known)}")
    sizes = {"image_size": image_size, "embedding_dim": embedding_dim}
    if channels not in (1, 3) or any(type(size) is not int or not 1 <= size < 2**16 for size in sizes.values()):
        raise InputError(f"{file}: is damaged: it describes an encoder with channels {channels!r}, {sizes}")
    return SavedEncoder(file, architecture, channels, image_size, embedding_dim, dict(weights))


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
        with open(file, "rb") as opened:
            if opened.read(4) == b"PK\x03\x04":
                reason = "it is cut off or damaged"
                with zipfile.ZipFile(opened) as archive:
                    intact = archive.testzip() is None  # PyTorch writes these sums but does not look at them
                    if not any(name.endswith("/data.pkl") for name in archive.namelist()):
                        intact, reason = False, "it is not a file of PyTorch"
                if intact:
                    opened.seek(0)
                    saved = torch.load(opened, map_location="cpu", weights_only=True)
                    if isinstance(saved, dict):
                        return saved
                    reason = "it holds no encoder"
    except MemoryError:
        raise
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
