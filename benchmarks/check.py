"""The speed targets: what each asks for, what was measured, and whether it is met.

    python benchmarks/check.py

The script reads `benchmarks/results/*.json`. The exit status is 0 if all targets are met, and 1 if one is missed or was
not measured. Rows that begin with … are shown beside a target and do not count. A target is a ratio of two times from
one run on one machine, or a number of seconds. Targets for a GPU are in `benchmarks/gpu.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import measure
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Target:
    """A target: a bound on one figure."""

    words: str
    file: str
    """The name of the file of results."""
    least: bool
    """Whether the bound is a lower bound."""
    bound: float
    read: Callable[[dict[str, Any]], float]
    """Reads the figure from the file's content; raises LookupError if it was not measured."""
    binding: bool = True
    """Whether the target counts; if False, it is only shown."""

    def measured(self) -> float | None:
        """Return the measured figure, or None if it was not measured or only in a quick run."""
        content = measure.load(self.file)
        if content is None or content.get("quick"):
            return None
        try:
            return float(self.read(content))
        except (LookupError, TypeError, StopIteration):
            return None

    def met(self, value: float) -> bool:
        """Return whether the value meets the target."""
        return value >= self.bound if self.least else value <= self.bound

    def asked(self) -> str:
        """Return the bound as text."""
        return f"{'≥' if self.least else '≤'} {self.bound:g}"


def sweep(content: dict[str, Any]) -> float:
    """Return how many times faster the sweep is at the default precision."""
    return float(content["times faster than the plain script"][content["default"]]["median"])


def sweep_in(precision: str) -> Callable[[dict[str, Any]], float]:
    """Return a reader of how many times faster the sweep is at a given precision."""

    def read(content: dict[str, Any]) -> float:
        faster = content["times faster than the plain script"]
        return float(next(entry["median"] for name, entry in faster.items() if precision in name.split(", ")[1]))

    return read


def epoch(shape: str) -> Callable[[dict[str, Any]], float]:
    """Return a reader of the ratio of epoch to bare step of `ae_parallel` at the default precision."""
    return lambda content: content["cases"][f"ae_parallel, {shape}, {content['default']}"]["epoch over bare"]["median"]


def augmentation(shape: str, way: str) -> Callable[[dict[str, Any]], float]:
    """Return a reader of augmentation's speed at strength 1 relative to torchvision's on tensors or PIL images."""

    def read(content: dict[str, Any]) -> float:
        faster = content["cases"][f"{shape}, strength 1"]["times faster"]
        return float(next(entry["median"] for name, entry in faster.items() if way in name))

    return read


def cached(shape: str) -> Callable[[dict[str, Any]], float]:
    """Return a reader of how many times faster the linear evaluation is on cached features."""
    return lambda content: content["cases"][shape]["times faster"]["median"]


def per_trial(content: dict[str, Any]) -> float:
    """Return the overhead of each trial after the first in the largest sweep."""
    largest = max(content["sweeps"].items(), key=lambda item: int(item[0].split()[0]))[1]
    entry = next(value for name, value in largest.items() if "overhead" in name and "each further" in name)
    return float(entry["median"])


TARGETS = (
    Target("α sweep on digits, times faster than the plain script, default precision", "sweep-digits", True, 3, sweep),
    Target("… ambition", "sweep-digits", True, 4, sweep, False),
    Target("… fp32, the precision of the plain script", "sweep-digits", True, 3, sweep_in("fp32"), False),
    Target("… bf16", "sweep-digits", True, 3, sweep_in("bf16"), False),
    Target("32×32×3 sweep, times faster than the plain script, default precision", "sweep-cifar", True, 2.2, sweep),
    Target("… fp32, the precision of the plain script", "sweep-cifar", True, 2.2, sweep_in("fp32"), False),
    Target("… bf16", "sweep-cifar", True, 2.2, sweep_in("bf16"), False),
    Target("shared pretrainings, times faster than --no-share", "sharing", True, 5, lambda c: c["faster"]["median"]),
    Target(
        "evaluation of a sweep's encoders, share of the sweep's time",
        "evaluate",
        False,
        0.1,
        lambda content: content["share of the sweep"]["median"],
    ),
    Target("epoch over bare step, 32×32×3", "epoch", False, 1.10, epoch("32×32×3")),
    Target("epoch over bare step, 8×8×1", "epoch", False, 1.25, epoch("8×8×1")),
    *(
        Target(f"augmentation, times faster than torchvision on {way}, {shape}", "augmentation", True, 30, read)
        for shape in ("32×32×3", "8×8×1")
        for way in ("tensors", "PIL images")
        for read in (augmentation(shape, way),)
    ),
    Target("linear evaluation, times faster than encoding anew, 32×32×3", "linear", True, 20, cached("32×32×3")),
    Target("linear evaluation, times faster than encoding anew, 8×8×1", "linear", True, 20, cached("8×8×1")),
    Target("overhead of each trial after the first, seconds", "overhead", False, 0.3, per_trial),
    Target(
        "share of checkpoints and TensorBoard in a trial's time",
        "overhead",
        False,
        0.03,
        lambda content: content["records"]["both"],
    ),
)


def verdict(target: Target) -> tuple[str, str]:
    """Return the measured figure as text, and `met`, `missed` or `not measured`."""
    value = target.measured()
    if value is None:
        return "–", "not measured"
    return f"{value:.3g}", "met" if target.met(value) else "missed"


def main() -> int:
    """Print the table."""
    table = Table("target", "asked", "measured", "", title="Targets")
    colours = {"met": "green", "missed": "bold red", "not measured": "yellow"}
    verdicts = []
    for target in TARGETS:
        value, word = verdict(target)
        verdicts += [word] if target.binding else []
        table.add_row(target.words, target.asked(), value, f"[{colours[word]}]{word}[/]")
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    return 0 if set(verdicts) == {"met"} else 1


if __name__ == "__main__":
    sys.exit(main())
