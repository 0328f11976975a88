"""Files that are whole or absent, files that may be something else, and locks. Knows nothing of sweeps."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from raysweep.errors import InputError

UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a file system answers to a request that it does not know."""
KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
LONGEST_JSON = 2**22
"""Bytes of a JSON file that is read. The files of a trial have some thousand."""

_held: dict[Path, IO[Any]] = {}
"""The directories that this process holds, with their open lock files."""


class Irregular(ValueError):
    """Something other than a regular file lies at a path."""


class Gone(FileNotFoundError):
    """A directory that this process holds was removed, renamed or replaced."""


def lies(path: Path) -> bool:
    """Whether anything lies at a path, a broken link included."""
    return os.path.lexists(path)


def irregular(path: Path) -> str | None:
    """In words, what lies at a path if it is not a regular file; None for a regular file, also behind a link.

    Raises:
        FileNotFoundError: nothing lies there.
    """
    try:
        mode = path.stat().st_mode
    except OSError as fault:
        if fault.errno in (errno.ENOENT, errno.ELOOP) and lies(path):
            return "a link that leads nowhere"
        raise
    return None if stat.S_ISREG(mode) else KINDS.get(stat.S_IFMT(mode), "no file")


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file to read it. Never waits, as opening a named pipe does.

    Raises:
        Irregular: something else lies there.
        FileNotFoundError: nothing lies there.
    """
    kind = irregular(path)
    if kind is not None:
        raise Irregular(f"is {kind}, not a file")
    # O_NONBLOCK in case that a pipe has taken the file's place since.
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))


def read_regular(path: Path, most: int | None = None) -> bytes:
    """The content of a regular file.

    Raises:
        Irregular: something else lies there.
        ValueError: it has more than `most` bytes.
        FileNotFoundError: nothing lies there.
    """
    try:
        with open_regular(path) as file:
            content = file.read(-1 if most is None else most + 1)
    except OSError as fault:
        fault.filename = fault.filename or str(path)  # what a broken disk raises names no file
        raise
    if most is not None and len(content) > most:
        raise ValueError(f"it has more than {most} bytes")
    return content


def read_json(path: Path, most: int = LONGEST_JSON) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: it is no JSON, too long or too deeply nested, or something other than a file lies there.
        FileNotFoundError: nothing lies there.
    """
    try:
        return json.loads(read_regular(path, most))
    except RecursionError:
        raise ValueError("it is too deeply nested") from None


def set_aside(path: Path, name: str | None = None) -> Path:
    """Rename what lies at a path to the next free `NAME.damaged-N` beside it; returns the new path."""
    number = 1
    while lies(aside := path.with_name(f"{name or path.name}.damaged-{number}")):
        number += 1
    return path.rename(aside)


def discard(path: Path) -> None:
    """Remove a file of ours; anything else at its path was made by somebody else and is set aside."""
    with suppress(FileNotFoundError):
        if irregular(path) is None:
            path.unlink()
        else:
            set_aside(path)


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[IO[bytes]]:
    """A new file that becomes `path` where the block ends: until then, a crash included, `path` is absent or old.

    A directory, a named pipe or a broken link that lies at `path` is set aside.

    Args:
        path: the file.
        durable: whether the content must be on the disk when `path` names it.

    Raises:
        Gone: `path` lies in a directory that this process held and that is no longer there.
    """
    temporary = None
    try:
        check_held(path)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        # The mode is what the umask leaves, as for every other file: some file systems refuse a chmod.
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            if durable:
                sync(file.fileno())
        check_held(path)
        if lies(path) and irregular(path) is not None:
            set_aside(path)
        os.replace(temporary, path)
    except BaseException as fault:
        if isinstance(fault, OSError) and f".{path.name}." in str(fault.filename or f".{path.name}."):
            fault.filename = str(path)  # what a full disk raises names no file
        if temporary is not None:
            with suppress(OSError):  # where nothing can be removed either, what was raised says more
                os.unlink(temporary)
        raise


def sync(descriptor: int) -> None:
    """Wait until an open file is on the disk, where the file system can say so."""
    try:
        os.fsync(descriptor)
    except OSError as fault:
        if fault.errno not in UNSUPPORTED:
            raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that at every moment, a crash included, it is absent, old or complete."""
    with replacing(path) as file:
        file.write(content)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """`content` as strict JSON (NaN is a fault of ours), atomically."""
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False).encode())


def make_directory(path: Path) -> bool:
    """Make a new directory and its parents; returns False if something lies there already."""
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        if not lies(path):  # it is a parent that is in the way
            raise
        return False
    return True


def existing_ancestor(path: Path) -> Path:
    """`path` itself or the nearest path above it at which anything lies."""
    path = path.absolute()
    while not lies(path):
        path = path.parent
    return path


def open_lock(path: Path) -> IO[str]:
    """Open a lock file, made where it is missing; anything else in its place is set aside."""
    if lies(path) and irregular(path) is not None:
        set_aside(path)
    return open(path, "a+")


def try_lock(file: IO[Any], directory: Path) -> bool:
    """Lock an open file in `directory` for this process; returns False if another process has locked it.

    Raises:
        InputError: the file system cannot lock files.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as fault:
        raise InputError(
            f"{directory}: its file system cannot lock files ({fault.strerror}), so two runs of one sweep could not be "
            f"kept apart; choose a directory on another file system, or mount this one with locks"
        ) from None
    return True


@contextmanager
def holding(directory: Path, lock: IO[Any]) -> Iterator[None]:
    """Within the block, nothing is written into `directory` by `replacing` if it is gone.

    Args:
        directory: as its files are addressed, absolute.
        lock: its `.lock`, open and locked by this process.
    """
    _held[directory] = lock
    try:
        yield
    finally:
        _held.pop(directory, None)


def check_held(path: Path) -> None:
    """Raises Gone if `path` is, or lies in, a directory that this process held and that is no longer there."""
    for directory, lock in list(_held.items()):
        if path.is_relative_to(directory) and not same_file(lock.fileno(), directory / ".lock"):
            raise Gone(errno.ENOENT, "the directory was removed or renamed while it was in use", str(directory))


def same_file(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one that now lies at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError as fault:
        if fault.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
            return False
        raise
