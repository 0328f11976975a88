"""The result of one trial: its type, its file, and the comparison of protocols."""

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
    metrics_by_name,
    protocol,
    with_present_names,
)
from raysweep.errors import InputError, masked
from raysweep.results.bucket import Bucket
from raysweep.space import Trial
from raysweep.system.files import check_held, read_json, set_aside, write_json

ROUNDING = 1e-6
"""By which a score in single precision may miss its range."""
NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "Cannot allocate memory", "low on memory")
"""What PyTorch, on a CPU and on a GPU, the system and Ray say where memory ran out."""
Count = Annotated[int, Field(strict=True, ge=0, lt=10**9)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Plain = Annotated[int, Field(strict=True, ge=-(2**64), le=2**64)] | Number | StrictBool | str | None
"""A value of a setting."""


def check_metrics(metrics: dict[str, float]) -> dict[str, float]:
    """Raise ValueError if a known metric has a value that it cannot have."""
    known = metrics_by_name()
    for name in metrics.keys() & known.keys():
        if not known[name].lowest - ROUNDING <= metrics[name] <= known[name].highest + ROUNDING:
            raise ValueError(f"{name} is {metrics[name]}")
    return metrics


class Damaged(InputError):
    """A file of a trial is not what was once written."""


@dataclass(frozen=True)
class Result:
    """How one trial ended. The annotations are what `read_result` checks."""

    trial: str
    point: str
    status: Literal["finished", "failed", "stopped"]
    """`stopped` is early."""
    error: str | None
    """Why it failed or was stopped; None where it finished."""
    baseline: StrictBool
    varied: dict[str, Plain]
    settings: dict[str, Plain]
    metrics: Annotated[dict[str, Number], AfterValidator(check_metrics)]
    protocol: dict[str, Plain]
    fingerprint: str
    wall_s: Annotated[Number, Field(ge=0)]
    """Seconds spent on it, over all attempts, up to the last checkpoint of each that was cut off."""
    attempts: Count
    device: str
    warnings: list[str] = field(default_factory=list)
    linear_probe: str = ""
    """Which linear probe of a bank counted, as `Head` writes it; empty where there was only one."""
    precision: str = ""
    """In which it was pretrained, at last: what `auto` came to; empty where that is not known."""


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
) -> Result:
    """The result of a trial that ran in `directory` on the probe dataset with this digest."""
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
    )


def describe_error(fault: BaseException) -> str:
    """Why something broke off, in one line that says so where memory or space ran out, and shows no credentials."""
    text = masked((str(fault).strip().splitlines() or [""])[0])
    if isinstance(fault, MemoryError) or any(words in str(fault) for words in NO_MEMORY):
        return f"out of memory: {text}" if text else "out of memory"
    if isinstance(fault, OSError) and fault.strerror is not None:
        what = "disk full" if fault.errno in (errno.ENOSPC, errno.EDQUOT) else type(fault).__name__
        return ": ".join([what, fault.strerror, *([str(fault.filename)] if fault.filename is not None else [])])
    return f"{type(fault).__name__}: {text}" if text else type(fault).__name__


def note_traceback(directory: Path) -> None:
    """Write the traceback of the exception that is being handled to the trial's `error.txt`."""
    with suppress(OSError):  # the disk may be full, and the exception itself goes on to whoever records it
        check_held(directory)
        (directory / "error.txt").write_text(masked(traceback.format_exc()))


def check_settings(found: dict[str, Any], expected: Settings, where: str) -> None:
    """Compare recorded settings with the settings of the sweep.

    A setting that was not there yet when they were written counts as having its default.

    Raises:
        Damaged: they are no settings of any experiment.
        InputError: they are others, as after `sweep.yaml` was changed by hand.
    """
    for name in SETTINGS:
        was, says = found.get(name, default_of(name)), getattr(expected, name)
        if about(name).search and was != says and not are_settings(found):
            raise Damaged(f"{where}: is damaged: its settings belong to no experiment")
        if about(name).search and was != says:
            raise InputError(
                f"{where}: was made with {name}: {was!r}, but the sweep says {says!r}; start a new sweep for other "
                f"settings"
            )


def complete_protocol(found: Mapping[str, Any]) -> dict[str, Any]:
    """A result's protocol, in which a setting that was not there yet when it was made has its default."""
    return {name: default_of(name) for name in SETTINGS if about(name).protocol} | dict(found)


def protocol_difference(
    one: Mapping[str, Any], other: Mapping[str, Any], aside: Collection[str] = ()
) -> tuple[str, Any, Any] | None:
    """The first key, but those `aside`, in which two protocols differ, and both values; None where they agree."""
    one, other = complete_protocol(one), complete_protocol(other)
    for key in dict.fromkeys([*one, *other]):
        if key not in aside and one.get(key) != other.get(key):
            return key, one.get(key), other.get(key)
    return None


def brief(fault: ValueError) -> str:
    """What a check found, in a few words: the first fault and where it is."""
    if not isinstance(fault, ValidationError):
        return str(fault)
    first = fault.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"][:2]))  # a union adds its members' names, which say nothing to users
    text = first["msg"].removeprefix("Value error, ")
    return f"{where}: {text}" if where else text


def are_settings(found: Mapping[str, Any]) -> bool:
    """Whether a mapping holds settings as an experiment has them. Those that this version lacks may be anything."""
    known = {name: found[name] for name in SETTINGS if name in found and about(name).search}
    try:
        settings = Settings.model_validate(known)
    except ValidationError:
        return False
    return all(getattr(settings, name) == value for name, value in known.items())


def read_result(directory: Path, trial: str | None = None) -> Result | None:
    """The `result.json` of a trial's directory, None if there is none; what older versions left out has its default.

    Args:
        directory: the trial's.
        trial: its name, where the result must be of this one.

    Raises:
        Damaged: it is something else than a file, not JSON, or a value is missing, of another type, not finite or out
            of its range.
    """
    path = directory / "result.json"
    try:
        result = RESULT.validate_python(read_json(path))
        if (result.error is None) != (result.status == "finished"):
            raise ValueError(f"status is {result.status} and error {result.error!r}")
        if trial not in (None, result.trial):
            raise ValueError(f"it is of the trial {result.trial}")
    except FileNotFoundError:
        return None
    except ValueError as fault:
        raise Damaged(f"{path}: is damaged ({brief(fault)}); --resume puts it aside and runs the trial again") from None
    settings, evaluated_under = with_present_names(result.settings), with_present_names(result.protocol)
    return replace(result, settings=settings, protocol=evaluated_under)


def set_result_aside(
    directory: Path, trial: str, settings: Settings | None = None, bucket: Bucket | None = None
) -> None:
    """Rename a damaged `result.json` with a warning; a sound one stays.

    Args:
        directory: the trial's.
        trial: its name.
        settings: the settings of the trial, with which the recorded settings are compared; None: no comparison.
        bucket: the trial's directory in a bucket, if it has one; the file is renamed there too.

    Raises:
        InputError: the file is sound, but of other settings.
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
    """Write how the trial ended. From here on it is not run again. A damaged file that lies there is set aside."""
    set_result_aside(directory, result.trial)
    write_json(directory / "result.json", asdict(result))


class Attempt(BaseModel):
    """What is read of `attempt.json`."""

    attempt: Count
    settings: dict[str, Plain]


def attempts(directory: Path) -> int:
    """The number of attempts of the trial, from `attempt.json`, or from the event files if that is lost."""
    begun = read_attempt(directory)
    if begun is not None:
        return begun.attempt
    numbers = [path.name.split(".")[3] for path in directory.glob("events.out.tfevents.*.raysweep")]
    return max((int(number) for number in numbers if re.fullmatch(r"[0-9]{1,8}", number)), default=0)


def read_attempt(directory: Path) -> Attempt | None:
    """What `begin_attempt` wrote; None if there is nothing or, with a warning, if the file is damaged."""
    path = directory / "attempt.json"
    try:
        attempt = Attempt.model_validate(read_json(path))
        return attempt.model_copy(update={"settings": with_present_names(attempt.settings)})
    except FileNotFoundError:
        return None
    except ValueError:
        warnings.warn(f"{path} is damaged; counting attempts by the event files", stacklevel=2)
        return None
