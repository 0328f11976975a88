"""The settings of one trial, its metrics, its evaluation protocol, and the checks of all values."""

from raysweep.config.conditions import METHOD_EFFECTS
from raysweep.config.description import About
from raysweep.config.linear_probes import ProbeSpec
from raysweep.config.metrics import CHOICES, METRICS, ONLINE, Collapse, has_metric
from raysweep.config.protocol import fingerprint, protocol
from raysweep.config.settings import BLOCKS, FOLDER, SETTINGS, Settings, about, has_effect, is_number, make_settings
from raysweep.config.validation import check_model, check_type
from raysweep.config.values import NUMBER, WHOLE_NUMBER, read_number, shown, suggest

__all__ = [
    "BLOCKS",
    "CHOICES",
    "FOLDER",
    "METHOD_EFFECTS",
    "METRICS",
    "NUMBER",
    "ONLINE",
    "SETTINGS",
    "WHOLE_NUMBER",
    "About",
    "Collapse",
    "ProbeSpec",
    "Settings",
    "about",
    "check_model",
    "check_type",
    "fingerprint",
    "has_effect",
    "has_metric",
    "is_number",
    "make_settings",
    "protocol",
    "read_number",
    "shown",
    "suggest",
]
