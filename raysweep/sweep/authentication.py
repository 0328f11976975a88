"""Ray's token. It has to be settled before Ray is imported, so this module alone of the package does not do that."""

from __future__ import annotations

import os
from pathlib import Path


def present_token() -> None:
    """Let Ray present this user's token to a cluster at an explicit address.

    Ray 2.60 clusters demand a token by default, but `ray.init(address="HOST:PORT")` sends one only if RAY_AUTH_MODE was
    `token` when Ray was imported. A cluster that wants none accepts it all the same. A mode that is set is respected.
    """
    has_token = (
        "RAY_AUTH_TOKEN" in os.environ
        or "RAY_AUTH_TOKEN_PATH" in os.environ
        or (Path.home() / ".ray" / "auth_token").is_file()
    )
    if has_token:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
