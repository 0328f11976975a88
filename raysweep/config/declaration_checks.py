"""Checks of what the user's own parts declare: their arguments, parameters, traits and metrics."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from typing import Any

from raysweep.config.metrics import metrics_by_name
from raysweep.config.parameters import check_parameter
from raysweep.config.settings import Settings
from raysweep.config.values import shown, suggest
from raysweep.errors import InputError
from raysweep.parts import Metric, Part

POSITIONAL: Mapping[str, tuple[str, ...]] = {
    "encoder": ("channels", "image_size"),
    "head": ("feature_dim", "embedding_dim"),
    "policy": ("images", "strength", "generator", "part"),
    "loss": ("z1", "z2"),
    "method": ("encoder",),
    "optimizer": ("weights", "lr"),
    "schedule": ("step", "steps", "epoch_steps"),
    "dataset": ("request",),
    "probe": ("evaluation",),
}
"""The positional arguments that a part of each kind is called with."""
TRAIT_ARGUMENTS = {"takes_dim": "embedding_dim", "reads_labels": "classes"}
"""The positional argument that follows the arguments in `POSITIONAL` if a part has the trait."""
NUMBERS = ("blocks", "views", "size", "channels", "images", "unlabelled")
"""The traits that are whole numbers."""
OF_SETTINGS = ("batch_norm", "reads_total", "acts_as", "reads", "check")
"""The traits that may be functions of the settings."""
FUNCTIONS = ("acts_as", "reads", "check", "check_fit", "check_images")
"""The traits that are functions or None."""


def check_declaration(part: Part) -> None:
    """Raise InputError if a part declares something wrong, or another part declares its metric differently."""
    what = f"{part.kind} {part.name}"
    try:
        check_traits(part)
        check_arguments(part)
        for parameter in part.parameters.values():
            check_parameter(parameter)
        check_declared_metrics(part)
    except InputError as fault:
        raise InputError(f"{what}: {fault}") from None


def check_arguments(part: Part) -> None:
    """Raise InputError unless a part takes the positional arguments that it is called with."""
    expected = POSITIONAL[part.kind] + tuple(name for trait, name in TRAIT_ARGUMENTS.items() if part.traits.get(trait))
    signature = list(inspect.signature(part.function).parameters.values())
    positional = [p for p in signature if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    is_open = any(p.kind is p.VAR_POSITIONAL for p in signature)
    if len(positional) > len(expected):
        extra = positional[len(expected)].name
        raise InputError(
            f"{extra}: write the parameters of the part after a *, as in ({', '.join(expected)}, *, {extra}: …)"
        )
    if len(positional) < len(expected) and not is_open:
        raise InputError(f"is called with {', '.join(expected)}, but takes {len(positional)} arguments")


def check_traits(part: Part) -> None:
    """Raise InputError if a trait of a part has a value of a wrong type, or names a parameter that it does not have."""
    if part.kind == "dataset" and not part.traits["size"]:
        raise InputError("say the side of its images in pixels, as in @raysweep.dataset(size=32)")
    for name, value in part.traits.items():
        if name == "switch":
            if value is not None and value not in list(part.parameters):
                hint = suggest(str(value), part.parameters) if part.parameters else "; it has none"
                raise InputError(f"switch: the name of one of its parameters expected, not {shown(value)}{hint}")
        elif name in NUMBERS:
            least = int(name in ("size", "views"))
            if type(value) is not int or value < least:
                raise InputError(f"{name}: a whole number of at least {least} expected, not {shown(value)}")
        elif name == "layers":
            if not isinstance(value, tuple | list) or not all(isinstance(layer, str) for layer in value):
                raise InputError(f"layers: a list of texts expected, not {shown(value)}")
        elif name in FUNCTIONS:
            if value is not None and not callable(value):
                raise InputError(f"{name}: a function expected, not {shown(value)}")
        elif not isinstance(value, bool) and not (name in OF_SETTINGS and callable(value)):
            more = ", or a function of the settings" if name in OF_SETTINGS else ""
            raise InputError(f"{name}: True or False expected{more}, not {shown(value)}")


def check_declared_metrics(part: Part) -> None:
    """Raise InputError if a part declares metrics that are invalid, or that another part declares differently.

    The slash in the name of a metric separates it from the settings and the other columns of the tables.
    """
    metrics: Any = part.metrics
    if not isinstance(metrics, Mapping):
        raise InputError(f"metrics: a dict of names and raysweep.Metric expected, not {shown(metrics)}")
    known = metrics_by_name()
    for name, metric in metrics.items():
        if not isinstance(name, str) or not isinstance(metric, Metric):
            raise InputError(
                f"metrics: {shown(name)}: a name and a raysweep.Metric expected, such as "
                "'means/test_accuracy': raysweep.Metric('Accuracy of the class means.')"
            )
        if not all(name.partition("/")):
            raise InputError(
                f"metrics: {shown(name)}: write the name as GROUP/NAME, such as 'means/test_accuracy', because tables "
                "have other columns whose names are single words"
            )
        if name in known and known[name] != metric:
            raise InputError(f"metric {name}: another part declares it differently; give it another name")


def try_functions(part: Part) -> None:
    """Call each function of the settings that a part declares, with the default settings. Exceptions are raised."""
    settings = Settings.model_construct()
    for parameter in part.parameters.values():
        if parameter.condition is not None:
            parameter.condition.holds(settings)
    for metric in part.metrics.values():
        if metric.is_reported is not None:
            metric.is_reported(settings)
    for name in OF_SETTINGS:
        trait = part.traits.get(name)
        with suppress(ValueError) if name == "check" else nullcontext():  # a check may refuse the default settings
            if callable(trait):
                trait(settings)
