"""The local copy of a sweep in a bucket, and the lock and claim of the process that works on it."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from raysweep.errors import InputError, printable
from raysweep.results.bucket import THREADS, Bucket, Info, Wanted
from raysweep.results.credentials import hidden, is_uri
from raysweep.system.files import UNSUPPORTED, parse_json, replacing

BEAT, STALE = 15.0, 60.0  # seconds between two heartbeats of a lock, and the age at which a lock counts as abandoned
CLAIM = "attempt.json"
"""The file that tells which process owns a directory. A process that finds another's claim there stops writing."""


class Held(InputError):
    """Another process holds the lock."""


class Replaced(OSError):
    """Another process has taken this work over. This process must leave; the other one records how it ends."""


def push_rank(name: str) -> tuple[int, str]:
    """Return the sort key for uploading a trial's files; files are removed in the reverse order.

    A checkpoint becomes valid with its manifest, and it needs the event files. The result ends a trial, so it is last.
    """
    folder, _, file = name.rpartition("/")
    if folder.endswith("checkpoints"):
        return (2 if file.endswith(".pt") else 3), name
    return {CLAIM: 0, "result.json": 4}.get(file, 1), name


class Mirror:
    """A directory in a bucket and its local copy, used by one process at a time.

    Args:
        bucket: The directory in the bucket.
        local: The local copy's path; created when needed.
    """

    def __init__(self, bucket: Bucket, local: Path) -> None:
        self.bucket, self.local = bucket, local
        self._known: dict[str, Info] = {}  # files that were the same in both places at the last pull or push
        self._claim: bytes | None = None
        self._pushed = -math.inf

    def pull(self, wanted: Wanted = lambda name: True) -> None:
        """Make the wanted files of the copy equal to the bucket's: fetch new ones and remove the others."""
        remote = {name: info for name, info in self.bucket.files().items() if wanted(name)}
        local = self._local_files(wanted)
        for name in local.keys() - remote.keys():
            local[name].unlink(missing_ok=True)  # another reader of the copy may have removed it
        # Times are whole seconds. Only the claim may be replaced within a second by a file of the same size.
        missing = [
            name
            for name, info in remote.items()
            if name not in local or name == CLAIM or not unchanged(local[name], info)
        ]
        with ThreadPoolExecutor(THREADS) as pool:
            fetched = dict(zip(missing, pool.map(lambda name: self._fetch(name, remote[name]), missing), strict=True))
        self._known = {name: info for name, each in remote.items() if (info := fetched.get(name, each)) is not None}

    def push(self, wanted: Wanted = lambda name: True, every: float = 0.0) -> None:
        """Upload what was written in the copy since the last `pull` or `push`, and remove what was removed.

        Args:
            wanted: Selects the files by name.
            every: Do nothing if the last push is fewer seconds ago.

        Raises:
            Replaced: Another process has taken the directory over.
            OSError: The store does not accept the files.
        """
        if time.monotonic() - self._pushed < every:
            return
        remote, local = self.bucket.files(), self._local_files(wanted)
        if self._claim is not None and self.bucket.read_if_present(CLAIM) != self._claim:
            raise Replaced(errno.EBUSY, "another process has taken over this directory", str(self.bucket))
        known = self._known
        changed = [name for name, path in local.items() if name not in known or not unchanged(path, known[name])]
        removed = [name for name in known.keys() & remote.keys() - local.keys() if wanted(name)]
        sent = {}
        for name in sorted(changed, key=push_rank):
            before = local[name].stat()
            content = local[name].read_bytes()
            self.bucket.write(name, content)
            if name == CLAIM:
                self._claim = content
            sent[name] = len(content), before
        for name in sorted(removed, key=push_rank, reverse=True):
            self.bucket.remove(name)
        if sent or removed:
            remote = self.bucket.files()
        for name, (size, before) in sent.items():
            if name not in remote or remote[name].size != size:
                raise OSError(errno.EIO, f"{name} has not arrived as it was sent", str(self.bucket))
            if local[name].stat().st_mtime_ns == before.st_mtime_ns:
                set_time(local[name], remote[name])
        self._known = {name: info for name, info in known.items() if name in remote}
        self._known |= {name: remote[name] for name in sent}
        self._pushed = time.monotonic()

    def has_unsent(self, name: str) -> bool:
        """Return whether this process has claimed the directory and has written a file that the bucket may lack."""
        path = self.local / name
        is_sent = name in self._known and unchanged(path, self._known[name])
        return self._claim is not None and path.exists() and not is_sent

    def _local_files(self, wanted: Wanted) -> dict[str, Path]:
        """Return the wanted regular files of the copy, by their relative path."""
        files = {}
        for folder, folders, names in os.walk(self.local):
            folders[:] = [each for each in folders if not hidden(each)]
            for path in (Path(folder, name) for name in names):
                name = path.relative_to(self.local).as_posix()
                if not hidden(path.name) and wanted(name) and path.is_file():
                    files[name] = path
        return files

    def _fetch(self, name: str, info: Info) -> Info | None:
        """Fetch one file atomically. Another process may replace or remove the object after the listing.

        Args:
            name: The name of the file.
            info: The size and the time of the object in the listing.

        Returns:
            The time of the listing with the size of what was read, so that the file does not count as changed here;
            None if the object was removed. The file here is then removed too.
        """
        path = self.local / name
        if path.resolve() != self.local.resolve() / name:
            raise InputError(f"{self.bucket}: the object {name!r} would lie outside of {self.local}")
        content = self.bucket.read_if_present(name)
        if content is None:
            path.unlink(missing_ok=True)
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, durable=False) as file:
            file.write(content)
            file.flush()  # a later write would change the time
            # The file appears with its time, because another reader of the copy may replace or remove it at once.
            set_time(Path(file.name), info)
        return Info(len(content), info.mtime_ns)


def unchanged(path: Path, info: Info) -> bool:
    """Return whether a local file still equals the object that it was fetched from or uploaded to."""
    try:
        stat = path.stat()
    except FileNotFoundError:  # another reader of the copy has removed it
        return False
    return (stat.st_size, stat.st_mtime_ns) == (info.size, info.mtime_ns)


def set_time(path: Path, info: Info) -> None:
    """Give a local file the object's modification time, so that a later change can be recognised.

    If the file system refuses that, the file counts as changed and is fetched or uploaded again.
    """
    try:
        os.utime(path, ns=(info.mtime_ns, info.mtime_ns))
    except OSError as fault:
        if fault.errno not in (*UNSUPPORTED, errno.EPERM):
            raise


def local_encoder(checkpoint: str) -> Path:
    """Return the file or directory of a trained encoder, after copying it to this machine if it is in a bucket."""
    return fetch_encoder(checkpoint) if is_uri(checkpoint) else Path(checkpoint)


def fetch_encoder(uri: str) -> Path:
    """Fetch what `embed` and `export` read: a trial's `encoder.safetensors`, or the file that the URI names.

    Raises:
        InputError: There is no such file.
    """
    path, mark, query = uri.partition("?")
    parent, _, name = path.rpartition("/")
    is_file = name.endswith((".pt", ".safetensors"))
    folder = Bucket(f"{parent}{mark}{query}" if is_file else uri)
    files = (name,) if is_file else ("encoder.safetensors", "encoder.pt")  # older versions wrote encoder.pt
    folder.check(write=False)
    mirror = Mirror(folder, folder.copy("reports"))
    mirror.pull(lambda each: each in files)
    local = next((mirror.local / file for file in files if (mirror.local / file).exists()), None)
    if local is None:
        hint = "give a trial's directory, its encoder.safetensors or a training checkpoint"
        raise InputError(f"{folder}: has no {files[0]}; {hint}")
    trial = trial_place(uri).partition("?")[0]
    fetch_plugins(f"{trial.rpartition('/')[0]}{mark}{query}")
    return local


def trial_place(place: str) -> str:
    """Return the directory of the trial to which an encoder belongs, as a path or a URI with its options.

    Args:
        place: The path or the URI of the trial's directory, of its encoder's file or of a training checkpoint.

    Example:
        `trial_place("runs/s/seed=0/checkpoints/00000004.pt")` gives `runs/s/seed=0`.
    """
    path, mark, query = place.partition("?") if is_uri(place) else (place, "", "")
    path = path.rstrip("/")
    if path.endswith((".pt", ".safetensors")):
        path = path.rpartition("/")[0].removesuffix("/checkpoints")
    return f"{path}{mark}{query}"


def fetch_plugins(uri: str) -> None:
    """Fetch the plugins of the sweep at `uri`, and its `sweep.yaml`, if it has any; there may be no sweep."""
    if not uri.partition("://")[2].strip("/"):
        return
    sweep = Bucket(uri)
    content = sweep.read_if_present("sweep.yaml")
    if content is not None and re.search(rb"^plugins:", content, re.MULTILINE):
        local = sweep.copy("reports")
        Mirror(sweep / "plugins", local / "plugins").pull()
        with replacing(local / "sweep.yaml", durable=False) as file:
            file.write(content)


@contextmanager
def hold_bucket(folder: Bucket, token: str, dead: str) -> Iterator[None]:
    """Hold a lock that works across machines: an object in `folder` that is rewritten every `BEAT` seconds.

    Each contender first writes its own object and then looks for others, so of two that start at the same time at most
    one goes on. Ages are measured by the store's clock. A process that lost its lock while it was suspended is
    interrupted, as by Ctrl-C.

    Args:
        folder: A directory that holds only the contenders' objects.
        token: A new name for this process's object.
        dead: The object of a process that is known to have ended; "" if there is none.

    Raises:
        Held: Another process holds the lock.
    """
    content = json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode()
    if dead:
        folder.remove(dead)
    folder.write(token, content)
    over, lost = threading.Event(), set[str]()
    beating = threading.Thread(target=beat, args=(folder, token, content, lost, over), daemon=True)
    try:
        contenders = folder.files()
        for other, info in contenders.items():
            left = STALE - (contenders[token].mtime_ns - info.mtime_ns) / 1e9
            if other != token and left > 0:
                raise Held(
                    f"{folder.uri}: another process{holder(folder, other)} is running this sweep; if that process has "
                    f"ended, try again in {math.ceil(left)} s"
                )
        lost |= contenders.keys() - {token}
        for other in lost:
            folder.remove(other)
        beating.start()
        yield
    finally:
        over.set()
        if beating.ident is not None:
            beating.join()  # otherwise the last heartbeat could come after the removal
        with suppress(OSError):  # the object soon counts as abandoned, and how the sweep ended matters more
            folder.remove(token)


def holder(folder: Bucket, name: str) -> str:
    """Describe the process that wrote a lock's object; "" if that cannot be told."""
    try:
        content = parse_json(folder.read(name))
        return f" ({content['pid']} on {content['host']})"
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return ""


def beat(folder: Bucket, token: str, content: bytes, lost: set[str], over: threading.Event) -> None:
    """Rewrite the lock's object until `over` is set; interrupt this process if another has removed the object.

    Args:
        folder: The directory of the contenders' objects.
        token: The name of this process's object.
        content: The content of this object.
        lost: The names of the objects of the processes whose lock this process has taken over. Such a process may have
            checked its lock just before, and may write its object once more afterwards. This function removes that
            object, so that the process notices the loss at its next check.
        over: Set when the lock ends.
    """
    while not over.wait(BEAT):
        try:
            present = folder.files().keys()
            if token not in present:
                print(
                    printable(f"{folder.uri}: another process has taken this sweep over; leaving it"), file=sys.stderr
                )
                os.kill(os.getpid(), signal.SIGINT)
                return
            folder.write(token, content)
            for other in lost & present:
                folder.remove(other)
        except OSError as fault:  # a later look tells whether another process has taken the lock over
            print(printable(f"warning: {fault.filename}: {fault.strerror}"), file=sys.stderr)
