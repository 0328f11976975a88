"""Reading and writing the files that describe a whole sweep: `sweep.yaml`, and `proposals.json` of a searcher."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from raysweep.config import NEWEST_VERSION, PROTOCOL_VERSION, version_of
from raysweep.errors import InputError, shortened_value
from raysweep.plugins import Plugin, active, find, known_by_value, with_recorded_source
from raysweep.results.result import Count, Plain, brief
from raysweep.space import LONGEST_WRITTEN, Proposal, Round, Sweep, add_round, mapping, propose, read, to_yaml
from raysweep.space.race_settings import RaceEnd
from raysweep.system.files import irregular, is_occupied, read_json, write_atomically, write_json

PLUGINS = "plugins"
"""The folder of a results directory with the text of every plugin."""
PROPOSALS = "proposals.json"
RACE = "race.json"
"""The rounds of a race of seeds."""
LONGEST_PROPOSALS = 2**27
"""Size limit for reading `proposals.json`, in bytes: enough for 100,000 points."""


class ProposedPoint(BaseModel):
    """One point in `proposals.json`."""

    space: Count
    values: dict[str, Plain]


class RecordedRound(BaseModel):
    """One round in `race.json`."""

    seeds: Count
    points: list[str]


class RecordedRace(BaseModel):
    """The content of `race.json`."""

    rounds: list[RecordedRound]
    end: RaceEnd


class ProposedPoints(BaseModel):
    """The content of `proposals.json`."""

    points: list[ProposedPoint]


def write_sweep(root: Path, sweep: Sweep, records: dict[str, Any]) -> None:
    """Write `sweep.yaml`: the resolved sweep, and the record of how it was made and changed.

    The text of the plugins is written first, into the folder `plugins`. `sweep.yaml` has their hashes.
    """
    content = {**sweep.to_dict(), **records}
    files = [plugin for plugin in sweep.plugins if plugin.part is None]
    for plugin in files:
        (root / PLUGINS).mkdir(exist_ok=True)
        write_atomically(root / PLUGINS / plugin.name, plugin.text.encode())
    if files:
        content[PLUGINS] = [
            {"file": f"{PLUGINS}/{plugin.name}", "sha256": plugin.digest, "from": plugin.origin} for plugin in files
        ]
    values = [plugin for plugin in sweep.plugins if plugin.part is not None]
    if values:
        content["parts"] = [{"part": plugin.name, "sha256": plugin.digest, "source": plugin.text} for plugin in values]
    header = "# The resolved sweep; it can be given to run_sweep.py as a search space.\n"
    write_atomically(root / "sweep.yaml", (header + to_yaml(content)).encode())


def read_plugins(
    root: Path, content: Mapping[str, Any], place: str, given: Iterable[Plugin] = (), only_read: bool = False
) -> tuple[Plugin, ...]:
    """Return the plugins of the sweep in `root`, whose `sweep.yaml` has this content, from their stored text.

    Args:
        root: The results directory.
        content: What `sweep.yaml` has.
        place: The place of the sweep, for messages.
        given: The parts that the caller passes by value. Parts that this process has declared are known too.
        only_read: Whether no trial will run. Then the functions that a part by value uses may have changed.

    Raises:
        InputError: A stored text is missing or was changed, or a part that was passed by value is not given again.
    """
    plugins = find(content.get(PLUGINS) or (), root, f"{place}/sweep.yaml: {PLUGINS}")
    recorded = content.get("parts") or []
    if not isinstance(recorded, list) or not all(isinstance(entry, Mapping) for entry in recorded):
        raise InputError(f"{place}/sweep.yaml: parts: a list of parts expected, not {recorded!r}")
    given = (*given, *active())
    for entry in recorded:
        stored = Plugin(str(entry.get("part")), str(entry.get("source")))
        known = known_by_value(stored.name, given)
        if not known:
            raise InputError(
                f"{place}: the sweep was started in Python with a part that no file has, {stored.name}; open it in "
                f"Python after the declaration of this part, or give the part, as parts=[{stored.name.split()[-1]}]"
            )
        if only_read:
            known += [plugin for plugin in given if plugin.name == stored.name]
        plugins += (with_recorded_source(stored, known, only_read),)
    return plugins


def explanation(place: Path | str, file: Path) -> str:
    """Return why there is no sweep at a place, and name a sweep in this directory, if there is one.

    Args:
        place: The place that the user named.
        file: The missing file of the sweep.

    Example:
        If the user names `runs`, the text is `(no sweep.yaml); give one of the sweeps in it, such as runs/alpha`.
    """
    why = f"its sweep.yaml is {irregular(file)}" if is_occupied(file) else "no sweep.yaml"
    names = sorted(path.parent.name for path in Path(place).glob("*/sweep.yaml"))
    return f"({why})" + (f"; give one of the sweeps in it, such as {Path(place, names[0])}" if names else "")


def history(root: Path) -> list[dict[str, Any]]:
    """Return the records of how the sweep was made and changed, as they were passed to `create` and `extend`."""
    path = root / "sweep.yaml"
    return records_in(read(path, LONGEST_WRITTEN), str(path))


def read_sweep(path: Path) -> dict[str, Any]:
    """Return the content of a `sweep.yaml`; raises InputError if it is no mapping or its records are damaged."""
    content = read(path, LONGEST_WRITTEN)
    records_in(content, str(path))
    return content


def records_in(content: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Return the records in the content of a `sweep.yaml`; see `history`.

    Raises:
        InputError: A record is damaged. Older versions wrote fewer entries, so each entry may be missing.
    """
    changes = content.get("changed_by") or []
    if not isinstance(changes, list):
        raise InputError(f"{where}: changed_by: expected a list, not {shortened_value(repr(changes))}")
    records = [mapping(entry, f"{where}: made_by and changed_by") for entry in (content.get("made_by"), *changes)]
    for record in records:
        for name in ("versions", "datasets"):
            mapping(record.get(name), f"{where}: made_by and changed_by: {name}")
        version, command = record.get("protocol", 1), record.get("command") or ""
        if type(version) is not int:
            raise InputError(
                f"{where}: made_by: protocol: expected a whole number, not {shortened_value(repr(version))}"
            )
        if not isinstance(command, str):
            raise InputError(
                f"{where}: made_by and changed_by: command: expected text, not {shortened_value(repr(command))}"
            )
    return records


def check_version(sweep: Sweep, root: Path, place: str) -> None:
    """Raise InputError if the sweep at `place`, with the files in `root`, was started with another protocol version.

    An older version is no fault if none of the sweep's scores differ from it.
    """
    begun = history(root)[0].get("protocol", 1)  # older versions did not record it
    needed = max((version_of(trial.settings) for trial in sweep.trials), default=PROTOCOL_VERSION)
    if not needed <= begun <= NEWEST_VERSION:
        which = "an older" if 1 <= begun < needed else "another"
        raise InputError(
            f"{place}: the sweep was started with {which} version of raysweep, "
            f"whose numbers differ (protocol {begun}, now {needed}); finish it with that version, or start a "
            f"new sweep"
        )


def recorded_datasets(root: Path) -> dict[str, str]:
    """Return the digests, by name, of the datasets recorded in the sweep; empty before the sweep is created."""
    if not (root / "sweep.yaml").exists():
        return {}
    where = f"{root / 'sweep.yaml'}: datasets"
    recorded = {name: digest for each in history(root) for name, digest in mapping(each.get("datasets"), where).items()}
    for name, digest in recorded.items():
        if not isinstance(digest, str):
            raise InputError(f"{where}: {name}: expected a digest (text), not {digest!r}")
    return recorded


def read_proposals(root: Path) -> list[Proposal]:
    """Read the points that a searcher has proposed, in order; raises InputError if the file is damaged."""
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
    """Add the trials of the points that the searcher has proposed so far, or of the rounds of a race of seeds.

    A sweep without a searcher and without a race is returned as it is.

    Raises:
        InputError: A point does not belong to the sweep, for example because `sweep.yaml` was edited by hand.
    """
    for number, point in enumerate(read_proposals(root) if sweep.tune.searcher != "none" else []):
        grown = propose(sweep, point, strict=False)
        if grown is None:
            path = root / PROPOSALS
            raise InputError(f"{path}: point {number} does not belong to this sweep: {point.values}; start a new sweep")
        sweep = grown
    return with_rounds(root, sweep) if sweep.race is not None and not sweep.encoders else sweep


def with_rounds(root: Path, sweep: Sweep) -> Sweep:
    """Add the recorded rounds of a race, and why it ended; raises InputError if the record is damaged."""
    path = root / RACE
    try:
        recorded = RecordedRace.model_validate(read_json(path, LONGEST_PROPOSALS))
    except FileNotFoundError:
        return sweep
    except ValueError as fault:
        raise InputError(
            f"{path}: is damaged ({brief(fault)}); the race cannot be resumed without its rounds: put the file back, "
            f"or start a new sweep"
        ) from None
    for each in recorded.rounds:
        sweep = add_round(sweep, Round(each.seeds, tuple(each.points)), str(path))
    return replace(sweep, race_end=recorded.end)


def write_race(root: Path, sweep: Sweep) -> None:
    """Write the rounds of a race and why it ended. Call this before any trial of a new round runs."""
    write_json(root / RACE, {"rounds": [asdict(each) for each in sweep.rounds], "end": sweep.race_end})
