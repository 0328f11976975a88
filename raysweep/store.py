"""The results directory of a sweep: names, atomic files, trial status, checkpoints. The truth that everything reads.

Ray, `--local` and the report all go through here; Ray's own state (under `.ray/`) is never needed to go on.

    DIR/NAME/sweep.yaml                      the resolved sweep, and what made it
    DIR/NAME/proposals.json                  the points that a searcher has proposed, in their order
    DIR/NAME/TRIAL/attempt.json              which attempt, in which process
    DIR/NAME/TRIAL/checkpoints/00000012.pt   state after epoch 12, and its .json with the hash, written last
    DIR/NAME/TRIAL/events.out.tfevents.*     TensorBoard
    DIR/NAME/TRIAL/error.txt                 the traceback of an attempt that broke off
    DIR/NAME/TRIAL/result.json               written once, at the end
    DIR/NAME/TRIAL/encoder.pt                the trained encoder
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import pickle
import socket
import tempfile
import time
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, get_args

import yaml

from raysweep.config import SETTINGS, Settings, about, fingerprint, protocol
from raysweep.errors import InputError
from raysweep.space import Proposal, Sweep, Trial, build, check_name, read

if TYPE_CHECKING:
    from torch import Tensor

KEEP_CHECKPOINTS = 2


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
    )


def record_failure(trial: Trial, probe_digest: str, directory: Path) -> Result:
    """Record that the trial's last attempt broke off; the reason is in its `error.txt`, or its process died."""
    error = "its process died (killed, out of memory, or its node was lost)"
    if (directory / "error.txt").exists():
        error = (directory / "error.txt").read_text().strip().splitlines()[-1]
    directory.mkdir(parents=True, exist_ok=True)
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
    write_result(directory, result)
    return result


def record_stop(
    trial: Trial, probe_digest: str, directory: Path, *, reason: str, metrics: dict[str, float], wall_s: float
) -> Result:
    """Record that the trial was stopped early, after its process has reported for the last time.

    Its checkpoints are removed: it is not run again.

    Args:
        trial: which.
        probe_digest: identifies its probe dataset.
        directory: its own.
        reason: why, in words.
        metrics: the newest of each that it reported.
        wall_s: seconds spent on its last attempt.
    """
    result = make_result(
        trial,
        probe_digest,
        directory,
        status="stopped",
        error=reason,
        metrics=metrics,
        wall_s=wall_s,
        device="unknown",
        warnings=[],
    )
    write_result(directory, result)
    remove_checkpoints(directory)
    return result


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file that becomes `path` where the block ends: until then, a crash included, `path` is absent or old."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide results from colleagues
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that at every moment, a crash included, it is absent, old or complete."""
    with replacing(path) as file:
        file.write(content)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """`content` as strict JSON (NaN is a fault of ours), atomically."""
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False).encode())


class Store:
    """The results directory of one sweep."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    @classmethod
    def plan(cls, output: Path, name: str | None, default: str) -> Store:
        """Choose the directory of a new sweep without making it.

        Args:
            output: the parent directory, which may not exist yet.
            name: the wish of the user, refused if it exists; None takes `default` with the next free suffix.
            default: the search space's own name.

        Raises:
            InputError: the name is none, exists already, or `output` is not a directory that can be written to.
        """
        if name is not None:
            check_name(name, "--name")
            if (output / name).exists():
                raise InputError(f"--name {name}: {output / name} exists; choose another name, or --resume it")
        check_writable(output)
        number, chosen = 1, name or default
        while (output / chosen).exists():
            number += 1
            chosen = f"{default}-{number}"
        return cls(output / chosen)

    @classmethod
    def open(cls, root: Path) -> tuple[Store, Sweep]:
        """The sweep that lies in `root`; raises InputError if none does."""
        if not (root / "sweep.yaml").is_file():
            raise InputError(f"{root}: no sweep lies there (no sweep.yaml)")
        store = cls(root)
        return store, store.proposed(build(read(root / "sweep.yaml"), {}, str(root / "sweep.yaml")))

    def create(self, sweep: Sweep, made_by: dict[str, Any]) -> None:
        """Make the directory, which must not exist, and write `sweep.yaml`."""
        try:
            self.root.mkdir(parents=True)
        except FileExistsError:
            raise InputError(f"{self.root}: another process has just made it; run the command again") from None
        header = "# The resolved sweep; it can be given to run_sweep.py as a search space.\n"
        text = yaml.safe_dump({**sweep.to_dict(), "made_by": made_by}, sort_keys=False, allow_unicode=True)
        write_atomically(self.root / "sweep.yaml", (header + text).encode())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the sweep for one driver; raises InputError where another holds it. The lock dies with its process."""
        with open(self.root / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{self.root}: another process is running this sweep") from None
            except OSError as fault:
                raise InputError(f"{self.root}: its file system cannot lock files ({fault.strerror})") from None
            yield

    def trial(self, name: str) -> Path:
        """The directory of a trial."""
        return self.root / name

    def result(self, name: str) -> Result | None:
        """How the trial ended; None as long as it has not. Raises InputError if the file was damaged."""
        return read_result(self.trial(name))

    def proposals(self) -> list[Proposal]:
        """The points that a searcher has proposed, in their order; raises InputError if the file was damaged."""
        path = self.root / "proposals.json"
        if not path.exists():
            return []
        try:
            points = json.loads(path.read_text())["points"]
            return [Proposal(int(point["space"]), dict(point["values"])) for point in points]
        except (ValueError, KeyError, TypeError) as fault:
            raise InputError(f"{path}: is damaged ({fault}); the sweep cannot go on without its points") from None

    def record_proposals(self, points: Sequence[Proposal]) -> None:
        """Write down what was proposed, before any trial of it runs."""
        write_json(self.root / "proposals.json", {"points": [asdict(point) for point in points]})

    def proposed(self, sweep: Sweep) -> Sweep:
        """The sweep with the trials of the points that its searcher has proposed so far; without one, as it is.

        Raises:
            InputError: a point is none of the sweep's, as after `sweep.yaml` was changed by hand.
        """
        for number, point in enumerate(self.proposals() if sweep.tune.searcher != "none" else []):
            grown = sweep.propose(point)
            if grown is None:
                path = self.root / "proposals.json"
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

    def results(self, sweep: Sweep) -> list[Result]:
        """The results there are, in the order of the trials; raises InputError if one is of other settings."""
        results = []
        for trial in sweep.trials:
            result = self.result(trial.name)
            if result is not None:
                check_settings(result.settings, trial.settings, f"{self.trial(trial.name) / 'result.json'}")
                results.append(result)
        return results


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
        raise InputError(f"{path}: is damaged ({fault}); delete it and --resume to run the trial again") from None


def write_result(directory: Path, result: Result) -> None:
    """Write how the trial ended. From here on it is not run again."""
    write_json(directory / "result.json", asdict(result))


def begin_attempt(directory: Path, settings: Settings) -> int:
    """Note that this process now runs the trial with these settings; returns which attempt this is, from 1."""
    directory.mkdir(parents=True, exist_ok=True)
    for left in ("result.json", "error.txt"):  # of an attempt that failed
        (directory / left).unlink(missing_ok=True)
    attempt = attempts(directory) + 1
    write_json(
        directory / "attempt.json",
        {
            "attempt": attempt,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": time.time(),
            "settings": settings.model_dump(),
        },
    )
    return attempt


def attempts(directory: Path) -> int:
    """How often the trial was begun."""
    path = directory / "attempt.json"
    begun = read_attempt(path) if path.exists() else None
    return int(begun["attempt"]) if begun is not None else 0


def read_attempt(path: Path) -> dict[str, Any] | None:
    """What `begin_attempt` wrote; None, with a warning, if the file was damaged."""
    try:
        content = json.loads(path.read_text())
        return {"attempt": int(content["attempt"]), "settings": dict(content["settings"])}
    except (ValueError, KeyError, TypeError):
        warnings.warn(f"{path} is damaged; counting attempts anew", stacklevel=2)
        return None


def save_checkpoint(directory: Path, epoch: int, state: dict[str, Any]) -> None:
    """Save `state` (tensors and plain values) after `epoch`; the newest `KEEP_CHECKPOINTS` are kept.

    The manifest with the hash is written last: a checkpoint without one does not exist.
    """
    folder = directory / "checkpoints"
    folder.mkdir(exist_ok=True)
    content = to_bytes(state)
    write_atomically(folder / f"{epoch:08}.pt", content)
    write_json(folder / f"{epoch:08}.json", {"sha256": hashlib.sha256(content).hexdigest(), "epoch": epoch})
    for old in sorted(folder.glob("*.json"))[:-KEEP_CHECKPOINTS]:
        old.unlink()
        old.with_suffix(".pt").unlink(missing_ok=True)


def load_checkpoint(directory: Path) -> dict[str, Any] | None:
    """The newest complete checkpoint, None if there is none; a damaged one is passed over with a warning."""
    import torch

    for manifest in sorted((directory / "checkpoints").glob("*.json"), reverse=True):
        file = manifest.with_suffix(".pt")
        content = file.read_bytes() if file.exists() else b""
        # As text, so that a damaged manifest is one that does not match.
        if content and hashlib.sha256(content).hexdigest() in manifest.read_text(errors="replace"):
            state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            return state
        warnings.warn(f"checkpoint {file} is damaged; going on from the one before", stacklevel=2)
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
