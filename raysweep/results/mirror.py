"""The local copy of a sweep that lies in a bucket, and the claim of the process that works on it."""

from __future__ import annotations

import errno
import json
import math
import os
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
from raysweep.results.credentials import hidden
from raysweep.system.files import UNSUPPORTED, replacing

BEAT, STALE = 15.0, 60.0  # seconds between two signs of life of a lock, and after how many without it is a dead one's
CLAIM = "attempt.json"
"""Tells whose a directory is: one that finds another's there has been replaced and writes no more."""


class Held(InputError):
    """Another process holds what this one wants."""


class Replaced(OSError):
    """Another process has taken up what this one had: it is to leave, and the other says how it ends."""


def push_rank(name: str) -> tuple[int, str]:
    """The order in which a trial's files go into a bucket; what is removed goes the other way.

    A checkpoint counts with its manifest, and it needs the event files; a trial is over with its result.
    """
    folder, _, file = name.rpartition("/")
    if folder.endswith("checkpoints"):
        return (2 if file.endswith(".pt") else 3), name
    return {CLAIM: 0, "result.json": 4}.get(file, 1), name


class Mirror:
    """A directory in a bucket and its local copy, used by one process at a time.

    Args:
        bucket: the directory.
        local: the copy; made where it is needed.
    """

    def __init__(self, bucket: Bucket, local: Path) -> None:
        self.bucket, self.local = bucket, local
        self._known: dict[str, Info] = {}  # what the copy had in common with the bucket when they last met
        self._claim: bytes | None = None
        self._pushed = -math.inf

    def pull(self, wanted: Wanted = lambda name: True) -> None:
        """Make the wanted files of the copy equal to the files in the bucket: fetch some, remove others."""
        there = {name: info for name, info in self.bucket.files().items() if wanted(name)}
        here = self._here(wanted)
        for name in here.keys() - there.keys():
            here[name].unlink()
        # Times are of whole seconds: only the claim is ever replaced by one of the same size in less than that.
        missing = [
            name for name, info in there.items() if name not in here or name == CLAIM or not unchanged(here[name], info)
        ]
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(lambda name: self._fetch(name, there[name]), missing):
                pass
        self._known = there

    def push(self, wanted: Wanted = lambda name: True, every: float = 0.0) -> None:
        """Bring into the bucket what was written or removed in the copy since the last `pull` or `push`.

        Args:
            wanted: which files.
            every: do nothing where the last push is fewer seconds ago.

        Raises:
            Replaced: another process has taken the directory up.
            OSError: the store does not take it.
        """
        if time.monotonic() - self._pushed < every:
            return
        there, here = self.bucket.files(), self._here(wanted)
        if self._claim is not None and (CLAIM not in there or self.bucket.read(CLAIM) != self._claim):
            raise Replaced(errno.EBUSY, "another process has taken it up", str(self.bucket))
        known = self._known
        changed = [name for name, path in here.items() if name not in known or not unchanged(path, known[name])]
        removed = [name for name in known.keys() & there.keys() - here.keys() if wanted(name)]
        sent = {}
        for name in sorted(changed, key=push_rank):
            before = here[name].stat()
            content = here[name].read_bytes()
            self.bucket.write(name, content)
            if name == CLAIM:
                self._claim = content
            sent[name] = len(content), before
        for name in sorted(removed, key=push_rank, reverse=True):
            self.bucket.remove(name)
        if sent or removed:
            there = self.bucket.files()
        for name, (size, before) in sent.items():
            if name not in there or there[name].size != size:
                raise OSError(errno.EIO, f"{name} has not arrived as it was sent", str(self.bucket))
            if here[name].stat().st_mtime_ns == before.st_mtime_ns:
                set_time(here[name], there[name])
        self._known = {name: info for name, info in known.items() if name in there}
        self._known |= {name: there[name] for name in sent}
        self._pushed = time.monotonic()

    def _here(self, wanted: Wanted) -> dict[str, Path]:
        """The wanted files of the copy, by their path in it; nothing that is not a regular file."""
        files = {}
        for folder, folders, names in os.walk(self.local):
            folders[:] = [each for each in folders if not hidden(each)]
            for path in (Path(folder, name) for name in names):
                name = path.relative_to(self.local).as_posix()
                if not hidden(path.name) and wanted(name) and path.is_file():
                    files[name] = path
        return files

    def _fetch(self, name: str, info: Info) -> None:
        """Bring one file, whole or not at all."""
        path = self.local / name
        if path.resolve() != self.local.resolve() / name:
            raise InputError(f"{self.bucket}: the object {name!r} would lie outside of {self.local}")
        content = self.bucket.read(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, durable=False) as file:
            file.write(content)
        set_time(path, info)


def unchanged(path: Path, info: Info) -> bool:
    """Whether a local file still is the object that it was made of, or into which it was made."""
    stat = path.stat()
    return (stat.st_size, stat.st_mtime_ns) == (info.size, info.mtime_ns)


def set_time(path: Path, info: Info) -> None:
    """Mark a local file as what the object holds: the next change gives it a time of its own.

    Where the file system refuses that, the file counts as changed and is fetched or sent again.
    """
    try:
        os.utime(path, ns=(info.mtime_ns, info.mtime_ns))
    except OSError as fault:
        if fault.errno not in (*UNSUPPORTED, errno.EPERM):
            raise


def fetch_encoder(uri: str) -> Path:
    """A local copy of what `embed` and `export` read: a trial's `encoder.safetensors`, or the file that the URI names.

    Raises:
        InputError: there is none.
    """
    path, mark, query = uri.partition("?")
    parent, _, name = path.rpartition("/")
    is_file = name.endswith((".pt", ".safetensors"))
    folder = Bucket(f"{parent}{mark}{query}" if is_file else uri)
    files = (name,) if is_file else ("encoder.safetensors", "encoder.pt")  # older versions wrote the second one
    folder.check(write=False)
    mirror = Mirror(folder, folder.copy("reports"))
    mirror.pull(lambda each: each in files)
    local = next((mirror.local / file for file in files if (mirror.local / file).exists()), None)
    if local is None:
        hint = "give a trial's directory, its encoder.safetensors or a training checkpoint"
        raise InputError(f"{folder}: has no {files[0]}; {hint}")
    return local


@contextmanager
def hold_bucket(folder: Bucket, token: str, dead: str) -> Iterator[None]:
    """Hold a lock that works across machines: an object in `folder` that is written anew every `BEAT` seconds.

    Each contender writes an object of its own first and looks for others' after that, so of two at the same time at
    most one goes on. Ages are told by the store's clock. One that has lost its lock while it was suspended is
    interrupted, as by Ctrl-C.

    Args:
        folder: holds the contenders' objects and nothing else.
        token: a new name for the own one.
        dead: that of a process which is known to be no more.

    Raises:
        Held: another process holds it.
    """
    content = json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode()
    if dead:
        folder.remove(dead)
    folder.write(token, content)
    over = threading.Event()
    beating = threading.Thread(target=beat, args=(folder, token, content, over), daemon=True)
    try:
        contenders = folder.files()
        for other, info in contenders.items():
            left = STALE - (contenders[token].mtime_ns - info.mtime_ns) / 1e9
            if other != token and left > 0:
                raise Held(
                    f"{folder.uri}: another process{holder(folder, other)} is running this sweep; if it is no more, "
                    f"try again in {math.ceil(left)} s"
                )
        for other in contenders.keys() - {token}:
            folder.remove(other)
        beating.start()
        yield
    finally:
        over.set()
        if beating.ident is not None:
            beating.join()  # or its last sign of life would come after the end
        with suppress(OSError):  # it is soon as good as dead; how the sweep ended matters more
            folder.remove(token)


def holder(folder: Bucket, name: str) -> str:
    """Who wrote a lock's object, in words; nothing where that cannot be told."""
    try:
        content = json.loads(folder.read(name))
        return f" ({content['pid']} on {content['host']})"
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return ""


def beat(folder: Bucket, token: str, content: bytes, over: threading.Event) -> None:
    """Write the object anew until it is over; interrupt this process where another has removed it."""
    while not over.wait(BEAT):
        try:
            if token not in folder.files():
                print(
                    printable(f"{folder.uri}: another process has taken this sweep over; leaving it"), file=sys.stderr
                )
                os.kill(os.getpid(), signal.SIGINT)
                return
            folder.write(token, content)
        except OSError as fault:  # as long as nobody reads the store, nobody takes the lock over
            print(printable(f"warning: {fault.filename}: {fault.strerror}"), file=sys.stderr)
