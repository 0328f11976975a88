"""Writes docs/search_space_reference.md from the settings' descriptions: `python docs/search_space_reference.py`."""

from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from raysweep.config import METRICS, About, Settings, choices
from raysweep.space import Race, Resources
from raysweep.space.model import Tune

HEAD = """# Reference of settings and metrics

`python docs/search_space_reference.py` makes this page from the descriptions in the code; do not edit it.
[Search-space files](search-space.md) explains how to use the settings, and the words *point*, *trunk* and *fit split*.
"""


def type_of(field: FieldInfo) -> str:
    """A field's type and range in words."""
    kind: Any = field.annotation
    optional = ""
    if get_origin(kind) in (UnionType, Union):
        kind, optional = get_args(kind)[0], " or none"
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind)) + optional
    words = {bool: "true, false", int: "whole number", float: "number", str: "text"}[kind]
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [f"{signs[n]} {getattr(m, n):,}" for m in field.metadata for n in signs if hasattr(m, n)]
    return ", ".join([words, *bounds]) + optional


def default_of(field: FieldInfo) -> str:
    """A field's default as YAML writes it."""
    if field.is_required():
        return "must be given"
    value = field.default
    return "none" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def about(field: FieldInfo) -> About:
    """A field's description."""
    return next(item for item in field.metadata if isinstance(item, About))


def table(model: type[BaseModel], group: str | None = None) -> str:
    """The fields of a model, or of one group of them."""
    lines = ["| name | values | default | what it is | has an effect |", "| --- | --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        description = about(field)
        if group is None or description.group == group:
            when = description.effect.words + ("" if description.search else "; cannot be swept")
            lines.append(f"| `{name}` | {type_of(field)} | {default_of(field)} | {description.text} | {when} |")
    lines = lines if group else [line.rsplit("|", 2)[0] + "|" for line in lines]
    return "\n".join(lines)


def reference() -> str:
    """The whole page."""
    groups = dict.fromkeys(about(field).group for field in Settings.model_fields.values())
    parts = [HEAD, "## Settings", "A setting that only pretraining reads has no effect with `usl_epochs: 0`."]
    for group in groups:
        parts += [f"### {group}", table(Settings, group)]
    metrics = ["| metric | what it is | may be `tune.metric` |", "| --- | --- | --- |"]
    metrics += [f"| `{name}` | {text} | {'yes' if name in choices() else 'no'} |" for name, text in METRICS.items()]
    parts += ["## seeds", table(Race), "## tune", table(Tune), "## resources", table(Resources)]
    steps = (
        "TensorBoard shows each metric over the epochs of pretraining or of its probe. Metrics that read test images "
        "cannot choose."
    )
    parts += ["## Metrics", steps, "\n".join(metrics)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


if __name__ == "__main__":
    (Path(__file__).parent / "search_space_reference.md").write_text(reference(), encoding="utf-8")
