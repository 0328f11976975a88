"""Checks of the parameters that the user's own parts declare: their names, their types and their defaults."""

from __future__ import annotations

import types
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import create_model, field_validator

from raysweep import parts
from raysweep.config.part_settings import field_of_parameter, make_field
from raysweep.config.settings import SETTINGS, Settings
from raysweep.config.validation import check_model, check_type
from raysweep.config.values import shown, suggest
from raysweep.errors import InputError
from raysweep.parts import Parameter, Part

OPTIONS = frozenset((
    "address", "checkpoint", "datasets", "dry_run", "estimate", "exp_type", "function", "given", "help", "images",
    "layer", "local", "name", "no_share", "open", "output", "place", "plugin", "resume", "set", "space", "sweeps",
    "verbose", "version",
))  # fmt: skip
"""The names of the arguments of all commands that are no settings. A test compares them with the parsers."""
COLUMNS = frozenset((
    "attempts", "control", "device", "error", "fingerprint", "linear_probe", "n", "point", "status", "sweep", "trial",
    "wall_s",
))  # fmt: skip
"""The columns of the tables that are neither settings nor metrics."""
OTHERS = frozenset(("baseline", "probe_bank"))
"""An entry of a search space that `--set` overrides by its name alone, and the old name of a setting."""
FIGURES = frozenset(("comparison", "importance", "layers", "parallel_coordinates"))
"""The names of figures that show several settings. The figure of a searched setting has the name of this setting."""
TYPES: dict[Any, str] = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}
"""The types of parameters, and what their values are in words."""


def check_parameter(parameter: Parameter) -> None:
    """Raise InputError if a parameter cannot be a setting, or has a wrong default; messages begin with its name."""
    name, kind = parameter.name, get_args(parameter.annotation)[0]
    if name in OPTIONS | COLUMNS | OTHERS or name.startswith("_") or (name not in SETTINGS and hasattr(Settings, name)):
        raise InputError(f"{name}: raysweep uses this name for something else; give the parameter another name")
    members = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    plain = [member for member in members if member is not type(None)]
    if len(plain) != 1 or not is_type(plain[0]):
        raise InputError(
            f"{name}: the type must be int, float, bool, str, or Literal with texts; it may also allow None, as in "
            "int | None"
        )
    if parameter.chooses is not None and parameter.chooses not in parts.TABLES:
        raise InputError(f"{name}: there is no kind {parameter.chooses!r} of parts; valid: {', '.join(parts.TABLES)}")
    if (parameter.chooses is not None or parameter.is_layer) and kind is not str:
        raise InputError(f"{name}: names a part or a layer, so its type must be str")
    check_default(parameter, plain[0], len(members) > 1)


def is_type(kind: Any) -> bool:
    """Return whether parameters may have a type, apart from None."""
    if get_origin(kind) is Literal:
        return all(isinstance(value, str) for value in get_args(kind))
    return isinstance(kind, type) and kind in TYPES


def check_default(parameter: Parameter, kind: Any, optional: bool) -> None:
    """Raise InputError if a parameter cannot have its default as value; see `check_parameter`."""
    name, default = parameter.name, parameter.default
    # Pydantic also takes 1.0 for a whole number, or a tensor for a number, but does not change a default.
    exact = (int, float) if kind is float else (kind,) if kind in TYPES else (str,)
    if type(default) not in exact and not (optional and default is None):
        words = TYPES.get(kind, "one of the texts") + (" or None" if optional else "")
        raise InputError(f"{name}: the default must be {words}, not {shown(default)}")
    declared, *marks = get_args(parameter.annotation)
    try:
        model = create_model(
            "Declared",
            __config__=Settings.model_config,
            __validators__={"check_types": field_validator("*", mode="before")(check_type)},
            default=(declared, make_field(declared, marks, default)),
        )
        check_model(model, {"default": default}, name)
    except InputError:
        raise
    except Exception as fault:  # pydantic raises all kinds of exceptions, for example for the range Field(gt="a")
        raise InputError(f"{name}: its type and its range do not fit together ({type(fault).__name__})") from None


def check_choices(part: Part) -> None:
    """Raise InputError if the default of a parameter names a part or a layer that does not exist."""
    for parameter in part.parameters.values():
        if parameter.chooses is not None or parameter.is_layer:
            valid = get_args(field_of_parameter(parameter).annotation)
            if parameter.default not in valid:
                raise InputError(
                    f"{part.kind} {part.name}: {parameter.name}: unknown default {parameter.default!r}"
                    f"{suggest(parameter.default, valid)}"
                )
