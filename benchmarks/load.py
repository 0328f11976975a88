"""A sweep of very many, very short trials: the cost of a trial beyond its own work, and the driver's memory growth.

    python benchmarks/load.py --trials 2000

This runs the real command on Ray with one core per trial. A trial is one epoch of the linear probe on a random encoder
(digits), with its own seed, so nearly all time is overhead. The script prints the driver's memory by finished trials,
and where the time went, and writes both to `benchmarks/results/load-TRIALS.json`. It needs Linux (`/proc`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MEBIBYTE = 2**20
SECONDS = 1.0  # between two samples


@dataclass(frozen=True)
class Sample:
    """The state of the driver at one moment."""

    seconds: float
    """The time since the driver started."""
    finished: int
    """The number of trials that the driver has reported as ended."""
    pss_mib: float
    """The driver's private memory plus its share of shared memory."""
    cpu_s: float
    """The processor time that the driver has used."""
    worker_mib: float
    """The same memory of the largest worker; 0 if there is none."""


def pss_mib(pid: int) -> float:
    """Return the proportional memory of a process; raise OSError if it has ended."""
    match = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    return int(match[1]) * 1024 / MEBIBYTE if match else 0.0


def workers(driver: int) -> Iterator[int]:
    """Yield the processes of the driver's Ray that run trials: the driver's grandchildren."""
    parents = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with suppress(OSError):
                parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
    for pid, parent in parents.items():
        if parents.get(parent) == driver:
            with suppress(OSError):
                if b"ray::ImplicitFunc" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    yield pid


def sample(pid: int, seconds: float, finished: int) -> Sample | None:
    """Sample the driver; return None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        driver_mib = pss_mib(pid)
    except OSError:
        return None
    used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    largest = 0.0
    for worker in workers(pid):
        with suppress(OSError):
            largest = max(largest, pss_mib(worker))
    return Sample(round(seconds, 2), finished, driver_mib, used, largest)


def run(trials: int, epochs: int, folder: Path) -> tuple[list[Sample], float, int]:
    """Run the sweep in `folder`; return the samples, the total seconds and the number of trials at a time."""
    space = folder / "load.yaml"
    base = f"base: {{dataset: digits, usl_epochs: {epochs}, le_epochs: 1}}"
    space.write_text(f"name: load\n{base}\nsearch: {{seed: {{grid: {list(range(trials))}}}}}\n")
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment.pop("RAY_ADDRESS", None)
    began = time.monotonic()
    with open(folder / "driver.log", "wb") as log:
        driver = subprocess.Popen(
            [sys.executable, str(ROOT / "run_sweep.py"), str(space), "--output", str(folder)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    samples = []
    while driver.poll() is None:
        output_text = (folder / "driver.log").read_text(errors="replace")
        ended = re.findall(r"^\[(\d+)/", output_text, re.MULTILINE)
        driver_sample = sample(driver.pid, time.monotonic() - began, int(ended[-1]) if ended else 0)
        samples += [driver_sample] if driver_sample is not None else []
        time.sleep(SECONDS)
    took = time.monotonic() - began
    output_text = (folder / "driver.log").read_text(errors="replace")
    slots = re.search(r"(\d+) at a time", output_text)
    if driver.returncode != 0 or slots is None:
        raise SystemExit(f"the sweep failed: {output_text[-2000:]}")
    return samples, took, int(slots[1])


def measure(samples: Sequence[Sample], took: float, slots: int, root: Path) -> dict[str, Any]:
    """Return the figures of a finished sweep."""
    results = [json.loads(path.read_text()) for path in root.glob("*/result.json")]
    trial_seconds = [result["wall_s"] for result in results]
    first = next(each for each in samples if each.finished)
    last = next(each for each in reversed(samples) if each.finished < len(results))
    trials_s = last.seconds - first.seconds
    count = last.finished - first.finished
    at = {each.finished: each for each in samples if each.finished}
    marks = [min(at, key=lambda n: abs(n - len(results) * part / 10)) for part in range(1, 11)]
    half = [each for each in samples if len(results) / 2 <= each.finished < len(results)]
    fit = statistics.linear_regression([each.finished for each in half], [each.pss_mib for each in half])
    sizes = [sum(file.stat().st_size for file in path.parent.rglob("*")) for path in root.glob("*/result.json")]
    return {
        "trials": len(results),
        "at a time": slots,
        "total, s": round(took, 1),
        "until the first trial had ended, s": first.seconds,
        "per trial: slot time, s": round(trials_s * slots / count, 3),
        "per trial: its own work (mean wall_s), s": round(statistics.mean(trial_seconds), 3),
        "per trial: overhead, s": round(trials_s * slots / count - statistics.mean(trial_seconds), 3),
        "of it, between two trials of a worker (mean), s": round(statistics.mean(gaps(root)), 3),
        "per trial: driver's processor time, s": round((last.cpu_s - first.cpu_s) / count, 4),
        "after the last trial (report), s": round(took - last.seconds, 1),
        "driver, MiB at tenths of the trials": {at[mark].finished: round(at[mark].pss_mib, 1) for mark in marks},
        "driver, KiB more per trial in the second half": round(fit.slope * 1024, 2),
        "worker, MiB at the first tenth and at the end": [
            round(at[mark].worker_mib, 1) for mark in (marks[0], last.finished)
        ],
        "disk per trial, KiB": round(statistics.median(sizes) / 1024, 1),
    }


def gaps(root: Path) -> Iterator[float]:
    """Yield the seconds between a trial's result and the start of the next trial in the same process."""
    spans: dict[int, list[tuple[float, float]]] = {}
    for path in root.glob("*/attempt.json"):
        begun = json.loads(path.read_text())
        ended = (path.parent / "result.json").stat().st_mtime
        spans.setdefault(begun["pid"], []).append((begun["started"], ended))
    for process_spans in spans.values():
        process_spans.sort()
        yield from (after[0] - before[1] for before, after in itertools.pairwise(process_spans))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sweep, and print and write the figures."""
    parser = argparse.ArgumentParser(description="A sweep of very many very short trials.")
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=0, help="pretraining epochs (0)")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="where the JSON goes")
    parser.add_argument("--keep", type=Path, help="a new directory for the sweep (default: a temporary one)")
    parsed = parser.parse_args(argv)
    if parsed.keep is not None:
        parsed.keep.mkdir(parents=True)
    folder = (parsed.keep or Path(tempfile.mkdtemp(prefix="raysweep-load-"))).resolve()
    samples, took, slots = run(parsed.trials, parsed.epochs, folder)
    figures = measure(samples, took, slots, folder / "load")
    for name, value in figures.items():
        print(f"{name:55} {value}")
    parsed.results.mkdir(parents=True, exist_ok=True)
    content = {
        "command": shlex.join(["benchmarks/load.py", *(sys.argv[1:] if argv is None else argv)]),
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, {platform.system()}",
        **figures,
        "samples": [asdict(each) for each in samples[:: max(1, len(samples) // 100)]],
    }
    (parsed.results / f"load-{parsed.trials}.json").write_text(json.dumps(content, indent=1) + "\n")
    if parsed.keep is None:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
