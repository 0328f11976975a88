"""Sweeps of self-supervised image representation learning on Ray.

The public names below are imported when they are first used, so that `import raysweep` stays fast and imports neither
PyTorch nor Ray. `docs/python.md` describes them.

Example:
    >>> results = raysweep.run("alpha.yaml", set={"seed": [0, 1, 2]})
    >>> results.frame()
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysweep.backends.ray.open_trainable import trainable
    from raysweep.errors import RaysweepError
    from raysweep.interface import evaluate, open, resume, run
    from raysweep.sweep_results import Results

__version__ = "0.1.0"

__all__ = ["RaysweepError", "Results", "evaluate", "open", "resume", "run", "trainable"]

_MODULES = {
    "RaysweepError": "raysweep.errors",
    "Results": "raysweep.sweep_results",
    "evaluate": "raysweep.interface",
    "open": "raysweep.interface",
    "resume": "raysweep.interface",
    "run": "raysweep.interface",
    "trainable": "raysweep.backends.ray.open_trainable",
}
"""The module of each public name."""


if not TYPE_CHECKING:  # with this function, a type checker would accept every name

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module 'raysweep' has no attribute {name!r}")
        value = getattr(import_module(_MODULES[name]), name)
        globals()[name] = value  # so that this function is called once for each name
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
