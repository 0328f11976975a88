"""A directory in a bucket of an object store.

All other code reads and writes local files. The bucket is the truth: `Mirror.pull` makes the copy what the bucket
holds, so that a copy which another machine's work has outrun never wins; `Mirror.push` brings what was written since
into the bucket, in an order in which it is whole at every moment. Objects appear only when they are complete.

pyarrow, which Ray Tune brings, is imported inside the functions: most sweeps need no bucket.
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
from raysweep.system.places import expanded

PATIENCE = 60.0  # seconds after the first failure of a request in which it is tried again
PAUSE = 1.0  # seconds before the second try; each later one waits twice as long
THREADS = 16  # small files at a time
T = TypeVar("T")
Wanted = Callable[[str], bool]


@dataclass(frozen=True)
class Info:
    """What a listing says of an object."""

    size: int
    mtime_ns: int
    """By the store's clock."""


class Bucket:
    """A directory in a bucket.

    Args:
        uri: such as `s3://bucket/prefix?region=eu-west-1`; credentials and AWS_ENDPOINT_URL are the environment's. The
            path is taken literally, as `aws s3` and TensorBoard do: trials have % in their names.
        inside: a path below it, literally.

    Raises:
        InputError: it is no such URI. Nothing is asked of the store yet.
    """

    def __init__(self, uri: str, inside: str = "") -> None:
        self.uri, self.inside = uri, inside
        refuse_password(uri)
        try:
            parts = urlsplit(uri)
        except ValueError as fault:
            raise InputError(f"{uri}: is no URI ({fault})") from None
        self.scheme, self.name, self.query = parts.scheme, parts.netloc, parts.query
        # abfs://CONTAINER@ACCOUNT names no user, and gs://anonymous@BUCKET nobody.
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
            if option not in known:  # its value, and what has none, may be a secret
                name = repr(option) if value else "***"
                raise InputError(
                    f"{uri}: unknown option {name}{suggest(option, known)} (credentials do not belong into a URI)"
                )
            if "@" in value:
                raise refusal_of_credentials(self.scheme, f"{self.scheme}://…?{option}=…")
        if self.scheme == "s3":
            s3_endpoint()

    def __reduce__(self) -> tuple[Any, ...]:
        return Bucket, (self.uri, self.inside)  # the connection stays where it was made

    def __truediv__(self, name: str) -> Bucket:
        inner = Bucket(self.uri, f"{self.inside}/{name}")
        if "_opened" in self.__dict__:
            file_system, path = self._opened
            inner._opened = file_system, f"{path}/{name}"
        return inner

    def __str__(self) -> str:
        return self.uri.partition("?")[0].rstrip("/") + self.inside

    def copy(self, purpose: str) -> Path:
        """Where the local copy lies on this machine: under $RAYSWEEP_CACHE, by default ~/.cache/raysweep.

        Args:
            purpose: separates the copies of processes that would disturb each other.
        """
        where = f"{self.scheme}://{self.name}?{self.query} {s3_endpoint() if self.scheme == 's3' else ''}"
        store = f"{self.name}-{hashlib.sha256(where.encode()).hexdigest()[:8]}"
        cache = os.environ.get("RAYSWEEP_CACHE") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/raysweep"
        return Path(expanded(cache)).absolute() / purpose / store / (self.prefix + self.inside).lstrip("/")

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system of pyarrow, and the directory's path in it; raises OSError where it cannot be opened."""
        try:
            from pyarrow import fs
        except ImportError:
            raise InputError(f"{self}: buckets need pyarrow, which comes with Ray: pip install pyarrow") from None
        if self.scheme == "s3":
            file_system, path = open_s3(fs, self.name, dict(parse_qsl(self.query))), self.name
        else:
            try:
                file_system, path = fs.FileSystem.from_uri(f"{self.scheme}://{self.name}?{self.query}")
            except (ValueError, NotImplementedError) as fault:  # pyarrow's faults of a URI, and of a build without it
                raise InputError(f"{self}: {' '.join(str(fault).split())}") from None
        return file_system, f"{path.rstrip('/')}/{self.prefix}".rstrip("/") + self.inside

    def check(self, *, write: bool) -> None:
        """Ask the store, once.

        Args:
            write: whether to write an object and remove it again.

        Raises:
            InputError: it does not answer, has no such bucket, or does not let this user do it.
        """
        try:
            file_system, path = self._opened
            if file_system.get_file_info(path.partition("/")[0]).type.name == "NotFound":
                raise InputError(f"{self}: there is no bucket {self.name!r}; make it first")
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
        """What lies directly in it."""
        file_system, path = self._opened
        found = self._ask("listing", lambda: file_system.get_file_info(selector(path, recursive=False)))
        return {each.base_name for each in found}

    def has(self, name: str) -> bool:
        """Whether there is such an object; no, where the store does not answer at once."""
        try:
            file_system, path = self._opened
            # One HEAD. For what is not there, pyarrow's get_file_info asks for a listing too, at ten times the price.
            file_system.open_input_file(f"{path}/{name}").close()
        except OSError:
            return False
        return True

    def files(self) -> dict[str, Info]:
        """The objects in it, at any depth, by their path below it; without hidden ones."""
        file_system, path = self._opened
        found = self._ask("listing", lambda: file_system.get_file_info(selector(path, recursive=True)))
        files = {}
        for each in found:
            name = each.path.removeprefix(f"{path}/")
            if each.is_file and not hidden(name):
                files[name] = Info(each.size, each.mtime_ns)
        return files

    def read(self, name: str) -> bytes:
        """An object's content; raises FileNotFoundError if there is none."""
        file_system, path = self._opened

        def get() -> bytes:
            with file_system.open_input_file(f"{path}/{name}") as file:  # one request; a stream makes many small ones
                content: bytes = file.read()
                return content

        return self._ask(f"reading {name}", get)

    def write(self, name: str, content: bytes) -> None:
        """Make or replace an object."""
        file_system, path = self._opened
        self._ask(f"writing {name}", lambda: put(file_system, f"{path}/{name}", content))

    def remove(self, name: str) -> None:
        """Remove an object; nothing if there is none."""
        file_system, path = self._opened

        def delete() -> None:
            with suppress(FileNotFoundError):  # a try before this one removed it, and its answer was lost
                file_system.delete_file(f"{path}/{name}")

        self._ask(f"removing {name}", delete)

    def _ask(self, what: str, request: Callable[[], T]) -> T:
        """What the store answers, asked again for `PATIENCE` seconds if it fails.

        Raises:
            FileNotFoundError: there is no such object.
            OSError: it failed to the end; `strerror` says why in one line, `filename` is the URI.
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
    """The address of the S3 service that the environment names, "" for Amazon's.

    Raises:
        InputError: it is no such address, or has credentials in it.
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
        raise InputError(f"{name}={address}: is no address of an S3 service; give http://HOST:PORT or https://HOST")
    return address


def open_s3(fs: Any, bucket: str, options: dict[str, str]) -> Any:
    """Pyarrow's S3: like its `from_uri`, whose retries of a request that is never answered take minutes."""
    address = urlsplit(s3_endpoint())
    if address.netloc:
        options = {"endpoint_override": address.netloc + address.path.rstrip("/"), "scheme": address.scheme, **options}
    region = options.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None:
        region = "us-east-1" if "endpoint_override" in options else fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(
        # Given here, they are not looked for in the environment at each request: they are hidden there while Tune runs.
        **{**options, "region": region, **credentials()},
        connect_timeout=5,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=3),
        allow_delayed_open=True,  # one request for a small file instead of three
    )


def put(file_system: Any, path: str, content: bytes) -> None:
    """Write an object. Nothing but `write` may fail in the block: leaving it makes an object of what there is."""
    with file_system.open_output_stream(path) as file:
        file.write(content)


def selector(path: str, recursive: bool) -> Any:
    """Pyarrow's request for a listing."""
    from pyarrow import fs

    return fs.FileSelector(path, recursive=recursive, allow_not_found=True)


def describe_s3_error(fault: OSError) -> str:
    """What pyarrow says went wrong, in one short line."""
    text = " ".join(str(fault).split())
    found = re.search(
        r"AWS Error (\w+) during \w+ operation: (?:curlCode: \d+, )?(.*?)(?:; Details:.*| \(Request ID.*)?$", text
    )
    return masked(f"{found[2].rstrip('.')} ({found[1]})" if found else text)
