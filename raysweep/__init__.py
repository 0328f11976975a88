"""Sweeps of self-supervised image representation learning on Ray."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysweep.augment.operations import to_float as to_float
    from raysweep.data.dataset import Dataset as Dataset
    from raysweep.declarations import Chooses as Chooses
    from raysweep.declarations import Condition as Condition
    from raysweep.declarations import FeatureLayer as FeatureLayer
    from raysweep.declarations import Metric as Metric
    from raysweep.methods.method import Losses as Losses
    from raysweep.parts import dataset as dataset
    from raysweep.parts import encoder as encoder
    from raysweep.parts import head as head
    from raysweep.parts import loss as loss
    from raysweep.parts import method as method
    from raysweep.parts import policy as policy
    from raysweep.parts import probe as probe

__version__ = "0.1.0"

PLUGIN_NAMES = {
    "raysweep.parts": ("encoder", "head", "policy", "loss", "method", "dataset", "probe"),
    "raysweep.declarations": ("Metric", "Condition", "Chooses", "FeatureLayer"),
    "raysweep.methods.method": ("Losses",),
    "raysweep.data.dataset": ("Dataset",),
    "raysweep.augment.operations": ("to_float",),
}
"""The public names for a plugin, by the module that has them."""
LAZY = {name: module for module, names in PLUGIN_NAMES.items() for name in names}
"""The module of each public name. It is imported when the name is first used."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import raysweep` takes no time."""
    if name not in LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *LAZY])
