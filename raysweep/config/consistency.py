"""The check of settings that concern each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysweep import parts
from raysweep.config.part_settings import check_part

if TYPE_CHECKING:
    from raysweep.config.settings import Settings

TRUNK, EMBEDDING = "trunk", "embedding"
"""The layers that every encoder has for probes: its features, and the output of the head."""


def check_combination(settings: Settings) -> None:
    """Raise ValueError if settings contradict each other."""
    encoder = parts.encoder[settings.encoder]
    if settings.layerwise != "none" and encoder.traits["trains"]:
        able = [name for name, other in parts.encoder.items() if other.traits["blocks"]]
        if not encoder.traits["blocks"]:
            raise ValueError(
                f"layerwise: {settings.layerwise} needs an encoder that is made of blocks; {settings.encoder} has none;"
                f" use encoder: {' or '.join(able)}"
            )
        if not parts.method[settings.usl_type].traits["layerwise"]:
            raise ValueError(
                f"layerwise: {settings.layerwise}: usl_type {settings.usl_type} cannot train block by block"
            )
    for part in parts.in_use(settings):
        for parameter in part.parameters.values():
            if parameter.is_layer:
                check_layer(settings, parameter.name, getattr(settings, parameter.name))
        if part.traits.get("check") is not None:
            check_part(part, settings)


def check_layer(settings: Settings, name: str, layer: str) -> None:
    """Raise ValueError if the encoder has no such layer; `name` is the setting that asks for it."""
    if not parts.trains(settings):
        return  # each layer stands for its features
    layers = (TRUNK, EMBEDDING, *parts.encoder[settings.encoder].traits["layers"])
    if layer not in layers:
        raise ValueError(f"{name}: {settings.encoder} has no layer {layer!r}; it has {', '.join(layers)}")
