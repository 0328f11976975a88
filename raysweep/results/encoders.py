"""Reading and writing files of trained encoders."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep import __version__, parts
from raysweep.config import EMBEDDING, FOLDER, TRUNK, Settings
from raysweep.config.images import native_size
from raysweep.config.part_settings import network_parameters
from raysweep.errors import InputError, shortened_value
from raysweep.plugins import activate
from raysweep.results.bucket import Bucket
from raysweep.results.checkpoints import digest_of, load_plain
from raysweep.results.credentials import resolve
from raysweep.results.mirror import fetch_encoder
from raysweep.results.store import Store
from raysweep.results.sweep_file import read_plugins
from raysweep.space import LONGEST_WRITTEN, Sweep, Trial, read
from raysweep.system.files import is_occupied, parse_json, read_regular, write_atomically

if TYPE_CHECKING:
    from torch import Tensor

ENCODER, OLD_ENCODER = "encoder.safetensors", "encoder.pt"
"""The file name of a trained encoder, and the name that older versions used, which is only read."""


def save_encoder(directory: Path, encoder: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Save the trained encoder as the trial's `encoder.safetensors`.

    Args:
        directory: The trial's directory.
        encoder: The weights, on the CPU so that they load on a machine without a GPU.
        description: What is needed to rebuild the encoder: `architecture`, `channels`, `image_size`, `embedding_dim`,
            `trunk_dim` and `arguments` (the arguments of the encoder and its head).
    """
    write_atomically(directory / ENCODER, to_safetensors(encoder, description))


def keep_encoder(directory: Path, encoder: Any, settings: Settings) -> None:
    """Save the encoder that a trial with these settings has trained; see `save_encoder`."""
    description = {
        "architecture": settings.encoder,
        "channels": encoder.channels,
        "image_size": encoder.image_size,
        "embedding_dim": settings.embedding_dim,
        "trunk_dim": encoder.feature_dim,
        "arguments": {name: getattr(settings, name) for name in ("head", *network_parameters(settings))},
    }
    weights = {name: weight.cpu() for name, weight in encoder.state_dict().items()}  # loads where there is no GPU
    save_encoder(directory, weights, description)


def source_file(store: Store, trial: Trial) -> Path | None:
    """Return the file of the encoder that a trial evaluates, after copying it to this machine if it is in a bucket.

    The result is None for a trial that pretrains, and for a control that is built from its seed.

    Raises:
        InputError: The file is missing in its bucket.
    """
    if trial.source is None or not trial.source.file:
        return None
    if store.bucket is not None:
        return fetch_encoder(resolve(store.place, trial.source.file))
    return Path(os.path.normpath(store.root / trial.source.file))


def check_encoders(store: Store, sweep: Sweep) -> None:
    """Check that the encoders that an evaluation still has to read are there.

    Raises:
        InputError: None of them is there, because the evaluation was copied out of its sweep.
    """
    files = {trial.name: trial.source.file for trial in sweep.trials if trial.source is not None and trial.source.file}
    files = {name: file for name, file in files.items() if file.startswith("../")}
    if store.bucket is None:
        missing = {name for name, file in files.items() if not is_occupied(Path(os.path.normpath(store.root / file)))}
    else:
        names = Bucket(resolve(store.place, "../..")).names() if files else set()
        missing = {name for name, file in files.items() if file.split("/")[-2] not in names}
    if missing:
        store.pull()
        ended = {result.trial for result in store.results(sweep, skip_damaged=True) if result.status != "failed"}
        remaining = files.keys() - ended
        if remaining and remaining <= missing:
            first = files[min(remaining)]
            raise InputError(
                f"{store.place}: the evaluation reads encoders of its sweep, such as {first}, and none is there; the "
                "evaluation must lie in evaluations/ of its sweep"
            )


def evaluated_encoder(trial: Trial, file: Path | None) -> Any:
    """Build the encoder that a trial of an evaluation reads, on the CPU.

    Args:
        trial: The trial.
        file: The file with the weights; None builds a control from the seed.

    Raises:
        InputError: The file is missing, damaged or another one than planned, or the control needs the images of
            pretraining.
    """
    from raysweep.models.building import build_encoder

    assert trial.source is not None
    encoder = build_encoder(trial.settings, trial.source.channels, trial.source.image_size)
    if file is not None:
        saved = load_encoder(file)
        if trial.source.digest not in ("", digest_of(saved.file.read_bytes())):
            raise InputError(f"{saved.file}: has changed since this evaluation was planned; start another evaluation")
        encoder.load_state_dict(saved.weights)
    elif hasattr(encoder, "fit"):
        raise InputError(
            f"{trial.control}: encoder {trial.settings.encoder} is fitted on the images of pretraining, which an "
            "evaluation does not read; add the control to the sweep"
        )
    return encoder


def to_safetensors(weights: dict[str, Tensor], description: dict[str, Any]) -> bytes:
    """Serialise weights as safetensors, with their description as text in the header."""
    import safetensors.torch

    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in description.items()}
    header = {
        "format": "pt",
        "made_by": f"raysweep {__version__}",
        **texts,
        "layers": f"{TRUNK} {EMBEDDING}",
        "input": "float32 (B, C, H, W) in [0, 1], not normalised",
    }
    # safetensors writes only contiguous tensors.
    file = safetensors.torch.save({name: weight.contiguous() for name, weight in weights.items()}, header)
    return with_sorted_header(bytes(file))


def with_sorted_header(file: bytes) -> bytes:
    """A safetensors file with the keys of its header in order, so that equal encoders give equal bytes.

    The library writes the texts of the header in random order. A file is the length of the header (8 bytes, little
    endian), the header (JSON, padded with spaces to a multiple of 8 bytes) and the weights.
    """
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.dumps(json.loads(file[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + file[end:]


@dataclass(frozen=True, eq=False)
class SavedEncoder:
    """A saved encoder and its description. The code that builds the encoder checks that the weights fit."""

    file: Path
    architecture: str
    channels: int
    image_size: int
    embedding_dim: int
    weights: dict[str, Tensor]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """The arguments of the encoder and its head."""


def encoder_file(path: Path) -> Path:
    """Return the file that holds the encoder: `path` itself, or the encoder file in a trial's directory.

    Older versions wrote `encoder.pt`.

    Raises:
        InputError: There is no such file.
    """
    if not path.exists():
        raise InputError(f"{path}: does not exist")
    if not path.is_dir():
        return path
    for name in (ENCODER, OLD_ENCODER):
        if (path / name).is_file():
            return path / name
    hint = f"give a trial's directory, its {ENCODER} or a training checkpoint"
    trial = min([*path.glob(f"*/{ENCODER}"), *path.glob(f"*/{OLD_ENCODER}")], default=None)
    checkpoint = max((path / "checkpoints").glob("*.pt"), default=None)
    if trial is not None:
        hint = f"give one of the trials in it, such as {trial.parent}"
    elif checkpoint is not None:
        hint = f"its trial has not finished; its newest training checkpoint is {checkpoint}"
    raise InputError(f"{path}: has no {ENCODER}; {hint}")


def load_encoder(path: Path) -> SavedEncoder:
    """Read an encoder from a trial's directory, an encoder file or a training checkpoint. Runs no code in the file.

    The memory used is proportional to the file's size.

    Returns:
        The description and the weights. The weights are plain dense tensors on the CPU.

    Raises:
        InputError: The file is missing, damaged or of another kind, or it describes an impossible encoder.
    """
    file = encoder_file(path)
    saved = load_safetensors(file) if file.suffix == ".safetensors" else load_plain(file)
    try:
        weights = weights_in(saved)
        check_weights(weights, file)
        arguments = saved.get("arguments", {})
        if not isinstance(arguments, dict) or not isinstance(arguments.get("head", ""), str):
            raise InputError(f"{file}: is damaged: its arguments are {shortened_value(repr(arguments))}")
        load_parts(file, saved.get("settings", saved))
        description = describe(saved, weights) if "state" in saved else saved
        architecture = description.get("architecture", "conv6")  # conv6 was the only one when older files were written
        channels, image_size, embedding_dim = (description[n] for n in ("channels", "image_size", "embedding_dim"))
    except (LookupError, TypeError, ValueError, AttributeError, StopIteration) as fault:
        if isinstance(fault, InputError):  # its message is more specific
            raise
        raise InputError(f"{file}: is not a checkpoint of raysweep: it holds no encoder") from None
    known = tuple(parts.encoder)
    if architecture not in known and not parts.encoder.is_in_family(architecture):
        raise InputError(
            f"{file}: unknown architecture {architecture!r}; valid: {', '.join(known)}; --plugin gives others"
        )
    sizes = {"image_size": image_size, "embedding_dim": embedding_dim}
    if (
        type(channels) is not int
        or channels not in (1, 3)
        or any(type(size) is not int or not 1 <= size < 2**16 for size in sizes.values())
    ):
        raise InputError(f"{file}: is damaged: it describes an encoder with channels {channels!r}, {sizes}")
    arguments = description.get("arguments", {})
    if not isinstance(arguments, dict):
        raise InputError(f"{file}: is damaged: its arguments are {arguments!r}")
    return SavedEncoder(file, architecture, channels, image_size, embedding_dim, dict(weights), arguments)


def load_parts(file: Path, description: Mapping[str, Any]) -> None:
    """Activate the plugins of the sweep in which `file` lies, if its encoder needs a part that is not in the tables.

    Args:
        file: A file of a trial, or a copy of it beside a copy of `sweep.yaml`.
        description: The description of the encoder, or the settings of its trial.
    """
    encoder = description.get("architecture", description.get("encoder"))
    head = dict(description.get("arguments", description)).get("head", "linear")
    dataset = description.get("dataset")  # only the settings of a trial have it; it can decide the size of the images
    has_dataset = not isinstance(dataset, str) or dataset.startswith(FOLDER) or dataset in parts.dataset
    if (not isinstance(encoder, str) or encoder in parts.encoder) and head in parts.head and has_dataset:
        return
    root = next((folder for folder in file.absolute().parents[:3] if (folder / "sweep.yaml").is_file()), None)
    if root is not None:
        activate(read_plugins(root, read(root / "sweep.yaml", LONGEST_WRITTEN), str(root)))


def load_safetensors(file: Path) -> dict[str, Any]:
    """Read a safetensors file: the weights as `encoder`, and the description; raises InputError if damaged."""
    import safetensors
    import safetensors.torch

    try:
        weights = safetensors.torch.load(read_regular(file))  # first, because to open a named pipe would block
        with safetensors.safe_open(file, "pt") as opened:
            header = dict(opened.metadata() or {})
    except (safetensors.SafetensorError, OSError, ValueError) as fault:
        raise InputError(f"{file}: is not a safetensors file, or is damaged: {fault}") from None
    description: dict[str, Any] = {"encoder": weights}
    for name in ("channels", "image_size", "embedding_dim", "arguments"):
        if name in header:
            try:
                description[name] = parse_json(header[name])
            except ValueError:
                raise InputError(f"{file}: is damaged: its {name} is {shortened_value(repr(header[name]))}") from None
    return {**description, **{name: header[name] for name in ("architecture",) if name in header}}


def weights_in(saved: Mapping[str, Any]) -> Any:
    """Return the encoder's weights from a training checkpoint or from an encoder file."""
    state = dict(saved.get("state", saved))
    if "method" not in state:
        return state["encoder"]
    prefix = "encoder."
    return {name.removeprefix(prefix): value for name, value in state["method"].items() if name.startswith(prefix)}


def check_weights(weights: Any, file: Path) -> None:
    """Raise InputError unless the weights are named plain tensors that are together no larger than their file."""
    import torch

    if not isinstance(weights, dict) or not all(isinstance(weight, torch.Tensor) for weight in weights.values()):
        raise InputError(f"{file}: is not a checkpoint of raysweep: its encoder is not a mapping of tensors")
    size = 0
    for name, weight in weights.items():
        kind = None
        if weight.is_nested:
            kind = "a nested tensor"
        elif weight.layout is not torch.strided:
            kind = f"a sparse tensor ({weight.layout})"
        elif weight.is_quantized:
            kind = "a quantised tensor"
        elif weight.device.type != "cpu":
            kind = f"a tensor without values (on the device {weight.device})"
        elif weight.is_complex() or weight.is_neg():
            kind = "a complex tensor, or a part of one"
        if kind is not None:
            raise InputError(f"{file}: its weight {name} is {kind}; save it as a plain tensor")
        size += weight.numel() * weight.element_size()
    if size > file.stat().st_size:
        raise InputError(
            f"{file}: its weights share memory ({size} bytes in a file of {file.stat().st_size}); save each by itself"
        )


def describe(saved: Mapping[str, Any], weights: dict[str, Tensor]) -> dict[str, Any]:
    """Derive an encoder's description from a training checkpoint and the encoder's weights in it."""
    settings = saved["settings"]
    experiment = Settings.model_construct(**{"encoder": "conv6", "head": "linear", **settings})
    if "images" in saved:
        channels, image_size = saved["images"]
    else:  # older versions did not record the images, so the first convolution must be the input's
        channels = next(weight.shape[1] for weight in weights.values() if weight.ndim == 4)
        image_size = settings["image_size"] or native_size(settings["dataset"])
    return {
        "architecture": experiment.encoder,
        "channels": channels,
        "image_size": image_size,
        "embedding_dim": settings["embedding_dim"],
        "arguments": {n: settings[n] for n in ("head", *network_parameters(experiment)) if n in settings},
    }
