"""The files that describe a sweep as a whole: `sweep.yaml`, and `proposals.json` for a searcher's points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from raysweep.errors import InputError
from raysweep.results.result import Count, Plain, brief
from raysweep.space import Proposal, Sweep, mapping, propose, read, to_yaml
from raysweep.system.files import read_json, write_atomically

PROPOSALS = "proposals.json"
LONGEST_PROPOSALS = 2**27
"""Bytes of `proposals.json` that are read: enough for 100,000 points."""


class ProposedPoint(BaseModel):
    """One point in `proposals.json`."""

    space: Count
    values: dict[str, Plain]


class ProposedPoints(BaseModel):
    """The content of `proposals.json`."""

    points: list[ProposedPoint]


def write_sweep(root: Path, sweep: Sweep, records: dict[str, Any]) -> None:
    """Write `sweep.yaml`: the resolved sweep, and what made and changed it."""
    header = "# The resolved sweep; it can be given to run_sweep.py as a search space.\n"
    text = to_yaml({**sweep.to_dict(), **records})
    write_atomically(root / "sweep.yaml", (header + text).encode())


def history(root: Path) -> list[dict[str, Any]]:
    """What made the sweep, and what changed it since: as `create` and `extend` were given it."""
    path = root / "sweep.yaml"
    content = read(path)
    changes = content.get("changed_by") or []
    if not isinstance(changes, list):
        raise InputError(f"{path}: changed_by: a list expected, not {changes!r}")
    return [mapping(entry, f"{path}: made_by and changed_by") for entry in (content.get("made_by"), *changes)]


def recorded_datasets(root: Path) -> dict[str, str]:
    """The digests of the datasets that the sweep was made and changed with, by name; none before it is made."""
    if not (root / "sweep.yaml").exists():
        return {}
    where = f"{root / 'sweep.yaml'}: datasets"
    recorded = {name: digest for each in history(root) for name, digest in mapping(each.get("datasets"), where).items()}
    for name, digest in recorded.items():
        if not isinstance(digest, str):
            raise InputError(f"{where}: {name}: a digest expected (text), not {digest!r}")
    return recorded


def read_proposals(root: Path) -> list[Proposal]:
    """The points that a searcher has proposed, in their order; raises InputError if the file was damaged."""
    path = root / PROPOSALS
    try:
        content = ProposedPoints.model_validate(read_json(path, LONGEST_PROPOSALS))
    except FileNotFoundError:
        return []
    except ValueError as fault:
        raise InputError(
            f"{path}: is damaged ({brief(fault)}); the sweep cannot be resumed without its points: put the file back, "
            f"or start a new sweep"
        ) from None
    return [Proposal(point.space, point.values) for point in content.points]


def with_proposals(root: Path, sweep: Sweep) -> Sweep:
    """The sweep with the trials of the points that its searcher has proposed so far; without one, as it is.

    Raises:
        InputError: a point is none of the sweep's, as after `sweep.yaml` was changed by hand.
    """
    for number, point in enumerate(read_proposals(root) if sweep.tune.searcher != "none" else []):
        grown = propose(sweep, point)
        if grown is None:
            path = root / PROPOSALS
            raise InputError(f"{path}: point {number} is none of this sweep's: {point.values}; start a new sweep")
        sweep = grown
    return sweep
