"""How long an evaluation of the encoders of a sweep takes, compared with the sweep itself.

    python benchmarks/evaluate.py            # 24 encoders of an α sweep on digits, four numbers of labels
    python benchmarks/evaluate.py --quick    # 4 encoders: for development, no measurement

The real commands run the shipped search space `alpha`, and then `raysweep evaluate` with four values of
`labels_per_class`. A second evaluation with four other values finds the features in the cache. All commands include
the start of Ray and the report. The script writes `benchmarks/results/evaluate.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import measure

PROTOCOLS = {"first": "labels_per_class=[1,10,100,none]", "second": "labels_per_class=[2,5,20,50]"}
QUICK = ["--set", "alpha=[0.1,1]", "--set", "seed=[0]", "--usl_epochs", "2", "--le_epochs", "20"]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="An evaluation of the encoders of a sweep, and the sweep itself.")
    parser.add_argument("--quick", action="store_true", help="small: for development, no measurement")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        root, cache = Path(folder, "runs", "x"), Path(folder, "cache")
        options = ["--exp_type", "alpha", "--dataset", "digits", "--name", "x", *(QUICK if given.quick else [])]
        seconds = {"sweep": [run("sweep", *options, folder=folder, cache=cache)]}
        files: list[int] = []
        for name, setting in PROTOCOLS.items():
            words = ["evaluate", root, "--set", setting, "--name", name]
            seconds[f"{name} evaluation"] = [run(*words, folder=folder, cache=cache)]
            files.append(len(list(cache.glob("features/*.features"))) - sum(files))
        content = {
            "quick": given.quick,
            "encoders": len(list(root.glob("*/encoder.safetensors"))),
            "evaluations": [len(list(root.glob(f"evaluations/{name}/*/result.json"))) for name in PROTOCOLS],
            "new files of features": files,  # one for each encoder and split
            "seconds": {name: measure.summary(values) for name, values in seconds.items()},
            "share of the sweep": measure.ratio(seconds["first evaluation"], seconds["sweep"]),
        }
    print(json.dumps(content, indent=1))
    measure.save("evaluate", content)
    return 0


def run(*words: object, folder: str, cache: Path) -> float:
    """Run a command of raysweep; return its seconds from the start to the exit."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "raysweep", *map(str, words)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(measure.ROOT), "RAYSWEEP_CACHE": str(cache)},
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    took = time.perf_counter() - start
    print(f"{words[0]}: {took:.1f} s", flush=True)
    return took


if __name__ == "__main__":
    sys.exit(main())
