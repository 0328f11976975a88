"""Ray's token. It has to be settled before Ray is imported, so this module alone of the package does not do that."""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from contextlib import suppress
from pathlib import Path


def present_token(address: str | None) -> None:
    """Let this user's token guard the Ray that is started here, or be presented to the cluster at `address`.

    Ray 2.60 clusters demand a token by default, but `ray.init(address="HOST:PORT")` sends one only if RAY_AUTH_MODE was
    `token` when Ray was imported. A cluster that wants none accepts it all the same. A mode that is set is respected.

    For a cluster of its own Ray would make a token that every user of the machine can read; so it is made here, and
    one that was made so is closed.
    """
    file = Path.home() / ".ray" / "auth_token"
    is_given = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if address is None and not is_given and "RAY_AUTH_MODE" not in os.environ and not file.exists():
        make_token(file)
    if file.is_file():
        if stat.S_IMODE(file.stat().st_mode) & 0o077:
            file.chmod(0o600)
        is_given = True
    if is_given:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    if address is not None:
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "3")  # Ray would try a token that is refused for 20 seconds


def make_token(file: Path) -> None:
    """Write a new token that its owner alone can read; one that another process makes meanwhile stays."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent)  # its mode is 0600
    try:
        with os.fdopen(handle, "w") as opened:
            opened.write(secrets.token_hex(32))
        with suppress(FileExistsError):
            os.link(temporary, file)
    finally:
        os.unlink(temporary)
