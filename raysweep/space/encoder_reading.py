"""Reading the entry `encoders` in the `sweep.yaml` of an evaluation; `raysweep.space.encoder_entry` writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from pydantic import TypeAdapter, ValidationError

from raysweep.config import SETTINGS, make_settings, with_present_names
from raysweep.errors import InputError
from raysweep.space.encoder_entry import Agreement, EncoderSource
from raysweep.space.expansion import point_name, trial_name
from raysweep.space.model import FrozenDict, Trial
from raysweep.space.reading import mapping


def read_trained_search(value: Any, where: str) -> tuple[Mapping[str, Mapping[str, Any]], ...]:
    """Return the search of the sweep that trained the encoders; evaluations of older versions have none.

    Raises:
        InputError: The entry is damaged.
    """
    if not isinstance(value, list):
        raise InputError(f"{where}: expected a list, not {value!r}")
    spaces = [mapping(space, where) for space in value]
    if not all(isinstance(spec, Mapping) and spec for space in spaces for spec in space.values()):
        raise InputError(f"{where}: expected distributions, not {value!r}")
    return tuple(spaces)


def read_agreement(value: Any, where: str) -> Agreement | str | None:
    """Return the agreement that `written_encoders` wrote, or why there is none; see `Sweep.agreement`.

    Raises:
        InputError: The entry is damaged.
    """
    try:
        return TypeAdapter(Agreement | str | None).validate_python(value)
    except ValidationError:
        raise InputError(f"{where}: is damaged: {value!r}") from None


def read_encoders(value: Any, where: str) -> list[Trial]:
    """Return the trials that `written_encoders` wrote.

    Raises:
        InputError: The entry is damaged.
    """
    content = mapping(value, where)
    common, entries = mapping(content.get("settings"), f"{where}: settings"), content.get("trials")
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{where}: trials: expected a list of trials, not {entries!r}")
    trials = []
    for entry in entries:
        entry = mapping(entry, f"{where}: trials")
        differing = mapping(entry.get("settings"), f"{where}: settings")
        settings = make_settings(with_present_names({**common, **differing}), where)
        names, file = entry.get("varied"), entry.get("file")
        channels, image_size = entry.get("channels"), entry.get("image_size")
        if not is_list_of_settings(names):
            raise InputError(f"{where}: varied: expected a list of settings, not {names!r}")
        sizes_fit = all(type(size) is int and size > 0 for size in (channels, image_size))
        digest, labels_of = entry.get("digest", ""), entry.get("labels_of", "")  # older evaluations have none
        if not all(isinstance(each, str) for each in (file, digest, labels_of)) or not sizes_fit:
            raise InputError(f"{where}: expected a file, channels, image_size and digest, not {entry!r}")
        name, control = str(entry.get("trial")), str(entry.get("control") or "")
        varied = FrozenDict({each: getattr(settings, each) for each in names})
        leaves_out = bool(entry.get("leaves_out", settings.evaluated_dataset == settings.dataset))
        source = EncoderSource(str(file), int(channels or 0), int(image_size or 0), digest, labels_of, leaves_out)
        trials.append(Trial(name, name, settings, varied, control, source))
    return trials


def read_missing(content: Mapping[str, Any], where: str) -> list[Trial]:
    """Return the trials without an encoder that `written_encoders` wrote; evaluations of older versions have none.

    Args:
        content: The entry `encoders`.
        where: The start of every message.

    Raises:
        InputError: The entry is damaged.
    """
    common, entries = mapping(content.get("settings"), f"{where}: settings"), content.get("missing", [])
    if not isinstance(entries, list):
        raise InputError(f"{where}: missing: expected a list of points, not {entries!r}")
    trials = []
    for entry in entries:
        entry = mapping(entry, f"{where}: missing")
        differing = mapping(entry.get("settings"), f"{where}: missing: settings")
        names, seeds = entry.get("varied"), entry.get("seeds")
        if not is_list_of_settings(names):
            raise InputError(f"{where}: missing: varied: expected a list of settings, not {names!r}")
        if not isinstance(seeds, list) or not seeds:
            raise InputError(f"{where}: missing: seeds: expected a list of seeds, not {seeds!r}")
        for seed in seeds:
            values = with_present_names({**common, **differing, "seed": seed})
            settings = make_settings(values, f"{where}: missing")
            varied = FrozenDict({name: getattr(settings, name) for name in names})
            trials.append(Trial(trial_name(varied), point_name(varied), settings, varied))
    return trials


def is_list_of_settings(names: Any) -> TypeGuard[list[str]]:
    """Return whether a value is a list of names of settings."""
    return isinstance(names, list) and all(name in SETTINGS for name in names)
