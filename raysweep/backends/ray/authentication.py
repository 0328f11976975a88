"""Set up Ray's token. This must happen before Ray is imported, so this module does not import Ray."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

from raysweep.errors import InputError


def present_token(address: str | None) -> None:
    """Set up the token that protects a Ray started here, or that is sent to the cluster at `address`.

    Ray 2.60 clusters require a token by default, but `ray.init(address="HOST:PORT")` sends one only if RAY_AUTH_MODE
    was `token` when Ray was imported. A cluster that needs no token accepts one anyway. A mode set by the user stays.

    For its own cluster Ray would create a token file that every user of the machine can read. So the file is created
    here, and an existing one is made private. If that is impossible, a Ray that is started here gets a token in the
    environment, which lives as long as the processes do.

    Raises:
        InputError: RAY_AUTH_TOKEN_PATH names a file without a token.
    """
    if address is not None:
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "3")  # Ray would retry a rejected token for 20 seconds
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        if not os.environ.get(name, "x").strip():
            del os.environ[name]
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    file = Path.home() / ".ray" / "auth_token"
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if "RAY_AUTH_TOKEN" in os.environ:
        make_private(file, "this sweep uses RAY_AUTH_TOKEN instead")
        has_token = True
    elif path is not None:
        make_private(file, "this sweep uses RAY_AUTH_TOKEN_PATH instead; RAY_AUTH_TOKEN would do as well")
        if not holds_token(Path(path)):
            raise InputError(
                f"RAY_AUTH_TOKEN_PATH={path}: no token can be read there; write one, or set RAY_AUTH_TOKEN"
            )
        has_token = True
    elif address is not None:  # the cluster's own token, used even if others can read it
        make_private(file, "whoever has it can run code as you; set RAY_AUTH_TOKEN instead, and remove the file")
        has_token = holds_token(file)
    else:
        with suppress(OSError):  # without a writable home directory, the token is put in the environment
            make_token(file)
        if not make_private(
            file, "Ray gets another token for this sweep; set RAY_AUTH_TOKEN to choose it"
        ) or not holds_token(file):
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        has_token = True
    # A process that has imported Ray must not set the mode any more, because Ray has stored it. Then `ray.init` turns
    # tokens on itself, unless the user has chosen another mode.
    if has_token and "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def holds_token(file: Path) -> bool:
    """Return whether the file contains a readable token."""
    try:
        return bool(file.read_text().strip())
    except (OSError, UnicodeDecodeError):
        return False


def others_can_read(file: Path) -> bool:
    """Return whether others may read the file; False if this user cannot reach such a file."""
    try:
        return bool(stat.S_IMODE(file.stat().st_mode) & 0o077)
    except OSError:
        return False


def make_private(file: Path, consequence: str) -> bool:
    """Make a token file unreadable for others. If that is not allowed, warn and return False.

    Args:
        file: The token file, which need not exist.
        consequence: The consequence of a failure, for the warning.
    """
    if not others_can_read(file):
        return True
    try:
        file.chmod(0o600)
        if not others_can_read(file):
            return True
        why = "its file system stores no permissions"
    except OSError as fault:
        why = str(fault.strerror)
    warnings.warn(
        f"{file}: others may read this token, and its mode cannot be changed ({why}): {consequence}", stacklevel=3
    )
    return False


def make_token(file: Path) -> None:
    """Write a new token that only its owner can read, unless the file exists.

    Raises:
        OSError: The file cannot be written, or its file system stores no permissions.
    """
    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent)
    try:
        with os.fdopen(handle, "w") as opened:
            if others_can_read(Path(temporary)):
                raise OSError(errno.EPERM, "its file system stores no permissions", str(file))
            opened.write(secrets.token_hex(32))
        with suppress(FileExistsError):  # another process created one in the meantime
            os.link(temporary, file)
    finally:
        os.unlink(temporary)
