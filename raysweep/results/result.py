"""The result of one trial: its type, its file, and the comparison of evaluation protocols."""

from __future__ import annotations

import errno
import re
import traceback
import warnings
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, StrictBool, TypeAdapter, ValidationError

from raysweep.config import (
    SETTINGS,
    Settings,
    about,
    default_of,
    fingerprint,
    has_effect,
    outside_range,
    protocol,
    with_present_names,
)
from raysweep.errors import InputError, masked, shortened_value
from raysweep.results.bucket import Bucket
from raysweep.space import Trial
from raysweep.system.files import check_held, read_json, set_aside, write_json

NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "Cannot allocate memory", "low on memory")
"""Phrases for exhausted memory in messages of PyTorch (on a CPU and on a GPU), the system and Ray."""
Count = Annotated[int, Field(strict=True, ge=0, lt=10**9)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
LONGEST_SECONDS = 100 * 365 * 86400.0
"""No trial runs longer than this: a hundred years."""
Seconds = Annotated[Number, Field(ge=0, le=LONGEST_SECONDS)]
Plain = Annotated[int, Field(strict=True, ge=-(2**64), le=2**64)] | Number | StrictBool | str | None
"""The type of a setting's value."""


def check_metrics(metrics: dict[str, float]) -> dict[str, float]:
    """Raise ValueError if a known metric has an impossible value."""
    fault = outside_range(metrics)
    if fault is not None:
        raise ValueError(fault)
    return metrics


FIRST_SETTINGS = ("usl_type", "usl_epochs", "seed", "dataset", "le_epochs")
"""Settings that the first version had, so that every record has them."""


class Damaged(InputError):
    """A file of a trial is damaged."""


@dataclass(frozen=True)
class Result:
    """How one trial ended. `read_result` validates the file against these annotations."""

    trial: str
    point: str
    status: Literal["finished", "failed", "stopped"]
    """`stopped` means that the trial was stopped early."""
    error: str | None
    """Why the trial failed or was stopped; None if it finished."""
    baseline: StrictBool
    varied: dict[str, Plain]
    settings: dict[str, Plain]
    metrics: Annotated[dict[str, Number], AfterValidator(check_metrics)]
    protocol: dict[str, Plain]
    fingerprint: str
    wall_s: Seconds
    """Run time in seconds, summed over all attempts. An attempt that broke off counts up to its last checkpoint.

    It is 0 if the trial failed and its process could not record this; `device` is then `unknown`.
    The time of a pretraining that the trial took over is in the result of the trial `pretrained_by`."""
    attempts: Count
    device: str
    warnings: list[str] = field(default_factory=list)
    linear_probe: str = ""
    """The linear probe that gives the score, as `ProbeSpec` writes it; empty if there was only one probe."""
    precision: str = ""
    """The precision at the end of pretraining, with `auto` resolved; empty if unknown."""
    pretrained_by: str = ""
    """The trial of the same sweep whose pretraining this trial took over; empty if it pretrained itself."""
    continues: str = ""
    """The shorter trial whose final state the trial continued; empty if it pretrained from the beginning.

    `wall_s` then includes the pretraining of the shorter trial.
    """
    continued_s: Seconds = 0.0
    """The seconds in `wall_s` that the shorter trial took to pretrain, which are in its `wall_s` too; 0 if unknown."""


RESULT = TypeAdapter(Result)


def make_result(
    trial: Trial,
    probe_digest: str,
    directory: Path,
    *,
    status: Literal["finished", "failed", "stopped"],
    error: str | None,
    metrics: dict[str, float],
    wall_s: float,
    device: str,
    warnings: list[str],
    linear_probe: str = "",
    precision: str = "",
    pretrained_by: str = "",
    continues: str = "",
    continued_s: float = 0.0,
) -> Result:
    """Build the result of a trial that ran in `directory`; `probe_digest` identifies the probe dataset."""
    assert (error is None) == (status == "finished")
    evaluated_under = protocol(trial.settings, probe_digest)
    return Result(
        trial=trial.name,
        point=trial.point,
        status=status,
        error=error,
        baseline=trial.baseline,
        varied=dict(trial.varied),
        settings=trial.settings.model_dump(),
        metrics=metrics,
        protocol=evaluated_under,
        fingerprint=fingerprint(evaluated_under),
        wall_s=wall_s,
        attempts=attempts(directory),
        device=device,
        warnings=warnings,
        linear_probe=linear_probe,
        precision=precision,
        pretrained_by=pretrained_by,
        continues=continues,
        continued_s=continued_s,
    )


def describe_error(fault: BaseException) -> str:
    """Describe an exception in one line without credentials; exhausted memory or disk space is named as such."""
    text = masked((str(fault).strip().splitlines() or [""])[0])
    if isinstance(fault, MemoryError) or any(words in str(fault) for words in NO_MEMORY):
        return f"out of memory: {text}" if text else "out of memory"
    if isinstance(fault, OSError) and fault.strerror is not None:
        what = "disk full" if fault.errno in (errno.ENOSPC, errno.EDQUOT) else type(fault).__name__
        return ": ".join([what, fault.strerror, *([str(fault.filename)] if fault.filename is not None else [])])
    return f"{type(fault).__name__}: {text}" if text else type(fault).__name__


def note_traceback(directory: Path) -> None:
    """Write the traceback of the exception being handled to the trial's `error.txt`."""
    with suppress(OSError):  # the disk may be full, and the exception itself is recorded elsewhere
        check_held(directory)
        (directory / "error.txt").write_text(masked(traceback.format_exc()), "utf-8", "backslashreplace")


def check_settings(recorded: dict[str, Any], expected: Settings, where: str) -> None:
    """Compare recorded settings with the sweep's settings.

    A setting that did not exist when the record was written counts as having its default value.

    Raises:
        Damaged: The recorded settings are not valid for any experiment, or settings are missing that every version has.
        InputError: The settings differ, for example because `sweep.yaml` was edited by hand.
    """
    missing = next((name for name in FIRST_SETTINGS if name not in recorded), None)
    if missing is not None:
        raise Damaged(f"{where}: is damaged: its settings lack {missing}; --resume runs the trial again")
    for name in SETTINGS:
        was, says = recorded.get(name, default_of(name)), getattr(expected, name)
        if about(name).changes_scores and was != says and not are_settings(recorded):
            raise Damaged(f"{where}: is damaged: its settings belong to no experiment")
        if about(name).changes_scores and was != says:
            if has_effect(name, expected) and not had_effect(name, recorded):
                raise InputError(
                    f"{where}: was run with {name}: {was!r}, which had no effect; with the new settings {name} has "
                    f"an effect, and the sweep has {says!r}; leave the new settings out of the sweep, and use them "
                    "with raysweep evaluate"
                )
            raise InputError(
                f"{where}: has {name}: {was!r}, but the sweep says {says!r}; start a new sweep for other settings"
            )


def complete_protocol(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Complete a result's protocol: settings that are newer than the result get their default values."""
    return {name: default_of(name) for name in SETTINGS if about(name).protocol} | dict(recorded)


def protocol_difference(
    one: Mapping[str, Any], other: Mapping[str, Any], ignored: Collection[str] = ()
) -> tuple[str, Any, Any] | None:
    """Return the first key outside `ignored` in which two protocols differ, and both values; None if they agree."""
    one, other = complete_protocol(one), complete_protocol(other)
    for key in dict.fromkeys([*one, *other]):
        if key not in ignored and one.get(key) != other.get(key):
            return key, one.get(key), other.get(key)
    return None


def brief(fault: ValueError) -> str:
    """Summarise a validation error in a few words: the first fault and its location."""
    if not isinstance(fault, ValidationError):
        return str(fault)
    first = fault.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"][:2]))  # deeper parts are names of a union's members, useless to users
    text = first["msg"].removeprefix("Value error, ")
    return f"{where}: {text}" if where else text


def are_settings(values: Mapping[str, Any]) -> bool:
    """Return whether the values are valid settings of an experiment. Unknown settings are ignored."""
    known = {name: values[name] for name in SETTINGS if name in values and about(name).changes_scores}
    try:
        settings = Settings.model_validate(known)
    except ValidationError:
        return False
    return all(getattr(settings, name) == value for name, value in known.items())


def had_effect(name: str, values: Mapping[str, Any]) -> bool:
    """Return whether a setting had an effect among recorded settings. Unknown settings are ignored."""
    try:
        return has_effect(name, Settings.model_validate({key: values[key] for key in SETTINGS if key in values}))
    except ValidationError:
        return True


def read_result(directory: Path, trial: str | None = None) -> Result | None:
    """Read a trial's `result.json`; None if there is none. Fields that older versions lacked get their defaults.

    Args:
        directory: The trial's directory.
        trial: The trial's name, if the result must belong to it.

    Raises:
        Damaged: The file is not a regular file or not JSON, or a value is missing, of another type, not finite or out
            of its range, or the protocol does not have the recorded fingerprint.
    """
    path = directory / "result.json"
    try:
        result = RESULT.validate_python(read_json(path))
        if (result.error is None) != (result.status == "finished"):
            raise ValueError(f"status is {result.status} and error {result.error!r}")
        if trial not in (None, result.trial):
            raise ValueError(f"it belongs to the trial {shortened_value(result.trial)}")
        if "probe_data" not in result.protocol or fingerprint(result.protocol) != result.fingerprint:
            raise ValueError("its protocol does not match its fingerprint")
    except FileNotFoundError:
        return None
    except ValueError as fault:
        raise Damaged(f"{path}: is damaged ({brief(fault)}); --resume puts it aside and runs the trial again") from None
    settings, evaluated_under = with_present_names(result.settings), with_present_names(result.protocol)
    return replace(result, settings=settings, protocol=evaluated_under)


def with_point_of(result: Result, trial: Trial, where: str) -> Result:
    """Return the result with the point of the trial as the sweep has it, in place of what the file says.

    Raises:
        Damaged, InputError: The settings are damaged or differ; see `check_settings`.
    """
    check_settings(result.settings, trial.settings, where)
    return replace(result, point=trial.point, baseline=trial.baseline, varied=dict(trial.varied))


def set_result_aside(
    directory: Path, trial: str, settings: Settings | None = None, bucket: Bucket | None = None
) -> None:
    """Rename a damaged `result.json` with a warning; an intact one is left alone.

    Args:
        directory: The trial's directory.
        trial: The trial's name.
        settings: The trial's settings, to compare with the recorded settings; None skips the comparison.
        bucket: The trial's directory in a bucket, if it has one. The file is renamed there too.

    Raises:
        InputError: The file is intact but has other settings.
    """
    path = directory / "result.json"
    try:
        result = read_result(directory, trial)
        if result is not None and settings is not None:
            check_settings(result.settings, settings, str(path))
    except Damaged:
        aside = set_aside(path)
        if bucket is not None and aside.is_file():
            bucket.write(aside.name, aside.read_bytes())
        if bucket is not None:
            bucket.remove(path.name)
        warnings.warn(f"{path} was damaged and is now {aside.name}; the trial runs again", stacklevel=3)


def write_result(directory: Path, result: Result) -> None:
    """Write the trial's result. Unless it failed, it is not run again. A damaged file at that path is set aside."""
    set_result_aside(directory, result.trial)
    write_json(directory / "result.json", asdict(result))


class Attempt(BaseModel):
    """The fields of `attempt.json` that are read back."""

    attempt: Count
    settings: dict[str, Plain]


def attempts(directory: Path) -> int:
    """Return how many attempts the trial had, from `attempt.json` or, if that is lost, from the event files."""
    attempt = read_attempt(directory)
    if attempt is not None:
        return attempt.attempt
    numbers = [path.name.split(".")[3] for path in directory.glob("events.out.tfevents.*.raysweep")]
    return max((int(number) for number in numbers if re.fullmatch(r"[0-9]{1,8}", number)), default=0)


def read_attempt(directory: Path) -> Attempt | None:
    """Read what `begin_attempt` wrote; None if there is no file, or with a warning if it is damaged."""
    path = directory / "attempt.json"
    try:
        attempt = Attempt.model_validate(read_json(path))
        return attempt.model_copy(update={"settings": with_present_names(attempt.settings)})
    except FileNotFoundError:
        return None
    except ValueError:
        warnings.warn(f"{path} is damaged; counting attempts by the event files", stacklevel=2)
        return None
