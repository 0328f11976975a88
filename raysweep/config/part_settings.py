"""The settings that parts declare, as fields of `Settings`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import WrapValidator
from pydantic.fields import FieldInfo

from raysweep import parts
from raysweep.config.description import About
from raysweep.part_functions import explained
from raysweep.parts import Condition, Parameter, Part

if TYPE_CHECKING:
    from raysweep.config.settings import Settings

ANCHORS = {
    "encoder": ("encoder",),
    "layerwise": ("method", "loss"),
    "head": ("head",),
    "optimizer": ("optimizer",),
    "schedule": ("schedule",),
    "policy": ("policy",),
    "dataset": ("dataset",),
    "skip_bad_images": ("probe",),
}
"""For a setting of the experiment: the kinds of parts whose parameters are listed after it."""
GROUPS = {"policy": "Augmentation", "dataset": "Data", "probe": "Evaluation"}
"""The heading for the parameters of a kind of part. Parameters of other kinds belong to pretraining."""
CHOOSERS = {
    "encoder": "encoder",
    "method": "usl_type",
    "head": "head",
    "optimizer": "optimizer",
    "schedule": "schedule",
    "policy": "policy",
    "dataset": "dataset",
}
"""For a kind of part: the setting that names the part in use."""

OBJECTIVE_KINDS = ("method", "loss", "policy")
"""The kinds of parts that decide what the losses of pretraining measure."""


def network_parts(settings: Settings) -> list[Part]:
    """Return the encoder and its head, and all parts that these two choose."""
    first = (parts.encoder[settings.encoder], parts.head[settings.head])
    return [each for part in first for each in parts.with_chosen(part, settings)]


def network_parameters(settings: Settings) -> list[str]:
    """Return the parameters, apart from the sizes, that decide what the encoder and its head compute."""
    return list(dict.fromkeys(name for part in network_parts(settings) for name in part.parameters))


def one_of(values: Iterable[str]) -> Any:
    """Return the type whose values are these texts."""
    texts: Any = tuple(values)
    return Literal[texts]


def in_a_family(table: parts.Table) -> WrapValidator:
    """Return a check that also accepts names that the table does not list; `Settings` then reads the part itself."""
    return WrapValidator(lambda value, check: value if table.is_in_family(value) else check(value))


def make_field(kind: Any, marks: Iterable[Any], default: Any) -> FieldInfo:
    """Return a field of a pydantic model. `marks` are its annotations: ranges, and our descriptions."""
    annotation: Any = (kind, *marks)
    return FieldInfo.from_annotated_attribute(Annotated[annotation], default)  # type: ignore[arg-type]


def field_of_parameter(parameter: Parameter) -> FieldInfo:
    """Return the field of `Settings` for a parameter that parts declare."""
    kind, *marks = get_args(parameter.annotation)
    if parameter.chooses is not None:
        kind = one_of(parts.TABLES[parameter.chooses])
    elif parameter.is_layer:
        layers = [layer for encoder in parts.encoder.values() for layer in encoder.traits["layers"]]
        kind = one_of(dict.fromkeys(["trunk", "embedding", *layers]))
    declaring = [
        part for table in parts.TABLES.values() for part in table.values() if parameter.name in part.parameters
    ]
    remark, kinds = parameter.remark, {part.kind for part in declaring}
    description = About(
        parameter.text,
        Condition(words_of(parameter.name, declaring), lambda settings: is_read(parameter.name, settings)),
        group=GROUPS.get(declaring[0].kind, "Pretraining"),
        composed=remark.structured,
        protocol="probe" in kinds and remark.protocol and remark.searchable,
        objective=not kinds.isdisjoint(OBJECTIVE_KINDS),
        search=remark.searchable,
        may_be_unused=remark.may_be_unused,
    )
    return make_field(kind, [*marks, description], parameter.default)


def is_read(name: str, settings: Settings) -> bool:
    """Return whether a part that is used in an experiment reads the parameter `name`."""
    return name in parts.parameters_read(settings)


def check_part(part: Part, settings: Settings) -> None:
    """Raise ValueError if the trait `check` of a part says that settings do not fit together, or if it is faulty."""
    try:
        part.traits["check"](settings)
    except ValueError:
        raise
    except Exception:
        with explained(part):
            raise


def changes_data(name: str) -> bool:
    """Return whether the setting `name` decides which images a trial reads."""
    return name in ("dataset", "probe_dataset", "image_size") or name in parts.declared_parameters(("dataset",))


def words_of(name: str, declaring: list[Part]) -> str:
    """Return in words when a parameter has an effect, for messages and docs."""
    uses = [uses_of(part) if part.traits.get("switch") != name else [] for part in declaring]
    use = " or ".join(dict.fromkeys(itertools.chain(*uses))) if all(uses) else ""
    condition = declaring[0].parameters[name].condition  # all parts that declare a parameter declare it equally
    words = condition.words if condition is not None else ""
    return f"{use}, with {words}" if use and words else use or words or "always"


def uses_of(part: Part) -> list[str]:
    """Return the settings with which a part is in use; an empty list means always."""
    if part.kind == "policy":
        return [f"`policy` with `{part.name}`, and `strength` > 0"]
    if part.kind == "probe":
        return [f"`{part.traits['switch']}`"] if part.traits["switch"] is not None else []
    if part.kind != "loss":
        return [f"`{CHOOSERS[part.kind]}: {part.name}`"] if part.kind in CHOOSERS else []
    uses = []
    for user in parts.method.values():
        for name, parameter in user.parameters.items():
            if parameter.chooses == "loss":
                extra = f"{parameter.condition.words} and " if parameter.condition is not None else ""
                uses += [f"{use} with {extra}`{name}: {part.name}`" for use in uses_of(user)]
    return uses


def example_of(name: str) -> tuple[str, str] | None:
    """Return a part that reads the parameter `name`, and the settings that use this part; None if no part does.

    Example:
        `example_of("barlow_lambda")` gives `("barlow", "usl_type: ae_parallel, emb_loss: barlow")`.
    """
    for table in parts.TABLES.values():
        for part in table.values():
            if name in part.parameters and part.kind in CHOOSERS:
                return part.name, f"{CHOOSERS[part.kind]}: {part.name}"
            if name in part.parameters and part.kind == "loss":
                for user in parts.method.values():
                    for chooser, parameter in user.parameters.items():
                        if parameter.chooses == "loss":
                            return part.name, f"usl_type: {user.name}, {chooser}: {part.name}"
    return None
