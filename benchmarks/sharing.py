"""How much faster a sweep is whose trials share pretrainings, from the command to its end.

    python benchmarks/sharing.py            # 3 α × 3 usl_epochs × 2 labels_per_class × 2 probe_layer × 2 seeds
    python benchmarks/sharing.py --quick    # 8 trials: for development, no measurement

The real command runs the same sweep of digits in turns, with and without `--no-share`, on a Ray of its own. The script
also checks that all metrics are equal. It writes `benchmarks/results/sharing.json`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure

ROOT = Path(__file__).parents[1]
BASE = {"usl_type": "ae_parallel", "dataset": "digits", "le_epochs": 100}
GRID = {
    "alpha": [0.01, 0.1, 1.0],
    "usl_epochs": [15, 30, 60],
    "labels_per_class": [1, 10],
    "probe_layer": ["trunk", "embedding"],
    "seed": [0, 1],
}
QUICK = {**GRID, "alpha": [0.1], "usl_epochs": [2, 4], "seed": [0], "labels_per_class": [1, 10]}
CLOCK = "pretrain/images_per_s"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="A sweep whose trials share pretrainings, and the same without.")
    parser.add_argument("--quick", action="store_true", help="small: for development, no measurement")
    parser.add_argument("--turns", type=int, default=1, help="runs of each kind (default: 1)")
    given = parser.parse_args(argv)
    seconds: dict[str, list[float]] = {"shared": [], "alone": []}
    metrics: dict[str, dict[str, Any]] = {}
    for _ in range(given.turns):
        for kind, options in (("shared", []), ("alone", ["--no-share"])):
            took, metrics[kind] = run(QUICK if given.quick else GRID, options)
            seconds[kind].append(took)
            print(f"{kind}: {took:.1f} s", flush=True)
    assert metrics["shared"] == metrics["alone"], "sharing has changed a result"
    content = {
        "quick": given.quick,
        "trials": len(metrics["shared"]),
        "seconds": {kind: measure.summary(values) for kind, values in seconds.items()},
        "faster": measure.ratio(seconds["alone"], seconds["shared"]),
    }
    print(content)
    measure.save("sharing", content)
    return 0


def run(grid: dict[str, Any], options: Sequence[str]) -> tuple[float, dict[str, Any]]:
    """Run a sweep; return its seconds from the command to its end, and the metrics of its trials by name."""
    with tempfile.TemporaryDirectory() as folder:
        space = Path(folder, "space.yaml")
        content = {"name": "x", "base": BASE, "search": grid, "baseline": False}
        space.write_text(json.dumps(content))  # JSON is YAML
        start = time.perf_counter()
        program = [sys.executable, str(ROOT / "run_sweep.py"), str(space), "--output", folder, *options]
        subprocess.run(program, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        took = time.perf_counter() - start
        results = [json.loads(file.read_text()) for file in Path(folder, "x").glob("*/result.json")]
    return took, {
        each["trial"]: {name: value for name, value in each["metrics"].items() if name != CLOCK} for each in results
    }


if __name__ == "__main__":
    sys.exit(main())
