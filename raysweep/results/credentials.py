"""Addresses of buckets, and the credentials that must not appear in messages or logs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from raysweep.errors import InputError, has_password

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss")
"""Of stores whose objects appear only when they are complete. s3 is what the tests run against."""
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN")
"""The variables that Ray Tune passes on to its workers by way of a log file."""


def is_uri(place: object) -> bool:
    """Whether this names a place in a bucket, not a local path.

    Raises:
        InputError: it almost does, or it has a password.
    """
    scheme, colon, rest = place.partition(":") if isinstance(place, str) else ("", "", "")
    refuse_password(str(place))
    if colon and scheme in SCHEMES and not rest.startswith("//"):
        raise InputError(f"{place}: a place in a bucket is {scheme}://BUCKET/PREFIX (a local directory: ./{place})")
    return rest.startswith("//")


def refuse_password(uri: str, what: str = "") -> None:
    """Raises InputError if the URI has a password in it; `what` names it, as the message does not show it."""
    if has_password(uri):
        raise refusal_of_credentials(uri.partition(":")[0], what)


def refusal_of_credentials(scheme: str, what: str = "") -> InputError:
    """The error for credentials in a URI. It quotes nothing of the URI but its scheme."""
    where = {
        "s3": "in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or in ~/.aws",
        "gs": "by GOOGLE_APPLICATION_CREDENTIALS",
        "gcs": "by GOOGLE_APPLICATION_CREDENTIALS",
        "abfs": "in the environment (AZURE_CLIENT_ID, AZURE_CLIENT_SECRET, AZURE_TENANT_ID)",
        "abfss": "in the environment (AZURE_CLIENT_ID, AZURE_CLIENT_SECRET, AZURE_TENANT_ID)",
    }.get(scheme, "in the environment")
    name = what or f"{scheme}://…"
    return InputError(f"{name}: credentials in a URI end up in logs; give them {where}")


@contextmanager
def hidden_credentials() -> Iterator[None]:
    """Take the credentials out of this process's environment for a while; buckets still use them.

    Ray Tune copies them into the runtime environment of its workers, which Ray writes to a log that everyone can read.
    Workers on this machine have them all the same: they inherit the environment in which Ray was started.
    """
    taken = {name: os.environ.pop(name) for name in CREDENTIALS if name in os.environ}
    _hidden.update(taken)
    try:
        yield
    finally:
        os.environ.update(taken)
        _hidden.clear()


_hidden: dict[str, str] = {}


def credentials() -> dict[str, str]:
    """The S3 credentials that the environment gives, as arguments of pyarrow; none where it gives no complete pair."""
    environment = {**os.environ, **_hidden}
    key, secret = environment.get("AWS_ACCESS_KEY_ID"), environment.get("AWS_SECRET_ACCESS_KEY")
    if not key or not secret:
        return {}
    given = {"access_key": key, "secret_key": secret}
    token = environment.get("AWS_SESSION_TOKEN")
    return {**given, "session_token": token} if token else given


def join(uri: str, name: str) -> str:
    """The URI of `name` in the directory `uri`."""
    start, mark, query = uri.partition("?")
    return f"{start.rstrip('/')}/{name}{mark}{query}"


def hidden(name: str) -> bool:
    """Whether a path has a part that starts with a dot: locks, temporary files, Ray's own state."""
    return any(part.startswith(".") for part in name.split("/"))
