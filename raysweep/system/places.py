"""Directories of the user and the machine: the home directory, `~` in a path, and the directory for Ray's files.

Only the standard library is imported here, because this runs before Ray is imported.
"""

from __future__ import annotations

import os
import stat
import tempfile
import warnings
from pathlib import Path

from raysweep.errors import InputError

SOCKET_BYTES = 107  # the length limit of a Unix socket's path on Linux
SOCKET = "/ray/session_2026-01-31_23-59-59_123456_{pid}/sockets/plasma_store"
"""The longest socket path that Ray creates, relative to Ray's directory."""
UNUSABLE = frozenset("'\"\\$%`")
"""Characters in a path that keep Ray from starting, or that Ray does not quote in its commands."""


def expanded(path: str) -> str:
    """Replace a leading `~` or `~USER` of `path` by that home directory.

    The shell does not do this after `=`, inside quotes and in files.

    Raises:
        InputError: There is no such user or no home directory.
    """
    if not path.startswith("~"):
        return path
    known = os.path.expanduser(path)
    user = path[1:].partition("/")[0]
    if known.startswith("~"):
        raise InputError(
            f"{path}: cannot be resolved: there is no user {user!r}; write ./{path} for a file of this name"
        )
    if not user and Path(os.path.expanduser("~")) == substitute_home():
        raise InputError(f"{path}: cannot be resolved: you have no home directory; set HOME, or give another path")
    return known


def is_file(place: Path) -> bool:
    """Return whether there is a file at a place that may be another text of the user, such as a long list of values."""
    return os.path.isfile(place)  # `Path.is_file` raises an exception if the text is too long for a path


def cache_directory() -> Path:
    """Return the directory of this user's caches: `$RAYSWEEP_CACHE`, by default `~/.cache/raysweep`.

    `$XDG_CACHE_HOME` replaces `~/.cache`. The directory need not exist.

    Raises:
        InputError: The user has no home directory.
    """
    given = os.environ.get("RAYSWEEP_CACHE") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/raysweep"
    return Path(expanded(given)).absolute()


def settle_cache_directory() -> None:
    """Make a relative path of the user's caches absolute, because each trial of Ray has another working directory."""
    if os.environ.get("RAYSWEEP_CACHE") or os.environ.get("XDG_CACHE_HOME"):
        os.environ["RAYSWEEP_CACHE"] = str(cache_directory())


def substitute_home() -> Path:
    """Return the directory that serves as home for a user without one."""
    return Path(tempfile.gettempdir(), f"home-{os.getuid()}-raysweep")


def ensure_home() -> None:
    """Set HOME for this process and its children if the environment lacks it.

    Containers often run as a user whom the machine does not know. Ray cannot even be imported there.

    Raises:
        InputError: The user has no home directory, and none can be created.
    """
    if os.environ.get("HOME", "").startswith("/"):
        return
    os.environ.pop("HOME", None)
    home = os.path.expanduser("~")
    if home.startswith("/"):
        os.environ["HOME"] = home
        return
    directory = substitute_home()
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.lstat()
    except OSError as fault:
        raise InputError(
            f"you have no home directory, and {directory} cannot be created ({fault.strerror}); set HOME"
        ) from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o022:
        raise InputError(f"you have no home directory, and {directory} belongs to somebody else; set HOME")
    os.environ["HOME"] = str(directory)


def settle_ray_directory() -> None:
    """Choose and check the directory of a Ray that is started here: RAY_TMPDIR, else TMPDIR, else /tmp.

    A TMPDIR that Ray cannot use is replaced by /tmp, with a warning.

    Raises:
        InputError: Ray cannot use the directory.
    """
    given = os.environ.get("RAY_TMPDIR")
    directory = os.path.abspath(expanded(given or os.environ.get("TMPDIR") or "/tmp"))
    why = unusable(directory)
    if why and not given and directory != "/tmp":
        warnings.warn(
            f"Ray cannot keep its files in TMPDIR, {directory}: {why}; it uses /tmp, or what RAY_TMPDIR names",
            stacklevel=2,
        )
        directory = "/tmp"
        why = unusable(directory)
    if why:
        name = "RAY_TMPDIR" if given else "its directory"
        hint = "a short path that you may write to" + ("" if directory == "/tmp" else ", such as RAY_TMPDIR=/tmp")
        raise InputError(f"Ray cannot keep its files in {name}, {directory}: {why}; set RAY_TMPDIR to {hint}")
    os.environ["RAY_TMPDIR"] = directory  # an empty or relative path would mean another directory in each process


def unusable(directory: str) -> str:
    """Return why Ray cannot keep its files in the directory, or "" if it can."""
    if not directory.isascii() or not directory.isprintable():
        return "it takes only ASCII characters"
    bad = sorted(UNUSABLE & set(directory))
    if bad:
        return f"it does not take the character {bad[0]}"
    length = len(directory.rstrip("/") + SOCKET.format(pid=os.getpid()))
    if length > SOCKET_BYTES:
        most = SOCKET_BYTES - length + len(directory)
        return f"the paths of its sockets have a limit, so it takes at most {most} characters, not {len(directory)}"
    try:
        os.makedirs(directory, exist_ok=True)
        below = os.path.join(directory, "ray")
        with tempfile.TemporaryFile(dir=below if os.path.isdir(below) else directory) as file:
            file.write(bytes(4096))
    except OSError as fault:
        return fault.strerror or str(fault)
    return ""


def shown_path(path: Path) -> str:
    """Return the shorter way to type a path: relative if it lies below the current directory, else unchanged."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
