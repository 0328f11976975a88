"""The evaluation protocol: everything that decides whether two scores may be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from raysweep import parts
from raysweep.config.settings import SETTINGS, Settings, about, default_of, has_effect

PROTOCOL_VERSION = 3
"""Raised whenever the same settings would give another score, so that old and new scores are never compared.

Version 1 drew the order of the images from the same generator as augmentation. Version 2 was version 1 with another
score of kNN at temperatures below 0.02.
"""


def protocol(settings: Settings, probe_digest: str) -> dict[str, Any]:
    """All that decides whether two scores may be compared: settings of the evaluation, its data, the code's version.

    `probe_digest` identifies the pixels and labels of the probe dataset (`Dataset.digest`). The probes of plugins count
    by the hashes of their files. A dataset of a plugin counts by its content, like any other.
    """
    chosen = {
        name: getattr(settings, name) if has_effect(name, settings) else default_of(name)
        for name in SETTINGS
        if about(name).protocol
    }
    chosen["probe_dataset"] = settings.evaluated_dataset.split(":")[
        0
    ]  # a folder counts by its content, not by where it lies
    code = ", ".join(f"{name} {part.plugin[:12]}" for name, part in parts.probe.items() if part.plugin)
    plugins = {"probe_code": code} if code else {}  # only then, so that other fingerprints stay as they were
    return {**chosen, **plugins, "probe_data": probe_digest, "version": PROTOCOL_VERSION}


def fingerprint(of: Mapping[str, Any]) -> str:
    """A protocol in 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:12]
