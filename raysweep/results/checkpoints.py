"""Training checkpoints: numbered files with a hash. The newest two are kept."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

from raysweep.errors import InputError
from raysweep.system.files import (
    Irregular,
    check_held,
    discard,
    open_regular,
    read_regular,
    write_atomically,
    write_json,
)

KEEP_CHECKPOINTS = 2
CHECKPOINT = re.compile(r"[0-9]{8}\.(pt|json)|\.[0-9]{8}\.(pt|json)\..+")
"""Names of the files in `checkpoints/`, including temporary files of a process that was killed while writing."""
LONGEST_MANIFEST = 4096


def save_checkpoint(directory: Path, state: dict[str, Any]) -> None:
    """Save `state` (tensors and plain values) under the next number; the newest `KEEP_CHECKPOINTS` are kept.

    The manifest with the hash is written last. A checkpoint without a manifest is ignored.
    """
    check_held(directory)
    folder = directory / "checkpoints"
    folder.mkdir(exist_ok=True)
    earlier = sorted(path.stem for path in folder.glob("*.json") if CHECKPOINT.fullmatch(path.name))
    number = f"{int(earlier[-1]) + 1 if earlier else 1:08}"
    content = to_bytes(state)
    write_atomically(folder / f"{number}.pt", content)
    write_json(folder / f"{number}.json", {"sha256": digest_of(content)})
    kept = [*earlier, number][-KEEP_CHECKPOINTS:]
    for file in sorted(folder.iterdir()):  # manifests sort first; temporary files of a killed process go too
        if CHECKPOINT.fullmatch(file.name) and file.stem not in kept:
            discard(file)


def load_checkpoint(directory: Path) -> dict[str, Any] | None:
    """Return the newest complete checkpoint or None. A damaged one is removed with a warning."""
    import torch

    manifests = [path for path in (directory / "checkpoints").glob("*.json") if CHECKPOINT.fullmatch(path.name)]
    for manifest in sorted(manifests, reverse=True):
        file = manifest.with_suffix(".pt")
        try:
            content = read_regular(file)
            # Compared as text, so that a damaged manifest simply does not match.
            says = read_regular(manifest, LONGEST_MANIFEST).decode(errors="replace")
        except (FileNotFoundError, ValueError):
            content, says = b"", ""
        if content and digest_of(content) in says:
            state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            return state
        warnings.warn(f"checkpoint {file} is damaged; resuming from the one before it, if there is one", stacklevel=2)
        discard(manifest)  # so that it is not counted among the kept checkpoints
        discard(file)
    return None


def remove_checkpoints(directory: Path) -> None:
    """Remove the checkpoints, which only a running trial needs."""
    folder = directory / "checkpoints"
    for file in folder.glob("*"):
        if CHECKPOINT.fullmatch(file.name):
            discard(file)
    if folder.is_dir() and not any(folder.iterdir()):  # the folder may hold files of the user
        folder.rmdir()


def load_plain(file: Path) -> dict[str, Any]:
    """Load a file that `to_bytes` wrote. Other files are rejected, and code in a file is never run.

    Raises:
        InputError: The file is not a PyTorch file, is damaged, or holds more than tensors and plain values.
    """
    import torch

    why = "it is not a file of PyTorch"
    try:
        with open_regular(file) as opened:
            if opened.read(4) == b"PK\x03\x04":
                why = "it is cut off or damaged"
                with zipfile.ZipFile(opened) as archive:
                    members = archive.infolist()
                    intact = False
                    if not any(member.filename.endswith("/data.pkl") for member in members):
                        why = "it is not a file of PyTorch"
                    elif sum(member.file_size for member in members) > file.stat().st_size:
                        # PyTorch does not compress. A small file must not expand to fill the memory.
                        why = "it is compressed, or holds the same bytes several times"
                    else:
                        intact = archive.testzip() is None  # PyTorch writes these checksums but does not verify them
                if intact:
                    opened.seek(0)
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # PyTorch warns about tensor kinds that are rejected anyway
                        saved = torch.load(opened, map_location="cpu", weights_only=True)
                    if isinstance(saved, dict):
                        return saved
                    why = "it holds no encoder"
    except MemoryError:
        raise
    except Irregular as fault:
        why = f"it {fault}"
    except Exception as fault:  # which exceptions damaged archives and pickles raise is not documented
        if isinstance(fault, OSError) and fault.filename is not None:  # the file cannot be opened
            raise
        if isinstance(fault, pickle.UnpicklingError):
            why = "it holds more than tensors and plain values, which could run code and is not loaded"
    raise InputError(f"{file}: is not a checkpoint of raysweep: {why}")


def to_bytes(state: dict[str, Any]) -> bytes:
    """Serialise tensors and plain values in PyTorch's file format."""
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def digest_of(content: bytes) -> str:
    """Return the SHA-256 digest of a file's content, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
