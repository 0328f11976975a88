"""A directory in a bucket of an object store, and the local copy of it that everything works on.

All other code reads and writes local files. The bucket is the truth: `Mirror.pull` makes the copy what the bucket
holds, so that a copy which another machine's work has outrun never wins; `Mirror.push` brings what was written since
into the bucket, in an order in which it is whole at every moment. Objects appear only when they are complete.

pyarrow, which Ray Tune brings, is imported inside the functions: most sweeps need no bucket.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from raysweep.config import suggest
from raysweep.errors import URI_OPTIONS, InputError, has_password, masked, printable
from raysweep.files import UNSUPPORTED, replacing
from raysweep.places import expanded

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss")
"""Of stores whose objects appear only when they are complete. s3 is what the tests run against."""
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN")
"""The variables that Ray Tune passes on to its workers by way of a log file."""
PATIENCE = 60.0  # seconds after the first failure of a request in which it is tried again
PAUSE = 1.0  # seconds before the second try; each later one waits twice as long
THREADS = 16  # small files at a time
BEAT, STALE = 15.0, 60.0  # seconds between two signs of life of a lock, and after how many without it is a dead one's
CLAIM = "attempt.json"
"""Tells whose a directory is: one that finds another's there has been replaced and writes no more."""

T = TypeVar("T")
Wanted = Callable[[str], bool]


class Held(InputError):
    """Another process holds what this one wants."""


class Replaced(OSError):
    """Another process has taken up what this one had: it is to leave, and the other says how it ends."""


@dataclass(frozen=True)
class Info:
    """What a listing says of an object."""

    size: int
    mtime_ns: int
    """By the store's clock."""


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
            purpose: separates the copies of those that would get in each other's way.
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
                f"{self}: {reason(fault)}; "
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
                    raise OSError(errno.EIO, f"{what}: {reason(fault)}", str(self)) from None
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


def reason(fault: OSError) -> str:
    """What pyarrow says went wrong, in one short line."""
    text = " ".join(str(fault).split())
    found = re.search(
        r"AWS Error (\w+) during \w+ operation: (?:curlCode: \d+, )?(.*?)(?:; Details:.*| \(Request ID.*)?$", text
    )
    return masked(f"{found[2].rstrip('.')} ({found[1]})" if found else text)


def hidden(name: str) -> bool:
    """Whether a path has a part that starts with a dot: locks, temporary files, Ray's own state."""
    return any(part.startswith(".") for part in name.split("/"))


def rank(name: str) -> tuple[int, str]:
    """The order in which a trial's files go into a bucket; what is removed goes the other way.

    A checkpoint counts with its manifest, and it needs the event files; a trial is over with its result.
    """
    folder, _, file = name.rpartition("/")
    if folder.endswith("checkpoints"):
        return (2 if file.endswith(".pt") else 3), name
    return {CLAIM: 0, "result.json": 4}.get(file, 1), name


class Mirror:
    """A directory in a bucket and its local copy, used by one process at a time.

    Args:
        bucket: the directory.
        local: the copy; made where it is needed.
    """

    def __init__(self, bucket: Bucket, local: Path) -> None:
        self.bucket, self.local = bucket, local
        self._known: dict[str, Info] = {}  # what the copy had in common with the bucket when they last met
        self._claim: bytes | None = None
        self._pushed = -math.inf

    def pull(self, wanted: Wanted = lambda name: True) -> None:
        """Make the copy's wanted files those of the bucket: fetch what differs, remove what is not there."""
        there = {name: info for name, info in self.bucket.files().items() if wanted(name)}
        here = self._here(wanted)
        for name in here.keys() - there.keys():
            here[name].unlink()
        # Times are of whole seconds: only the claim is ever replaced by one of the same size in less than that.
        missing = [
            name for name, info in there.items() if name not in here or name == CLAIM or not unchanged(here[name], info)
        ]
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(lambda name: self._fetch(name, there[name]), missing):
                pass
        self._known = there

    def push(self, wanted: Wanted = lambda name: True, every: float = 0.0) -> None:
        """Bring into the bucket what was written or removed in the copy since the last `pull` or `push`.

        Args:
            wanted: which files.
            every: do nothing where the last push is fewer seconds ago.

        Raises:
            Replaced: another process has taken the directory up.
            OSError: the store does not take it.
        """
        if time.monotonic() - self._pushed < every:
            return
        there, here = self.bucket.files(), self._here(wanted)
        if self._claim is not None and (CLAIM not in there or self.bucket.read(CLAIM) != self._claim):
            raise Replaced(errno.EBUSY, "another process has taken it up", str(self.bucket))
        known = self._known
        changed = [name for name, path in here.items() if name not in known or not unchanged(path, known[name])]
        removed = [name for name in known.keys() & there.keys() - here.keys() if wanted(name)]
        sent = {}
        for name in sorted(changed, key=rank):
            before = here[name].stat()
            content = here[name].read_bytes()
            self.bucket.write(name, content)
            if name == CLAIM:
                self._claim = content
            sent[name] = len(content), before
        for name in sorted(removed, key=rank, reverse=True):
            self.bucket.remove(name)
        if sent or removed:
            there = self.bucket.files()
        for name, (size, before) in sent.items():
            if name not in there or there[name].size != size:
                raise OSError(errno.EIO, f"{name} has not arrived as it was sent", str(self.bucket))
            if here[name].stat().st_mtime_ns == before.st_mtime_ns:
                set_time(here[name], there[name])
        self._known = {name: info for name, info in known.items() if name in there}
        self._known |= {name: there[name] for name in sent}
        self._pushed = time.monotonic()

    def _here(self, wanted: Wanted) -> dict[str, Path]:
        """The wanted files of the copy, by their path in it; nothing that is not a regular file."""
        files = {}
        for folder, folders, names in os.walk(self.local):
            folders[:] = [each for each in folders if not hidden(each)]
            for path in (Path(folder, name) for name in names):
                name = path.relative_to(self.local).as_posix()
                if not hidden(path.name) and wanted(name) and path.is_file():
                    files[name] = path
        return files

    def _fetch(self, name: str, info: Info) -> None:
        """Bring one file, whole or not at all."""
        path = self.local / name
        if path.resolve() != self.local.resolve() / name:
            raise InputError(f"{self.bucket}: the object {name!r} would lie outside of {self.local}")
        content = self.bucket.read(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, durable=False) as file:
            file.write(content)
        set_time(path, info)


def unchanged(path: Path, info: Info) -> bool:
    """Whether a local file still is the object that it was made of, or into which it was made."""
    stat = path.stat()
    return (stat.st_size, stat.st_mtime_ns) == (info.size, info.mtime_ns)


def set_time(path: Path, info: Info) -> None:
    """Mark a local file as what the object holds: the next change gives it a time of its own.

    Where the file system refuses that, the file counts as changed and is fetched or sent again.
    """
    try:
        os.utime(path, ns=(info.mtime_ns, info.mtime_ns))
    except OSError as fault:
        if fault.errno not in (*UNSUPPORTED, errno.EPERM):
            raise


def fetch_encoder(uri: str) -> Path:
    """A local copy of what `embed` and `export` read: a trial's `encoder.pt`, or the file that the URI names.

    Raises:
        InputError: there is none.
    """
    path, mark, query = uri.partition("?")
    parent, _, name = path.rpartition("/")
    is_file = name.endswith(".pt")
    folder, file = Bucket(f"{parent}{mark}{query}" if is_file else uri), name if is_file else "encoder.pt"
    folder.check(write=False)
    mirror = Mirror(folder, folder.copy("reports"))
    mirror.pull(lambda each: each == file)
    if not (mirror.local / file).exists():
        raise InputError(f"{folder}: has no {file}; give a trial's directory, its encoder.pt or a training checkpoint")
    return mirror.local / file


@contextmanager
def hold(folder: Bucket, token: str, dead: str) -> Iterator[None]:
    """Hold a lock that works across machines: an object in `folder` that is written anew every `BEAT` seconds.

    Each contender writes an object of its own first and looks for others' after that, so of two at the same time at
    most one goes on. Ages are told by the store's clock. One that has lost its lock while it was suspended is
    interrupted, as by Ctrl-C.

    Args:
        folder: holds the contenders' objects and nothing else.
        token: a new name for the own one.
        dead: that of a process which is known to be no more.

    Raises:
        Held: another process holds it.
    """
    content = json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode()
    if dead:
        folder.remove(dead)
    folder.write(token, content)
    over = threading.Event()
    beating = threading.Thread(target=beat, args=(folder, token, content, over), daemon=True)
    try:
        contenders = folder.files()
        for other, info in contenders.items():
            left = STALE - (contenders[token].mtime_ns - info.mtime_ns) / 1e9
            if other != token and left > 0:
                raise Held(
                    f"{folder.uri}: another process{holder(folder, other)} is running this sweep; if it is no more, "
                    f"try again in {math.ceil(left)} s"
                )
        for other in contenders.keys() - {token}:
            folder.remove(other)
        beating.start()
        yield
    finally:
        over.set()
        if beating.ident is not None:
            beating.join()  # or its last sign of life would come after the end
        with suppress(OSError):  # it is soon as good as dead; how the sweep ended matters more
            folder.remove(token)


def holder(folder: Bucket, name: str) -> str:
    """Who wrote a lock's object, in words; nothing where that cannot be told."""
    try:
        content = json.loads(folder.read(name))
        return f" ({content['pid']} on {content['host']})"
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return ""


def beat(folder: Bucket, token: str, content: bytes, over: threading.Event) -> None:
    """Write the object anew until it is over; interrupt this process where another has removed it."""
    while not over.wait(BEAT):
        try:
            if token not in folder.files():
                print(
                    printable(f"{folder.uri}: another process has taken this sweep over; leaving it"), file=sys.stderr
                )
                os.kill(os.getpid(), signal.SIGINT)
                return
            folder.write(token, content)
        except OSError as fault:  # as long as nobody reads the store, nobody takes the lock over
            print(printable(f"warning: {fault.filename}: {fault.strerror}"), file=sys.stderr)
