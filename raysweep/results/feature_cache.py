"""A cache of features on the disk of one machine: bounded, shared by processes, and safe to delete at any time."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.errors import InputError
from raysweep.system.files import Irregular, open_regular, replacing
from raysweep.system.places import cache_directory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from raysweep.config import Settings

GB = 10**9
FOLDER = "features"
"""The folder in the user's cache directory that holds the features."""
FILE = re.compile(r"[0-9a-f]{64}\.features")
TEMPORARY = re.compile(r"\.[0-9a-f]{64}\.features\.(raysweep-)?[0-9a-f]{8}")
"""The names of the files, and of files that are being written, also by older versions. Others are never touched."""
DIGEST_BYTES = 32
NUMBER_BYTES = 4
"""Bytes of a float32."""
RESERVE = GB // 2
"""Free bytes that the cache leaves on its disk, because results of other trials may be written there."""
ABANDONED_SECONDS = 3600.0
"""Age in seconds since its last write at which a file that is being written counts as left by a killed process."""


@dataclass(frozen=True)
class Entry:
    """A file of the cache."""

    path: Path
    size: int
    """Its size in bytes."""
    used: int
    """When it was last written or read, in nanoseconds."""
    is_temporary: bool
    """Whether it is being written, or was left by a process that was killed while it wrote."""


@dataclass(frozen=True)
class FeatureCache:
    """Features by key, in one directory. A file is the SHA-256 of its key and content, then float32 numbers.

    A file appears under its name when it is complete. A file that another process removes stays readable for a process
    that has opened it. So processes need no lock.

    Example:
        >>> cache = FeatureCache(Path("cache"), 10**9)
        >>> cache.write("0" * 64, np.zeros((2, 3), np.float32))
        >>> cache.read("0" * 64, rows=2).shape
        (2, 3)
    """

    directory: Path
    most: int
    """The largest size of all files together, in bytes."""

    def read(self, key: str, rows: int) -> NDArray[np.float32] | None:
        """Return features (rows, D), float32; None if they are not in the cache or their file is damaged.

        Args:
            key: 64 hexadecimal digits that identify the features.
            rows: the number of images, at least 1.
        """
        import numpy as np

        path = self._path(key)
        try:
            with open_regular(path) as file:
                size = os.fstat(file.fileno()).st_size - DIGEST_BYTES
                if size > self.most:  # the bound was lowered, and the next write removes the file
                    return None
                is_whole = size > 0 and size % (rows * NUMBER_BYTES) == 0
                digest = file.read(DIGEST_BYTES)
                features = np.empty((rows, size // (rows * NUMBER_BYTES) if is_whole else 0), np.float32)
                is_whole = is_whole and file.readinto(bytes_of(features)) == size  # type: ignore[attr-defined]
        except FileNotFoundError:
            return None
        except (OSError, Irregular) as fault:
            self._warn(fault)
            return None
        if not is_whole or digest != digest_of(key, features):
            warnings.warn(f"{path}: was damaged, so its features were extracted again", stacklevel=2)
            return None
        with suppress(OSError):  # the cache may be read-only, or another process may have removed the file
            os.utime(path)
        return features

    def write(self, key: str, features: NDArray[np.float32]) -> None:
        """Keep features (N, D), float32, if they fit. The files that were not used for the longest time make room.

        A disk that is full or read-only only causes a warning.
        """
        import numpy as np

        features = np.ascontiguousarray(features, dtype=np.float32)
        size = DIGEST_BYTES + features.nbytes
        if size > self.most or not features.size:
            return
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._make_room(size)
            if shutil.disk_usage(self.directory).free < size + RESERVE:
                warnings.warn(f"{self.directory}: keeps no features, because its disk is almost full", stacklevel=2)
                return
            with replacing(self._path(key), durable=False) as file:
                file.write(digest_of(key, features))
                file.write(bytes_of(features))
            self._make_room(0)  # another process may have written at the same time
        except OSError as fault:
            self._warn(fault)

    def size(self) -> int:
        """Return the size of all files together, in bytes; 0 if the directory does not exist."""
        try:
            return sum(entry.size for entry in self._entries())
        except OSError:
            return 0

    def _path(self, key: str) -> Path:
        """Return the file of a key."""
        path = self.directory / f"{key}.features"
        assert FILE.fullmatch(path.name)
        return path

    def _entries(self) -> Iterator[Entry]:
        """Yield the files of the cache. Links, and files with other names, are not among them."""
        with os.scandir(self.directory) as files:
            for file in files:
                is_temporary = TEMPORARY.fullmatch(file.name) is not None
                if not (is_temporary or FILE.fullmatch(file.name)) or not file.is_file(follow_symlinks=False):
                    continue
                with suppress(FileNotFoundError):  # another process has removed it
                    status = file.stat(follow_symlinks=False)
                    yield Entry(Path(file.path), status.st_size, status.st_mtime_ns, is_temporary)

    def _make_room(self, needed: int) -> None:
        """Remove the least recently used files until `needed` more bytes fit, and what killed processes have left."""
        entries = sorted(self._entries(), key=lambda entry: entry.used)
        excess = sum(entry.size for entry in entries) + needed - self.most
        oldest = time.time_ns() - int(ABANDONED_SECONDS * 1e9)
        for entry in entries:
            is_abandoned = entry.is_temporary and entry.used < oldest
            if is_abandoned or (excess > 0 and not entry.is_temporary):
                entry.path.unlink(missing_ok=True)
                excess -= entry.size

    def _warn(self, fault: Exception) -> None:
        """Warn that the directory cannot be used."""
        reason = getattr(fault, "strerror", None) or str(fault)
        warnings.warn(f"{self.directory}: features cannot be kept here: {reason}; see cache_gb", stacklevel=3)


def cache_of(settings: Settings) -> FeatureCache | None:
    """Return the cache of features on this machine; None if the settings turn it off or the user has no home."""
    most = int(settings.cache_gb * GB)
    if most == 0:
        return None
    try:
        return FeatureCache(cache_directory() / FOLDER, most)
    except InputError:
        return None


def cache_words(settings: Settings) -> str:
    """Return the size and the place of the cache on this machine in words; an empty text if it is empty or off."""
    cache = cache_of(settings)
    size = cache.size() if cache is not None else 0
    if cache is None or not size:
        return ""
    shown = f"{size / GB:.2f} GB" if size >= GB / 100 else f"{max(size / 10**6, 0.1):.1f} MB"
    return f"features cache: {shown} of at most {settings.cache_gb:g} GB in {cache.directory} (may be deleted)"


def bytes_of(features: NDArray[np.float32]) -> Any:
    """Return the memory of contiguous features as bytes, without a copy."""
    return features.reshape(-1).view("uint8").data


def digest_of(key: str, features: NDArray[np.float32]) -> bytes:
    """Return the SHA-256 of a key and of features, 32 bytes."""
    sha = hashlib.sha256(key.encode())
    sha.update(bytes_of(features))
    return sha.digest()
