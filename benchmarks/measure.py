"""Helpers of all benchmarks: a description of the machine, timing in turns, and files of results."""

from __future__ import annotations

import contextlib
import datetime
import gc
import importlib.metadata
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "torchvision", "ray", "numpy", "lightly")
GIBIBYTE = 2**30


def machine() -> dict[str, Any]:
    """Describe the machine and the software on which a figure is measured."""
    return {
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIBIBYTE, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        **BEGUN,
    }


def beginning() -> dict[str, Any]:
    """Return the facts to record before measuring: the code's version and the load of the machine."""
    return {
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def processor() -> str:
    """Return the processor's name, with the instructions that decide the speed: AVX-512, and bf16 in hardware."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    name = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flags and flag in flags[1].split()]
    return f"{name[1].strip() if name else platform.machine()} ({', '.join(known)})"


def version(package: str) -> str | None:
    """Return the version of an installed package, or None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """Return this copy's commit, with `+` if tracked files except figures differ from it; None outside a checkout."""
    try:

        def git(*arguments: str) -> str:
            return subprocess.run(
                ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
            ).stdout.strip()

        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs", ":!benchmarks/results")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


BEGUN = beginning()


def alternate(work: Mapping[str, Callable[[], object]], repeats: int, warm_up: bool = True) -> dict[str, list[float]]:
    """Time each call in turns (A B A B …), so that disturbances of the machine affect all calls equally.

    Args:
        work: the functions to call, by name.
        repeats: the number of measurements of each function.
        warm_up: whether to call each function once before, without counting it.
    """
    assert repeats > 0
    seconds: dict[str, list[float]] = {name: [] for name in work}
    gc.collect()
    gc.freeze()  # otherwise each collection below would visit all objects of torch, which takes 0.1 s
    try:
        for turn in range(-1 if warm_up else 0, repeats):
            for name, call in work.items():
                gc.collect()
                began = time.perf_counter()
                call()
                took = time.perf_counter() - began
                if turn >= 0:
                    seconds[name].append(took)
    finally:
        gc.unfreeze()
    return seconds


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Return median, minimum and maximum of the measurements, and the measurements themselves."""
    return {
        "median": significant(statistics.median(values)),
        "min": significant(min(values)),
        "max": significant(max(values)),
        "all": [significant(value) for value in values],
    }


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, Any]:
    """Summarise the ratio of `above` to `below`, computed within each turn."""
    return summary([a / b for a, b in zip(above, below, strict=True)])


def significant(value: float, digits: int = 4) -> float:
    """Round to `digits` significant digits."""
    return float(f"{value:.{digits}g}")


def save(name: str, content: Mapping[str, Any]) -> Path:
    """Write the command, the machine and the content to `results/NAME.json`; lists of seconds become their `summary`.

    A key that ends in `seconds` is summarised if it holds a list or a mapping of lists, as `alternate` returns.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    script = Path(sys.argv[0]).resolve()
    with contextlib.suppress(ValueError):
        script = script.relative_to(ROOT)
    command = shlex.join(["python", str(script), *sys.argv[1:]])
    whole = {"command": command, "machine": machine(), **_summarised(content)}
    path.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _summarised(content: Mapping[str, Any]) -> dict[str, Any]:
    summaries: dict[str, Any] = {}
    for key, value in content.items():
        if key.endswith("seconds") and isinstance(value, Mapping):
            summaries[key] = {
                name: summary(values) if isinstance(values, list) else values for name, values in value.items()
            }
        elif key.endswith("seconds") and isinstance(value, list):
            summaries[key] = summary(value)
        elif isinstance(value, Mapping):
            summaries[key] = _summarised(value)
        else:
            summaries[key] = value
    return summaries


def load(name: str) -> dict[str, Any] | None:
    """Return what `save` last wrote under this name, or None if there is nothing."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
