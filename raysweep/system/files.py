"""Atomic file writing, checks for paths that are not regular files, and locks. Independent of sweeps."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import IO, Any

from raysweep.errors import InputError

UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""Error numbers with which a file system rejects an operation that it does not support."""
KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
TEMPORARY_END = re.compile(r"\.raysweep-[0-9a-f]{8}")
"""The end of the name of each temporary file of `replacing`. Nobody else is expected to end a name like this."""
LONGEST_JSON = 2**22
"""Size limit for reading a JSON file, in bytes. A trial's files have a few thousand bytes."""

_held: dict[Path, IO[Any]] = {}
"""The directories that this process holds, with their open lock files."""


class Irregular(ValueError):
    """The path exists but is not a regular file."""


class Gone(FileNotFoundError):
    """A directory that this process holds was removed, renamed or replaced."""


def is_occupied(path: Path) -> bool:
    """Return whether the path exists, even if only as a broken link."""
    return os.path.lexists(path)


def irregular(path: Path) -> str | None:
    """Describe what is at a path if it is not a regular file; None for a regular file or a link to one.

    Raises:
        FileNotFoundError: The path does not exist.
    """
    try:
        mode = path.stat().st_mode
    except OSError as fault:
        # `is_occupied` would not do here, because another process may have created a file after the call of `stat`.
        if fault.errno in (errno.ENOENT, errno.ELOOP) and path.is_symlink():
            return "a link that leads nowhere"
        raise
    return None if stat.S_ISREG(mode) else KINDS.get(stat.S_IFMT(mode), "no file")


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file for reading. Unlike opening a named pipe, this never blocks.

    Raises:
        Irregular: The path is not a regular file.
        FileNotFoundError: The path does not exist.
    """
    kind = irregular(path)
    if kind is not None:
        raise Irregular(f"is {kind}, not a file")
    # O_NONBLOCK, in case a pipe has replaced the file since the check.
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))


def read_regular(path: Path, most: int | None = None) -> bytes:
    """Return the content of a regular file.

    Raises:
        Irregular: The path is not a regular file.
        ValueError: The file has more than `most` bytes.
        FileNotFoundError: The path does not exist.
    """
    try:
        with open_regular(path) as file:
            content = file.read(-1 if most is None else most + 1)
    except OSError as fault:
        fault.filename = fault.filename or str(path)  # errors of a broken disk name no file
        raise
    if most is not None and len(content) > most:
        raise ValueError(f"it has more than {most} bytes")
    return content


def read_json(path: Path, most: int = LONGEST_JSON) -> Any:
    """Return the content of a JSON file.

    Raises:
        ValueError: The file is not JSON, is too long or too deeply nested, or is not a regular file.
        FileNotFoundError: The path does not exist.
    """
    return parse_json(read_regular(path, most))


def parse_json(text: str | bytes) -> Any:
    """Return the content of a JSON text; raises ValueError if it is not JSON or is too deeply nested."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is too deeply nested") from None


def set_aside(path: Path, name: str | None = None) -> Path:
    """Rename a file or directory to the next free `NAME.damaged-N` beside it; returns the new path."""
    number = 1
    while is_occupied(aside := path.with_name(f"{name or path.name}.damaged-{number}")):
        number += 1
    return path.rename(aside)


def set_aside_irregular(path: Path) -> None:
    """Set aside what is at a path unless it is a regular file. Another process may remove it at the same time."""
    with suppress(FileNotFoundError):
        if irregular(path) is not None:
            set_aside(path)


def discard(path: Path) -> None:
    """Remove one of raysweep's files. Anything but a regular file is set aside, as raysweep did not make it."""
    with suppress(FileNotFoundError):
        if irregular(path) is None:
            path.unlink()
        else:
            set_aside(path)


@contextmanager
def replacing(path: Path, durable: bool = True, new: bool = False) -> Iterator[IO[bytes]]:
    """Open a new file that replaces `path` atomically when the block ends.

    Until then, even if the process crashes, `path` is absent or unchanged. A directory, a named pipe or a broken link
    at `path` is set aside.

    Args:
        path: The file to replace.
        durable: Whether to flush the content to disk before `path` refers to it.
        new: Whether to keep what another process has put at `path` meanwhile, and to raise an error.

    Raises:
        FileExistsError: `new` is true, and there is something at `path`.
        Gone: `path` lies in a directory that this process held and that no longer exists.
    """
    temporary = None
    try:
        check_held(path)
        temporary = path.with_name(f".{path.name}.raysweep-{secrets.token_hex(4)}")
        # The file keeps the mode that the umask gives it, like any other file, because some file systems refuse chmod.
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            if durable:
                sync(file.fileno())
        check_held(path)
        if new:
            rename_to_free(temporary, path)
        else:
            set_aside_irregular(path)
            os.replace(temporary, path)
    except BaseException as fault:
        if isinstance(fault, OSError) and f".{path.name}." in str(fault.filename or f".{path.name}."):
            fault.filename = str(path)  # errors of a full disk name no file
        if temporary is not None:
            with suppress(OSError):  # if the removal fails too, the first exception is the more useful one
                os.unlink(temporary)
        raise


def rename_to_free(file: Path, name: Path) -> None:
    """Rename a file to a free name. Of several processes that do so at once, one succeeds.

    Raises:
        FileExistsError: The name is taken.
    """
    try:
        os.link(file, name)
    except FileExistsError:
        raise
    except OSError:  # FAT and some network file systems have no hard links
        open(name, "xb").close()  # takes the name
        os.replace(file, name)
    else:
        with suppress(OSError):  # the new file is complete
            os.unlink(file)


def sync(descriptor: int) -> None:
    """Wait until an open file is on disk, if the file system supports that."""
    try:
        os.fsync(descriptor)
    except OSError as fault:
        if fault.errno not in UNSUPPORTED:
            raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file atomically: at every moment, even in a crash, it is absent, unchanged or complete."""
    with replacing(path) as file:
        file.write(content)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` atomically as strict JSON; NaN raises ValueError."""
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False).encode())


def make_directory(path: Path) -> bool:
    """Create a directory and its parents; returns False if the path exists already."""
    lowest = existing_ancestor(path)
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        if not is_occupied(path):  # a parent is in the way
            raise
        return False
    except OSError:  # the name is too long, say
        with suppress(OSError):
            for parent in takewhile(lambda parent: parent != lowest, path.absolute().parents):
                parent.rmdir()
        raise
    return True


def existing_ancestor(path: Path) -> Path:
    """Return `path` itself or its nearest ancestor that exists."""
    path = path.absolute()
    while not is_occupied(path):
        path = path.parent
    return path


def open_lock(path: Path) -> IO[str]:
    """Open a lock file, creating it if it is missing; anything in its place that is not a file is set aside."""
    set_aside_irregular(path)
    return open(path, "a+")


def try_lock(file: IO[Any], directory: Path) -> bool:
    """Lock an open file in `directory` for this process; returns False if another process has locked it.

    Raises:
        InputError: The file system cannot lock files.
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


def unwritable(directory: Path, locks: bool = False) -> str:
    """Return why a new directory cannot be created and written to, or "" if it can, without creating it.

    Args:
        directory: The path of the new directory.
        locks: Whether files in it must be lockable.

    Raises:
        InputError: The file system cannot lock files.
    """
    existing = existing_ancestor(directory)
    if not existing.is_dir():
        return f"{existing} is not a directory"
    try:
        # Only a real attempt is reliable: for root, os.access succeeds on a read-only mount.
        with tempfile.TemporaryFile(dir=existing) as file:
            if locks:
                try_lock(file, existing)
    except OSError as fault:
        return f"cannot write to {existing}: {fault.strerror}"
    return ""


@contextmanager
def holding(directory: Path, lock: IO[Any]) -> Iterator[None]:
    """Inside the block, `replacing` raises Gone instead of writing into `directory` if the directory is gone.

    Args:
        directory: The absolute path, in the form in which its files are addressed.
        lock: The directory's `.lock` file, open and locked by this process.
    """
    _held[directory] = lock
    try:
        yield
    finally:
        _held.pop(directory, None)


def check_held(path: Path) -> None:
    """Raise Gone if `path` is, or lies in, a directory that this process held and that no longer exists."""
    for directory, lock in list(_held.items()):
        if path.is_relative_to(directory) and not same_file(lock.fileno(), directory / ".lock"):
            raise Gone(errno.ENOENT, "the directory was removed or renamed while it was in use", str(directory))


def same_file(descriptor: int, path: Path) -> bool:
    """Return whether an open file is the file that is now at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError as fault:
        if fault.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
            return False
        raise


def read_text(path: Path, longest: int, where: str, wanted: str) -> str:
    """Return the text of a file that a user names.

    Args:
        path: The file.
        longest: The largest number of characters.
        where: The start of messages.
        wanted: What the user should give, for messages, such as "a Python file".

    Raises:
        InputError: The file cannot be read, is not text in UTF-8, or is too long.
    """
    if path.is_dir():
        raise InputError(f"{where}: is a directory; give {wanted}")
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(longest + 1)
    except FileNotFoundError:
        raise InputError(f"{where}: no such file") from None
    except UnicodeDecodeError:
        raise InputError(f"{where}: is not a text file in UTF-8; give {wanted}") from None
    except OSError as fault:
        raise InputError(f"{where}: cannot be read: {fault.strerror}") from None
    if len(text) > longest:
        raise InputError(f"{where}: has more than {longest:,} characters; give {wanted}")
    return text
