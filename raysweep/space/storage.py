"""The URL of the database in which a searcher keeps its study (`tune.storage`)."""

from __future__ import annotations

from pathlib import Path

from raysweep.errors import InputError
from raysweep.system.places import expanded

KINDS = ("sqlite", "postgresql", "mysql", "mariadb")
"""The kinds of databases. A URL may also name the driver, as in `postgresql+psycopg://…`."""
OPTIONS = ("charset", "read_default_file", "read_default_group", "service", "sslmode", "sslrootcert", "unix_socket")
"""The options that a URL may have. None of them is a secret, so they may be written to `sweep.yaml`."""


def database_url(url: str, where: str) -> str:
    """Check the URL of a database, and make the path of an SQLite file absolute.

    Args:
        url: The URL.
        where: The start of every message.

    Example:
        In the directory `/data`, `database_url("sqlite:///studies.db", "tune.storage")` gives
        `sqlite:////data/studies.db`.

    Raises:
        InputError: The URL has another form, or contains a user, a password or an unknown option. The message never
            quotes what may be a secret.
    """
    scheme, separator, rest = url.partition("://")
    if "@" in url:
        raise InputError(
            f"{where}: the URL must not contain a user or a password, because sweep.yaml records it; give them in the "
            "environment (PGUSER, PGPASSWORD), in ~/.pgpass, or in a file (?read_default_file=FILE)"
        )
    if not separator or scheme.partition("+")[0] not in KINDS:
        raise InputError(
            f"{where}: must be the URL of a database, such as sqlite:///FILE.db, postgresql://HOST/DATABASE or "
            f"mysql://HOST/DATABASE, not {url!r}"
        )
    place, _, query = rest.partition("?")
    for option in query.split("&") if query else ():
        name = option.partition("=")[0]
        if name not in OPTIONS:
            raise InputError(f"{where}: the URL must not have the option {name!r}; valid: {', '.join(OPTIONS)}")
    if not scheme.startswith("sqlite"):
        return url
    path = place.removeprefix("/")
    if not place.startswith("/") or not path or query:
        raise InputError(f"{where}: must name a file, such as sqlite:///studies.db or sqlite:////data/studies.db")
    return f"{scheme}:///{Path(expanded(path)).absolute()}"


def database_file(url: str) -> Path | None:
    """Return the file of a checked SQLite URL; None for other databases."""
    return Path(url.partition(":///")[2]) if url.startswith("sqlite") else None
