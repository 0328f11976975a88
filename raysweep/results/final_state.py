"""The final training state of a trial (`keep: final_state`), from which a longer trial continues.

DIR/NAME/TRIAL/final_state.pt     the state after the last step of pretraining, and the TensorBoard events so far
DIR/NAME/TRIAL/final_state.json   its hash, and what it belongs to; written last
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from raysweep.config import PROTOCOL_VERSION, Collapse, Settings, make_settings, with_present_names
from raysweep.config.prefix import is_prefix
from raysweep.errors import InputError
from raysweep.plugins import active
from raysweep.results.checkpoints import digest_of, to_bytes
from raysweep.results.handout import TAKEN, Taken
from raysweep.results.mirror import Mirror
from raysweep.results.result import Plain
from raysweep.results.store import Store
from raysweep.space import Trial
from raysweep.system.files import check_held, discard, read_json, read_regular, write_atomically, write_json

FINAL_STATE, MANIFEST = "final_state.pt", "final_state.json"


class Manifest(BaseModel):
    """The content of `final_state.json`."""

    sha256: str
    """The hash of `final_state.pt`."""
    protocol: int
    """The version of the numbers that raysweep computes; see `PROTOCOL_VERSION`."""
    settings: dict[str, Plain]
    """The settings of the trial."""
    data: str
    """The digest of the dataset of pretraining."""
    plugins: list[str]
    """The hashes of the plugins."""
    collapse: list[float] | None
    """When an embedding counted as collapsed; None: never."""


def keep_final_state(
    directory: Path, content: Mapping[str, Any], metrics: Mapping[str, float], data: str, collapse: Collapse | None
) -> None:
    """Keep the state of a trial at the end of its last epoch, before anything that only a last epoch has.

    Args:
        directory: The trial's directory.
        content: The content of a checkpoint.
        metrics: The metrics of the last epoch, which are not written yet. A longer trial writes and measures them.
        data: The digest of the dataset of pretraining.
        collapse: When an embedding counts as collapsed; None: never.
    """
    import torch

    from raysweep.results.event_records import records_of  # TensorBoard takes half a second to import

    check_held(directory)
    # The records are kept as a tensor, because a file with only tensors and plain values runs no code.
    records = bytearray(records_of(directory))
    written = torch.frombuffer(records, dtype=torch.uint8) if records else torch.empty(0, dtype=torch.uint8)
    saved = to_bytes({**content, "last": dict(metrics), "events": written})
    manifest = Manifest(
        sha256=digest_of(saved),
        protocol=PROTOCOL_VERSION,
        settings=content["settings"],
        data=data,
        plugins=sorted(plugin.digest for plugin in active()),
        collapse=numbers_of(collapse),
    )
    discard(directory / MANIFEST)  # an earlier attempt may have written both files
    write_atomically(directory / FINAL_STATE, saved)
    write_json(directory / MANIFEST, manifest.model_dump())


def numbers_of(collapse: Collapse | None) -> list[float] | None:
    """Return the condition of a collapse as numbers; None for none."""
    return None if collapse is None else [float(value) for value in vars(collapse).values()]


def read_manifest(directory: Path) -> Manifest | None:
    """Return the manifest of the final state that a trial has kept; None if there is none.

    Raises:
        ValueError: The file is damaged.
    """
    try:
        return Manifest.model_validate(read_json(directory / MANIFEST))
    except FileNotFoundError:
        return None


def misfit(manifest: Manifest, settings: Settings) -> str | None:
    """Return why a trial with these settings cannot continue from a final state, in words; None if it can."""
    if manifest.protocol != PROTOCOL_VERSION:
        return "was kept by another version of raysweep, whose numbers differ"
    if not set(manifest.plugins) <= {plugin.digest for plugin in active()}:
        return "was kept with other plugins"
    try:
        shorter = make_settings(with_present_names(dict(manifest.settings)), "final state")
    except InputError:
        return "belongs to no experiment"
    if not is_prefix(shorter, settings):
        return "belongs to a pretraining that differs in more than usl_epochs"
    return None


def final_state_of(store: Store, trial: Trial) -> Path | None:
    """Return the directory with the final state from which a trial continues; None if it starts from the beginning.

    From a bucket the files are first copied to this machine. A missing file is noticed by `continued_state`.

    Raises:
        OSError: The bucket does not answer.
    """
    if not trial.continues:
        return None
    directory = store.trial(trial.continues)
    if store.bucket is not None:
        Mirror(store.bucket / trial.continues, directory).pull(lambda name: name in (FINAL_STATE, MANIFEST))
    return directory


def continued_state(directory: Path | None, trial: Trial, data: str, precision: str) -> Taken | None:
    """Return the final state of a shorter trial, from which a trial continues.

    Args:
        directory: The directory of the shorter trial; None if there is none.
        trial: The longer trial.
        data: The digest of its dataset of pretraining.
        precision: The precision in which it pretrains, `fp32` or `bf16`.

    Returns:
        The state; None if the trial starts from the beginning, with a warning if it should have continued.
    """
    import torch

    if directory is None:
        return None
    why: str | None = "is missing"
    try:
        manifest = read_manifest(directory)
        content = read_regular(directory / FINAL_STATE)
    except FileNotFoundError:
        manifest = None
    except ValueError:
        manifest, why = None, "is damaged"
    if manifest is not None:
        why = "is damaged" if digest_of(content) != manifest.sha256 else None
        why = why or misfit(manifest, trial.settings)
        why = why or ("was kept with other images or labels" if manifest.data != data else None)
    saved: dict[str, Any] = {}
    if why is None:
        saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        was = saved["precision"]
        why = None if was == precision else f"was computed in {was}, but this machine computes in {precision}"
    if why is not None:
        warnings.warn(
            f"the final state of {directory.name} {why}; the trial pretrained from the beginning", stacklevel=2
        )
        return None
    kept = {name: saved[name] for name in TAKEN if name != "trial"}
    records = saved["events"].numpy().tobytes()
    return Taken(trial=directory.name, **kept, metrics=saved["metrics"], records=records, wall_s=saved["wall_s"])
