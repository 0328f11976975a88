"""The settings of one trial, its metrics, its evaluation protocol, and the checks of all values."""

from raysweep.config.consistency import EMBEDDING, TRUNK, check_layer
from raysweep.config.declaration_checks import check_declaration, try_functions
from raysweep.config.description import About
from raysweep.config.metrics import (
    METRICS,
    RANKME,
    Collapse,
    changes_losses,
    choices,
    default_metric,
    has_metric,
    is_objective,
    metrics_by_name,
    online_metrics,
    outside_range,
)
from raysweep.config.older import with_present_names
from raysweep.config.parameters import check_choices, check_parameter
from raysweep.config.protocol import NEWEST_VERSION, PROTOCOL_VERSION, fingerprint, protocol, version_of
from raysweep.config.settings import (
    FOLDER,
    SETTINGS,
    Settings,
    about,
    default_of,
    has_effect,
    is_number,
    make_base,
    make_settings,
)
from raysweep.config.validation import check_model, check_type
from raysweep.config.values import BOOLS, NUMBER, WHOLE_NUMBER, plain, read_number, shown, suggest

__all__ = [
    "BOOLS",
    "EMBEDDING",
    "FOLDER",
    "METRICS",
    "NEWEST_VERSION",
    "NUMBER",
    "PROTOCOL_VERSION",
    "RANKME",
    "SETTINGS",
    "TRUNK",
    "WHOLE_NUMBER",
    "About",
    "Collapse",
    "Settings",
    "about",
    "changes_losses",
    "check_choices",
    "check_declaration",
    "check_layer",
    "check_model",
    "check_parameter",
    "check_type",
    "choices",
    "default_metric",
    "default_of",
    "fingerprint",
    "has_effect",
    "has_metric",
    "is_number",
    "is_objective",
    "make_base",
    "make_settings",
    "metrics_by_name",
    "online_metrics",
    "outside_range",
    "plain",
    "protocol",
    "read_number",
    "shown",
    "suggest",
    "try_functions",
    "version_of",
    "with_present_names",
]
