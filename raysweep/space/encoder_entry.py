"""The entry `encoders` in the `sweep.yaml` of an evaluation: which trained encoders it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysweep.space.model import Trial


@dataclass(frozen=True)
class EncoderSource:
    """The encoder that a trial of an evaluation reads, instead of pretraining one."""

    file: str
    """The encoder's file, relative to the results directory; empty for a control that is built from its seed."""
    channels: int
    """The number of channels of its images."""
    image_size: int
    """The side of its images in pixels."""
    digest: str = ""
    """The SHA-256 digest of the file when the evaluation was planned; empty for a control that is built."""
    labels_of: str = ""
    """The digest of the dataset whose labels trained the encoder; empty if there is none, or if it is unknown."""
    leaves_out: bool = False
    """Whether this training left out the labels of the images that validated the encoder in its sweep."""


@dataclass(frozen=True)
class Agreement:
    """How well a measure without labels ranked points by a score of labelled images: Kendall's τ over seeds."""

    measure: str
    score: str
    dataset: str
    """The labelled dataset."""
    points: int
    """The number of points that were ranked."""
    seeds: int
    """The number of seeds that have a τ."""
    tau: float
    """The mean over seeds, in [-1, 1]."""
    low: float | None
    high: float | None
    """`low` and `high` are the bounds of the interval over seeds; None for one seed."""
    divisor: int = 1
    """The number by which the error of the interval is divided; 1 unless the seeds of the sweep are a race."""
    unfinished: int = 0
    """The number of the sweep's trials that had not ended."""


def written_encoders(
    encoders: Sequence[Trial],
    search: Sequence[Mapping[str, Mapping[str, Any]]],
    agreement: Agreement | str | None,
    missing: Sequence[Trial] = (),
) -> dict[str, Any]:
    """Return the trials whose encoders are evaluated as plain data: their common settings, and what differs.

    Args:
        encoders: The trials, each with its source.
        search: The search of the sweep that trained them. It is kept, so that reports know which values were drawn.
        agreement: See `Sweep.agreement`.
        missing: The trials without an encoder.
    """
    dumped = [trial.settings.model_dump() for trial in encoders]
    common = {name: value for name, value in dumped[0].items() if all(other[name] == value for other in dumped)}
    entries = []
    for trial, settings in zip(encoders, dumped, strict=True):
        assert trial.source is not None
        entry = {"trial": trial.name, "control": trial.control, "varied": list(trial.varied)}
        differing = {name: value for name, value in settings.items() if name not in common}
        entries.append({**entry, "settings": differing, **asdict(trial.source)})
    spaces = [{name: dict(spec) for name, spec in space.items()} for space in search]
    written = asdict(agreement) if isinstance(agreement, Agreement) else agreement
    ranking = {} if written is None else {"agreement": written}
    lacking = {"missing": written_missing(missing, common)} if missing else {}
    return {"settings": common, **({"search": spaces} if spaces else {}), **ranking, **lacking, "trials": entries}


def written_missing(missing: Sequence[Trial], common: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return trials without an encoder as plain data: for each point its seeds, and what differs from `common`."""
    entries: list[dict[str, Any]] = []
    for trial in missing:
        values = trial.settings.model_dump().items()
        differing = {n: v for n, v in values if n != "seed" and (n not in common or common[n] != v)}
        point = {"varied": list(trial.varied), "settings": differing}
        if not entries or {name: entries[-1][name] for name in point} != point:
            entries.append({**point, "seeds": []})
        entries[-1]["seeds"].append(trial.settings.seed)
    return entries
