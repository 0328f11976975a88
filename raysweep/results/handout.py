"""Files through which trials of a sweep share a pretraining: its state, which one trial hands out to others.

    DIR/NAME/pretraining/DIGEST/00000400.pt      the state after epoch 400, as in a checkpoint
    DIR/NAME/pretraining/DIGEST/00000400.events  the TensorBoard records of the pretraining before its last epoch
    DIR/NAME/pretraining/DIGEST/00000400.json    the hashes of both, written last

If another trial pretrains later and hands out the same epoch for other trials, its two files are 00000400-HASH.pt and
00000400-HASH.events, and 00000400.json names both states.

The files are in the results directory, or in its bucket without a local copy, so that trials on every node read them.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from raysweep.results.checkpoints import digest_of, to_bytes
from raysweep.results.result import describe_error
from raysweep.results.store import Store
from raysweep.space import Sweep
from raysweep.space.sharing import pretrainings_of
from raysweep.system.files import check_held, discard, parse_json, read_regular, write_atomically

FOLDER = "pretraining"
"""The directory of handed-out states in a results directory."""
NAME = re.compile(r"\.?[0-9]{8}(-[0-9a-f]{8})?\.(pt|events|json)(\..+)?")
"""Names of the files, including temporary files of a process that was killed while writing."""
DIGEST = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Taken:
    """The state of a pretraining that a trial takes over from another trial, or continues."""

    trial: str
    """The trial that pretrained."""
    state: dict[str, Any]
    """The training state after the last epoch."""
    collapsed: int
    """Number of evaluations in a row in which the embedding was collapsed."""
    losses: list[float]
    """The loss of each epoch before the last one."""
    metrics: dict[str, float]
    """The newest value of each metric before the last epoch was logged."""
    last: dict[str, float]
    """The metrics of the last epoch."""
    records: bytes
    """The TensorBoard records before the last epoch was logged."""
    warnings: list[str]
    precision: str
    """The precision of pretraining."""
    wall_s: float | None = None
    """If the trial continues a shorter one: the seconds that the shorter one took. Else None."""


TAKEN = ("trial", "state", "collapsed", "losses", "last", "warnings", "precision")
"""The fields of `Taken` that are the same for all trials."""


@dataclass(frozen=True)
class Handout:
    """The handed-out states of one pretraining.

    Args:
        store: The results directory of the sweep.
        digest: The digest of the pretraining.
    """

    store: Store
    digest: str

    def write(self, epoch: int, state: dict[str, Any], events: bytes, covered: Collection[str]) -> None:
        """Hand out the state after an epoch, unless all trials that can take it over have a state already.

        Earlier states of the epoch stay, because other trials may be reading them, or need them.

        Args:
            epoch: The number of finished epochs of pretraining.
            state: Tensors and plain values.
            events: The TensorBoard records of the pretraining.
            covered: The keys (`raysweep.space.sharing.online_key`) of the trials that can take the state over.

        Raises:
            OSError: The files cannot be written.
        """
        earlier = self._states(epoch)
        if earlier and set(covered) <= keys_of(earlier):
            return
        content = to_bytes(state)
        name = f"{epoch:08}-{digest_of(content)[:8]}" if earlier else f"{epoch:08}"
        entry = {"name": name, "state": digest_of(content), "events": digest_of(events), "covered": sorted(covered)}
        self._write(f"{name}.pt", content)
        self._write(f"{name}.events", events)
        self._write(f"{epoch:08}.json", json.dumps({"states": [*earlier, entry]}).encode())

    def covered(self, epoch: int) -> frozenset[str] | None:
        """Return the keys of the trials that can take over a state after an epoch; None if no state is complete.

        A bucket or a disk that does not answer counts as not complete.
        """
        states = self._states(epoch)
        return keys_of(states) if states else None

    def read(self, epoch: int, key: str) -> tuple[dict[str, Any], bytes] | None:
        """Return the state after an epoch for the trials with this key, on the CPU, and the TensorBoard records.

        Returns None if there is no intact state for them.
        """
        import torch

        for entry in self._states(epoch):
            if key not in entry["covered"]:
                continue
            try:
                content, events = self._read(f"{entry['name']}.pt"), self._read(f"{entry['name']}.events")
            except (OSError, ValueError):
                continue
            if (digest_of(content), digest_of(events)) == (entry["state"], entry["events"]):
                state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
                return state, events
        return None

    def remove(self) -> None:
        """Remove the files; raises OSError if that fails."""
        if self.store.bucket is not None:
            bucket = self.store.bucket / FOLDER / self.digest
            for name in sorted(bucket.files(), reverse=True):
                bucket.remove(name)
            return
        check_held(self.store.root)
        folder = self.store.root / FOLDER / self.digest
        for file in sorted(folder.glob("*"), reverse=True):
            if NAME.fullmatch(file.name):
                discard(file)
        with suppress(OSError):  # they may hold files of the user
            folder.rmdir()

    def _states(self, epoch: int) -> list[dict[str, Any]]:
        """Return what the manifest says about each state after an epoch."""
        try:
            manifest: Any = parse_json(self._read(f"{epoch:08}.json"))
        except (OSError, ValueError):
            return []
        states = manifest.get("states") if isinstance(manifest, dict) else None
        return states if isinstance(states, list) and all(map(is_sound, states)) else []

    def _write(self, name: str, content: bytes) -> None:
        if self.store.bucket is not None:
            (self.store.bucket / FOLDER / self.digest).write(name, content)
            return
        folder = self.store.root / FOLDER / self.digest
        for directory in (folder.parent, folder):  # a results directory that was removed is not created again
            directory.mkdir(exist_ok=True)
        write_atomically(folder / name, content)

    def _read(self, name: str) -> bytes:
        if self.store.bucket is None:
            folder = self.store.root / FOLDER / self.digest
            # NFS may report a new file as missing for a while, but a listing of the directory shows it.
            if name not in os.listdir(folder):
                raise FileNotFoundError(errno.ENOENT, "there is no such file", str(folder / name))
            return read_regular(folder / name)
        bucket = self.store.bucket / FOLDER / self.digest
        if name.endswith(".json") and not bucket.has(name):  # `read` would try again and again if the object is missing
            raise FileNotFoundError(errno.ENOENT, "there is no such object", name)
        return bucket.read(name)


def is_sound(entry: Any) -> bool:
    """Return whether an entry of a manifest has all its fields, and names files of the same directory."""
    if not isinstance(entry, dict) or not {"name", "state", "events", "covered"} <= entry.keys():
        return False
    return isinstance(entry["covered"], list) and NAME.fullmatch(f"{entry['name']}.pt") is not None


def keys_of(states: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Return the keys of the trials that can take over one of these states."""
    return frozenset(key for each in states for key in each["covered"])


def remove_unneeded(store: Store, sweep: Sweep) -> None:
    """Remove the states that no unfinished trial of a sweep needs, such as the states of a process that was killed.

    If that fails, a warning says so; the sweep has its results all the same.
    """
    if sweep.encoders:  # an evaluation pretrains nothing
        return
    try:
        present = handed_out(store)
        for name in present - (needed_digests(store, sweep) if present else present):
            Handout(store, name).remove()
        if store.bucket is None:
            with suppress(OSError):  # it may hold states that are needed, or files of the user
                (store.root / FOLDER).rmdir()
    except OSError as fault:
        warnings.warn(f"shared pretrainings cannot be removed: {describe_error(fault)}", stacklevel=2)


def handed_out(store: Store) -> set[str]:
    """Return the digests of the pretrainings whose files are there."""
    if store.bucket is not None:
        names = {name.partition("/")[0] for name in (store.bucket / FOLDER).files()}
    else:
        names = {path.name for path in (store.root / FOLDER).glob("*")}
    return {name for name in names if DIGEST.fullmatch(name)}


def needed_digests(store: Store, sweep: Sweep) -> set[str]:
    """Return the digests of the pretrainings that an unfinished trial needs."""
    done = {result.trial for result in store.results(sweep, skip_damaged=True) if result.status != "failed"}
    return {each.digest for each in pretrainings_of(trial for trial in sweep.trials if trial.name not in done)}
