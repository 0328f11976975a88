"""Handling of bucket URIs and credentials, so that no credentials appear in messages or logs."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager

from raysweep.errors import InputError, has_password

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss")
"""URI schemes of stores whose objects appear only when they are complete. The tests run against s3."""
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN")
"""Environment variables that Ray Tune passes to its workers in a way that writes them to a log file."""


def is_uri(place: object) -> bool:
    """Return whether `place` is a URI in a bucket rather than a local path.

    Raises:
        InputError: `place` is nearly a URI (the // is missing), or it contains a password.
    """
    scheme, colon, rest = place.partition(":") if isinstance(place, str) else ("", "", "")
    refuse_password(str(place))
    if colon and scheme in SCHEMES and not rest.startswith("//"):
        raise InputError(f"{place}: a place in a bucket is {scheme}://BUCKET/PREFIX (a local directory: ./{place})")
    return rest.startswith("//")


def refuse_password(uri: str, what: str = "") -> None:
    """Raise InputError if the URI contains a password; the message shows `what` instead of the URI."""
    if has_password(uri):
        raise refusal_of_credentials(uri.partition(":")[0], what)


def refusal_of_credentials(scheme: str, what: str = "") -> InputError:
    """Return the error for credentials in a URI. Its message quotes only the URI's scheme."""
    where = {
        "s3": "in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or in ~/.aws",
        "gs": "by GOOGLE_APPLICATION_CREDENTIALS",
        "gcs": "by GOOGLE_APPLICATION_CREDENTIALS",
        "abfs": "in the environment (AZURE_CLIENT_ID, AZURE_CLIENT_SECRET, AZURE_TENANT_ID)",
        "abfss": "in the environment (AZURE_CLIENT_ID, AZURE_CLIENT_SECRET, AZURE_TENANT_ID)",
    }.get(scheme, "in the environment")
    name = what or f"{scheme}://…"
    return InputError(f"{name}: a URI must not contain credentials, because it is logged; give them {where}")


@contextmanager
def hidden_credentials() -> Iterator[None]:
    """Remove the credentials from this process's environment inside the block; buckets still use them.

    Ray Tune copies credentials into the runtime environment of its workers, which Ray writes to a log that everyone
    can read. Workers on this machine still have them, because they inherit the environment in which Ray was started.
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
    """Return the environment's S3 credentials as pyarrow arguments; empty without a complete key pair."""
    environment = {**os.environ, **_hidden}
    key, secret = environment.get("AWS_ACCESS_KEY_ID"), environment.get("AWS_SECRET_ACCESS_KEY")
    if not key or not secret:
        return {}
    given = {"access_key": key, "secret_key": secret}
    token = environment.get("AWS_SESSION_TOKEN")
    return {**given, "session_token": token} if token else given


def join(uri: str, name: str) -> str:
    """Return the URI of `name` in the directory `uri`."""
    start, mark, query = uri.partition("?")
    return f"{start.rstrip('/')}/{name}{mark}{query}"


def resolve(uri: str, path: str) -> str:
    """Return the URI of a path, such as `../a`, that is relative to the directory `uri`.

    As in a file system, the root of the bucket is its own parent.
    """
    start, mark, query = uri.partition("?")
    scheme, slashes, place = start.partition("://")
    bucket, _, prefix = place.partition("/")
    inside = posixpath.normpath(posixpath.join("/", prefix, path)).rstrip("/")
    return f"{scheme}{slashes}{bucket}{inside}{mark}{query}"


def hidden(name: str) -> bool:
    """Return whether a part of the path starts with a dot: locks, temporary files and Ray's own state."""
    return any(part.startswith(".") for part in name.split("/"))
