"""The evaluation protocol: everything that decides whether two scores may be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from raysweep import parts
from raysweep.config.images import side_of
from raysweep.config.settings import SETTINGS, Settings, about, default_of, has_effect

PROTOCOL_VERSION = 4
"""A number that grows whenever the same settings give another score, so that old and new scores are not compared.

Version 1 drew the order of the images from the same generator as augmentation. Version 2 was version 1 with another
score of kNN at temperatures below 0.02. Version 3 trained with labels on the validation images too, the momentum of
BYOL's teacher was one step ahead, the masks of dropout did not depend on the seed, Kaiming's weights depended on the
head, and layer-wise Barlow Twins and VICReg normalised both views of a batch together in the encoder's blocks.
"""
ODD_SIDES_WHOLE = 5
"""The version of the scores on images whose side is not a power of two.

In version 4, probes on blocks left out the last row and column of feature maps with an odd side. The version depends on
the side of the images alone, so that all scores on the same images have the same version. It does not see that the
encoder of a plugin can have such maps at any side of the images.
"""
NEWEST_VERSION = ODD_SIDES_WHOLE
"""The version that a new sweep records. It computes every score with the newest version that the score has."""
LABELS_LEFT_OUT = 4
"""The first version whose training with labels leaves out the validation images."""


OMITTED_AT_DEFAULT = ("probe_labels",)
"""Settings that are in a protocol only if they differ from their defaults, because older fingerprints lack them."""


def version_of(settings: Settings) -> int:
    """Return the version of the scores of an experiment; see `PROTOCOL_VERSION` and `ODD_SIDES_WHOLE`."""
    is_power_of_two = side_of(settings).bit_count() == 1
    return PROTOCOL_VERSION if is_power_of_two else ODD_SIDES_WHOLE


def protocol(settings: Settings, probe_digest: str) -> dict[str, Any]:
    """Return what decides whether two scores may be compared: settings of the evaluation, its data, the version.

    Args:
        settings: the experiment.
        probe_digest: a digest of the pixels and labels of the probe dataset (`Dataset.digest`).

    A probe of a plugin is identified by the hash of its file, and a dataset of a plugin by its content, as any other.
    The parameters of a probe that is off by default are left out at their defaults. So the fingerprints of trials
    without it stay as they were before the probe existed.
    """
    optional = {*optional_parameters(), *OMITTED_AT_DEFAULT}
    chosen = {
        name: getattr(settings, name) if has_effect(name, settings) else default_of(name)
        for name in SETTINGS
        if about(name).protocol
    }
    chosen = {name: value for name, value in chosen.items() if name not in optional or value != default_of(name)}
    chosen["probe_dataset"] = settings.evaluated_dataset.split(":")[0]  # a folder is identified by its content alone
    code = ", ".join(f"{name} {part.plugin[:12]}" for name, part in parts.probe.items() if part.plugin)
    plugins = {"probe_code": code} if code else {}  # only then, so that other fingerprints stay as they were
    return {**chosen, **plugins, "probe_data": probe_digest, "version": version_of(settings)}


def optional_parameters() -> set[str]:
    """Return the parameters that only probes with a switch read."""
    always = {name for part in parts.probe.values() if part.traits["switch"] is None for name in part.parameters}
    return set(parts.declared_parameters(("probe",))) - always


def fingerprint(content: Mapping[str, Any]) -> str:
    """Return a hash of a protocol: 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
