"""Ray's token. It has to be settled before Ray is imported, so this module alone of the package does not do that."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

from raysweep.errors import InputError


def present_token(address: str | None) -> None:
    """Let this user's token guard the Ray that is started here, or be presented to the cluster at `address`.

    Ray 2.60 clusters demand a token by default, but `ray.init(address="HOST:PORT")` sends one only if RAY_AUTH_MODE was
    `token` when Ray was imported. A cluster that wants none accepts it all the same. A mode that is set is respected.

    For a cluster of its own Ray would make a token that every user of the machine can read; so it is made here, and
    one that was made so is closed. Where that cannot be done, a Ray that is started here gets a token in the
    environment, which lives as long as the processes do.

    Raises:
        InputError: RAY_AUTH_TOKEN_PATH names a file that has no token.
    """
    if address is not None:
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "3")  # Ray would try a token that is refused for 20 seconds
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        if not os.environ.get(name, "x").strip():
            del os.environ[name]
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    file = Path.home() / ".ray" / "auth_token"
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if "RAY_AUTH_TOKEN" in os.environ:
        close(file, "this sweep uses RAY_AUTH_TOKEN instead")
        has_token = True
    elif path is not None:
        close(file, "this sweep uses RAY_AUTH_TOKEN_PATH instead; RAY_AUTH_TOKEN would do as well")
        if not holds_token(Path(path)):
            raise InputError(
                f"RAY_AUTH_TOKEN_PATH={path}: no token can be read there; write one, or set RAY_AUTH_TOKEN"
            )
        has_token = True
    elif address is not None:  # the cluster's own token, even if others can read it
        close(file, "whoever has it can run code as you; set RAY_AUTH_TOKEN instead, and remove the file")
        has_token = holds_token(file)
    else:
        with suppress(OSError):  # no home, or one that cannot be written to: then it is in the environment
            make_token(file)
        if not close(file, "Ray gets another token for this sweep; set RAY_AUTH_TOKEN to choose it") or not holds_token(
            file
        ):
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        has_token = True
    if has_token:
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def holds_token(file: Path) -> bool:
    """Whether a token can be read from the file."""
    try:
        return bool(file.read_text().strip())
    except (OSError, UnicodeDecodeError):
        return False


def is_open(file: Path) -> bool:
    """Whether others may read the file; no, where there is none that this user can reach."""
    try:
        return bool(stat.S_IMODE(file.stat().st_mode) & 0o077)
    except OSError:
        return False


def close(file: Path, consequence: str) -> bool:
    """Make a token unreadable for others; False, after a warning, where that is not allowed.

    Args:
        file: which need not exist.
        consequence: what follows, for the warning.
    """
    if not is_open(file):
        return True
    try:
        file.chmod(0o600)
        if not is_open(file):
            return True
        why = "its file system keeps no modes"
    except OSError as fault:
        why = str(fault.strerror)
    warnings.warn(
        f"{file}: others may read this token, and its mode cannot be changed ({why}): {consequence}", stacklevel=3
    )
    return False


def make_token(file: Path) -> None:
    """Write a new token that its owner alone can read, unless there is one.

    Raises:
        OSError: that cannot be done there.
    """
    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent)
    try:
        with os.fdopen(handle, "w") as opened:
            if is_open(Path(temporary)):
                raise OSError(errno.EPERM, "its file system keeps no modes", str(file))
            opened.write(secrets.token_hex(32))
        with suppress(FileExistsError):  # another process made one meanwhile
            os.link(temporary, file)
    finally:
        os.unlink(temporary)
