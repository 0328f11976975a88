"""Access to a directory in a bucket of an object store.

All other code reads and writes local files. The bucket is authoritative. `Mirror.pull` makes the local copy equal to
the bucket, so a local copy that is older than another machine's work never wins. `Mirror.push` uploads what was written
since, in an order that keeps the bucket consistent at every moment. Objects appear only when they are complete.

pyarrow is a dependency of Ray Tune. It is imported inside the functions because most sweeps need no bucket.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from raysweep.config import suggest
from raysweep.errors import URI_OPTIONS, InputError, masked
from raysweep.results.credentials import SCHEMES, credentials, hidden, refusal_of_credentials, refuse_password
from raysweep.system.places import cache_directory

PATIENCE = 60.0  # seconds after the first failure during which a request is retried
PAUSE = 1.0  # seconds before the first retry; each later pause is twice as long
THREADS = 16  # number of small files transferred in parallel
T = TypeVar("T")
Wanted = Callable[[str], bool]


@dataclass(frozen=True)
class Info:
    """Size and modification time of an object, from a listing."""

    size: int
    mtime_ns: int
    """Modification time by the store's clock, in nanoseconds."""


class Bucket:
    """A directory in a bucket.

    Args:
        uri: For example `s3://bucket/prefix?region=eu-west-1`. Credentials and AWS_ENDPOINT_URL come from the
            environment. The path is taken literally, as `aws s3` and TensorBoard do, because trial names contain %.
        inside: A path below the URI's directory, taken literally.

    Raises:
        InputError: The URI is invalid. The constructor sends no request to the store.
    """

    def __init__(self, uri: str, inside: str = "") -> None:
        self.uri, self.inside = uri, inside
        refuse_password(uri)
        try:
            parts = urlsplit(uri)
        except ValueError as fault:
            raise InputError(f"{uri}: is not a URI ({fault})") from None
        self.scheme, self.name, self.query = parts.scheme, parts.netloc, parts.query
        # In abfs://CONTAINER@ACCOUNT and gs://anonymous@BUCKET, the part before the @ is not a user name.
        user = self.name.rpartition("@")[0]
        if user and not self.scheme.startswith("abfs") and (self.scheme, user) != ("gs", "anonymous"):
            raise refusal_of_credentials(self.scheme)
        if self.scheme not in SCHEMES:
            raise InputError(f"{uri}: unknown kind of bucket {self.scheme!r}{suggest(self.scheme, SCHEMES)}")
        self.prefix = parts.path.strip("/")
        if not self.name or parts.fragment or {"", ".", ".."} & set(self.prefix.split("/") if self.prefix else ()):
            raise InputError(f"{uri}: is not a place in a bucket; give {self.scheme}://BUCKET/PREFIX")
        known = URI_OPTIONS[{"gcs": "gs", "abfss": "abfs"}.get(self.scheme, self.scheme)]
        for option, value in parse_qsl(self.query, keep_blank_values=True):
            if option not in known:  # an unknown option's value may be a secret, and so may an option without a value
                name = repr(option) if value else "***"
                raise InputError(
                    f"{uri}: unknown option {name}{suggest(option, known)} (never put credentials into a URI)"
                )
            if "@" in value:
                raise refusal_of_credentials(self.scheme, f"{self.scheme}://…?{option}=…")
        if self.scheme == "s3":
            s3_endpoint()

    def __reduce__(self) -> tuple[Any, ...]:
        return Bucket, (self.uri, self.inside)  # the open connection is not pickled

    def __truediv__(self, name: str) -> Bucket:
        inner = Bucket(self.uri, f"{self.inside}/{name}")
        if "_opened" in self.__dict__:
            file_system, path = self._opened
            inner._opened = file_system, f"{path}/{name}"
        return inner

    def __str__(self) -> str:
        return self.uri.partition("?")[0].rstrip("/") + self.inside

    def copy(self, purpose: str) -> Path:
        """Return the local copy's path on this machine, under $RAYSWEEP_CACHE (by default ~/.cache/raysweep).

        Args:
            purpose: Separates the copies of processes that would disturb each other.
        """
        where = f"{self.scheme}://{self.name}?{self.query} {s3_endpoint() if self.scheme == 's3' else ''}"
        store = f"{self.name}-{hashlib.sha256(where.encode()).hexdigest()[:8]}"
        return cache_directory() / purpose / store / (self.prefix + self.inside).lstrip("/")

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The pyarrow file system and the directory's path in it; raises OSError if it cannot be opened."""
        try:
            from pyarrow import fs
        except ImportError:
            raise InputError(f"{self}: buckets need pyarrow, which comes with Ray: pip install pyarrow") from None
        if self.scheme == "s3":
            file_system, path = open_s3(fs, self.name, dict(parse_qsl(self.query))), self.name
        else:
            try:
                file_system, path = fs.FileSystem.from_uri(f"{self.scheme}://{self.name}?{self.query}")
            except (ValueError, NotImplementedError) as fault:  # an invalid URI, or a pyarrow built without this scheme
                raise InputError(f"{self}: {' '.join(str(fault).split())}") from None
        return file_system, f"{path.rstrip('/')}/{self.prefix}".rstrip("/") + self.inside

    def check(self, *, write: bool) -> None:
        """Check that the bucket answers and that this user may access it.

        Args:
            write: Whether to test writing, by writing an object and removing it.

        Raises:
            InputError: The store does not answer, has no such bucket, or does not permit the access.
        """
        try:
            file_system, path = self._opened
            if file_system.get_file_info(path.partition("/")[0]).type.name == "NotFound":
                raise InputError(f"{self}: there is no bucket {self.name!r}; create it first")
            if write:
                probe = f"{path}/.{uuid.uuid4().hex}"
                put(file_system, probe, b"")
                file_system.delete_file(probe)
            else:
                file_system.get_file_info(selector(path, recursive=False))
        except OSError as fault:
            at = s3_endpoint() if self.scheme == "s3" else ""
            raise InputError(
                f"{self}: {describe_s3_error(fault)}; "
                f"{f'asked at {at} (AWS_ENDPOINT_URL); ' if at else ''}are the address and the credentials right?"
            ) from None

    def names(self) -> set[str]:
        """Return the names of the entries directly in the directory."""
        file_system, path = self._opened
        entries = self._ask("listing", lambda: file_system.get_file_info(selector(path, recursive=False)))
        return {entry.base_name for entry in entries}

    def has(self, name: str) -> bool:
        """Return whether the object exists; False if the store does not answer the first request."""
        try:
            file_system, path = self._opened
            # This sends one HEAD. For a missing object, get_file_info also sends a listing, at ten times the price.
            file_system.open_input_file(f"{path}/{name}").close()
        except OSError:
            return False
        return True

    def files(self) -> dict[str, Info]:
        """Return the objects below the directory, at any depth, by relative path; hidden objects are left out."""
        file_system, path = self._opened
        entries = self._ask("listing", lambda: file_system.get_file_info(selector(path, recursive=True)))
        files = {}
        for entry in entries:
            name = entry.path.removeprefix(f"{path}/")
            if entry.is_file and not hidden(name):
                files[name] = Info(entry.size, entry.mtime_ns)
        return files

    def read(self, name: str) -> bytes:
        """Return an object's content; raises FileNotFoundError if it does not exist."""
        file_system, path = self._opened

        def get() -> bytes:
            with file_system.open_input_file(f"{path}/{name}") as file:  # one request; a stream sends many small ones
                content: bytes = file.read()
                return content

        return self._ask(f"reading {name}", get)

    def read_if_present(self, name: str) -> bytes | None:
        """Return an object's content; None if it does not exist, for example because it was removed after a listing."""
        try:
            return self.read(name)
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Create or replace an object."""
        file_system, path = self._opened
        self._ask(f"writing {name}", lambda: put(file_system, f"{path}/{name}", content))

    def remove(self, name: str) -> None:
        """Remove an object if it exists."""
        file_system, path = self._opened

        def delete() -> None:
            with suppress(FileNotFoundError):  # an earlier try may have removed the object although its answer was lost
                file_system.delete_file(f"{path}/{name}")

        self._ask(f"removing {name}", delete)

    def _ask(self, what: str, request: Callable[[], T]) -> T:
        """Return the store's answer; a failing request is retried for `PATIENCE` seconds.

        Raises:
            FileNotFoundError: The object does not exist.
            OSError: All tries failed. `strerror` gives the reason in one line, and `filename` is the URI.
        """
        end, pause = time.monotonic() + PATIENCE, PAUSE
        while True:
            try:
                return request()
            except FileNotFoundError:
                raise
            except OSError as fault:
                if time.monotonic() + pause > end:
                    raise OSError(errno.EIO, f"{what}: {describe_s3_error(fault)}", str(self)) from None
            time.sleep(pause)
            pause *= 2


def s3_endpoint() -> str:
    """Return the address of the S3 service from the environment, "" for Amazon's.

    Raises:
        InputError: The address is invalid or contains credentials.
    """
    name = "AWS_ENDPOINT_URL_S3" if os.environ.get("AWS_ENDPOINT_URL_S3") else "AWS_ENDPOINT_URL"
    address = os.environ.get(name, "")
    if "@" in address:
        raise refusal_of_credentials("s3", name)
    try:
        parts = urlsplit(address)
    except ValueError:
        parts = urlsplit("?")
    if address and (parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment):
        raise InputError(
            f"{name}={address}: is not the address of an S3 service; give http://HOST:PORT or https://HOST"
        )
    return address


def open_s3(fs: Any, bucket: str, options: dict[str, str]) -> Any:
    """Open S3 like pyarrow's `from_uri`, whose retries of a request without an answer take minutes."""
    address = urlsplit(s3_endpoint())
    if address.netloc:
        options = {"endpoint_override": address.netloc + address.path.rstrip("/"), "scheme": address.scheme, **options}
    region = options.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None:
        region = "us-east-1" if "endpoint_override" in options else fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(
        # Passed explicitly, because the environment's credentials are hidden while Tune runs.
        **{**options, "region": region, **credentials()},
        connect_timeout=5,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=3),
        allow_delayed_open=True,  # one request for a small file instead of three
    )


def put(file_system: Any, path: str, content: bytes) -> None:
    """Write an object. Only `write` may fail in the block: leaving it stores whatever was written so far."""
    with file_system.open_output_stream(path) as file:
        file.write(content)


def selector(path: str, recursive: bool) -> Any:
    """Return pyarrow's request for a listing."""
    from pyarrow import fs

    return fs.FileSelector(path, recursive=recursive, allow_not_found=True)


def describe_s3_error(fault: OSError) -> str:
    """Return pyarrow's error message as one short line."""
    text = " ".join(str(fault).split())
    match = re.search(
        r"AWS Error (\w+) during \w+ operation: (?:curlCode: \d+, )?(.*?)(?:; Details:.*| \(Request ID.*)?$", text
    )
    return masked(f"{match[2].rstrip('.')} ({match[1]})" if match else text)
