"""Sweeps of self-supervised image representation learning on Ray.

The public names below are imported when they are first used, so that `import raysweep` stays fast and imports neither
PyTorch nor Ray. `docs/python.md` describes them; `docs/extending.md` describes how a plugin declares parts.

Example:
    >>> results = raysweep.run("alpha.yaml", set={"seed": [0, 1, 2]})
    >>> results.frame()
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysweep.augment.operations import to_float
    from raysweep.backends.ray.open_trainable import trainable
    from raysweep.data.dataset import Dataset
    from raysweep.declarations import Chooses, Condition, FeatureLayer, Metric
    from raysweep.errors import RaysweepError
    from raysweep.interface import evaluate, open, resume, run
    from raysweep.methods.method import Losses
    from raysweep.parts import dataset, encoder, head, loss, method, optimizer, policy, probe, schedule
    from raysweep.sweep_results import Results

__version__ = "0.1.0"
__all__ = [
    "Chooses", "Condition", "Dataset", "FeatureLayer", "Losses", "Metric", "RaysweepError", "Results", "dataset",
    "encoder", "evaluate", "head", "loss", "method", "open", "optimizer", "policy", "probe", "resume", "run",
    "schedule", "to_float", "trainable",
]  # fmt: skip

_NAMES = {
    "raysweep.interface": ("evaluate", "open", "resume", "run"),
    "raysweep.sweep_results": ("Results",),
    "raysweep.backends.ray.open_trainable": ("trainable",),
    "raysweep.errors": ("RaysweepError",),
    "raysweep.parts": (
        "dataset", "encoder", "head", "loss", "method", "optimizer", "policy", "probe", "schedule"
    ),
    "raysweep.declarations": ("Chooses", "Condition", "FeatureLayer", "Metric"),
    "raysweep.methods.method": ("Losses",),
    "raysweep.data.dataset": ("Dataset",),
    "raysweep.augment.operations": ("to_float",),
}  # fmt: skip
"""The public names, by the module that defines them."""
_MODULES = {name: module for module, names in _NAMES.items() for name in names}


if not TYPE_CHECKING:  # with this function, a type checker would accept every name

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module 'raysweep' has no attribute {name!r}")
        value = getattr(import_module(_MODULES[name]), name)
        globals()[name] = value  # so that this function is called once for each name
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
