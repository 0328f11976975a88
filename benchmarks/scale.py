"""The limits of a sweep of very many trials on very many nodes, measured on one machine.

    python benchmarks/scale.py                     # 5 minutes on two cores
    python benchmarks/scale.py --only storage      # one part

- driver: runs sweeps on Ray with many logical cores. Their trials sleep, report and write files as real trials do, so
  more trials run at a time than there are processors. Everything else is as in `run_sweep.py`. Starting a worker takes
  one second of a processor and 0.12 GiB, so two cores start 24 workers in half a minute.
- storage: counts the files that one real trial leaves, its system calls (with strace, if installed) and its requests to
  a bucket (on a local S3 server).
- tensorboard: measures how long the page takes for many trials, and its memory.
- start: reads and writes a sweep of 10,000 trials, reads it again as a resume does, and reports on it.
- dataset: computes the memory that each dataset takes on every node.

The script writes `benchmarks/results/scale.json`. It needs Linux (`/proc`).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import load
import measure

from raysweep.results.trial_directory import at_work

SLEEP = "RAYSWEEP_SCALE"  # the workers' environment variable that holds the case
PARTS = ("dataset", "storage", "start", "tensorboard", "driver")
# Settings of the trial whose storage is counted.
TRIAL = {"usl_epochs": 4, "le_epochs": 6, "images_every": 2, "probe_every": 2}
CALLS = "%file,fsync,fdatasync,flock,read,pread64,write,ftruncate,getdents64"


@dataclass(frozen=True)
class Case:
    """A sweep whose trials sleep."""

    slots: int
    """The number of logical cores, which is the number of trials at a time."""
    trials: int
    reports: int
    """The reports of each trial, without the last one."""
    seconds: float
    """The time between two reports."""
    paced: bool = False
    """Whether a trial reports as rarely as the driver's answers require; `seconds` is then the shortest interval."""


CASES = {
    "many short trials": Case(slots=8, trials=800, reports=0, seconds=0.0),
    "as many reports as it takes": Case(slots=8, trials=16, reports=1000, seconds=0.0),
    "the same, paced": Case(slots=8, trials=16, reports=1000, seconds=0.01, paced=True),
    "a report a second": Case(slots=24, trials=96, reports=10, seconds=1.0),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="What limits a sweep of very many trials on very many nodes.")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, help="run only these parts; other results stay"
    )
    sizes = ("SLOTS", "TRIALS", "REPORTS")
    parser.add_argument("--case", type=int, nargs=3, metavar=sizes, help="an additional case of `driver`")
    parser.add_argument("--case_seconds", type=float, default=1.0, help="seconds between two reports in this case (1)")
    parser.add_argument("--trials", type=int, default=10_000, help="number of trials of `start` (10,000)")
    parser.add_argument("--runs", type=int, default=500, help="number of runs of `tensorboard` (500)")
    parser.add_argument("--drive", help=argparse.SUPPRESS)  # a case, in a separate process
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a real trial in a separate process, for strace
    parsed = parser.parse_args(argv)
    if parsed.drive or parsed.one:
        print(json.dumps(drive(Case(**json.loads(parsed.drive))) if parsed.drive else real_trial(parsed.one, {})))
        return 0
    cases = CASES
    if parsed.case is not None:
        slots, trials, reports = parsed.case
        cases = {f"{slots} slots": Case(slots, trials, reports, parsed.case_seconds)}
    content = measure.load("scale") or {}
    folder = Path(tempfile.mkdtemp(prefix="raysweep-scale-"))
    work: dict[str, Callable[[], dict[str, Any]]] = {
        "dataset": datasets,
        "storage": lambda: {"directory": directory(folder), "bucket": bucket(folder)},
        "start": lambda: start(parsed.trials, folder),
        "tensorboard": lambda: tensorboard(parsed.runs, folder),
        "driver": lambda: {**content.get("driver", {}), **{name: driven(case) for name, case in cases.items()}},
    }
    try:
        for part in parsed.only:
            content[part] = work[part]()
            print(json.dumps({part: content[part]}, indent=1, ensure_ascii=False), flush=True)
    finally:
        shutil.rmtree(folder)
    print(measure.save("scale", {part: content[part] for part in PARTS if part in content}))
    return 0


# The driver


def sleeping(config: Mapping[str, Any], datasets: Any, options: Any) -> None:
    """Replace `run_trial`: do everything that it does, but sleep instead of running the experiment."""
    from ray import tune

    from raysweep.backends.ray import trainable
    from raysweep.backends.ray.trainable import Pace
    from raysweep.backends.stopping import StopFlag, watch
    from raysweep.results.attempts import begin_attempt
    from raysweep.results.result import make_result, write_result
    from raysweep.results.store import PUSH_SECONDS, Store

    case = json.loads(os.environ[SLEEP])
    trial, results = config["trial"], Store(options.place)
    stop = watch(StopFlag(results, options.token))
    waited: list[float] = []

    def tell(values: dict[str, Any]) -> None:
        asked = time.monotonic()
        tune.report(values)
        waited.append(time.monotonic() - asked)

    if case["paced"]:  # few trials with very frequent reports stand for very many with one report per second
        trainable.REPORT_SECONDS = case["seconds"]
    pace = Pace(tell)
    with at_work(results, trial.name) as push:
        folder = results.trial(trial.name)
        begin_attempt(folder, trial.settings)
        begun = time.monotonic()
        for at in range(case["reports"]):
            time.sleep(case["seconds"])
            stop()
            if pace.due() or not case["paced"]:
                push(every=PUSH_SECONDS)
                pace.tell({"fraction": at / (case["reports"] + 1)})
        result = make_result(
            trial,
            "none",
            folder,
            status="finished",
            error=None,
            metrics={"linear/val_accuracy": 0.5, "linear/test_accuracy": 0.5},
            wall_s=time.monotonic() - begun,
            device="cpu",
            warnings=[],
        )
        write_result(folder, result)
        (folder / "waited.json").write_text(json.dumps({"waited": waited, "mib": load.pss_mib(os.getpid())}))
    tune.report({"fraction": 1.0})


def driven(case: Case) -> dict[str, Any]:
    """Measure a case in a separate process and return its figures."""
    command = [sys.executable, __file__, "--drive", json.dumps(asdict(case))]
    environment = {**os.environ, SLEEP: json.dumps(asdict(case))}
    environment.pop("RAY_ADDRESS", None)
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    if process.returncode != 0:
        raise SystemExit(f"{case}: {process.stderr[-3000:]}")
    figures: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return {**asdict(case), **figures}


def drive(case: Case) -> dict[str, Any]:
    """Run a case as the command line would, and return its figures."""
    from raysweep.backends.ray.authentication import present_token

    present_token(None)  # must run before Ray is imported
    import ray
    from rich.console import Console

    from raysweep import space
    from raysweep.backends.display import ProgressDisplay
    from raysweep.backends.ray import tuner
    from raysweep.backends.ray.cluster import quieten
    from raysweep.backends.stopping import Stopping
    from raysweep.backends.sweep_run import SweepRun
    from raysweep.data import selection
    from raysweep.data.selection import select_data
    from raysweep.preparation import provenance
    from raysweep.report.building import build_report
    from raysweep.results.store import Store

    marks: list[tuple[str, float, float]] = []

    class Noting(ProgressDisplay):
        """The real view, which also records the time of each event."""

        def begin(self, trial: Any) -> None:
            marks.append(("begin", time.monotonic(), time.process_time()))
            super().begin(trial)

        def progress(self, trial: Any, share: float) -> None:
            marks.append(("report", time.monotonic(), time.process_time()))
            super().progress(trial, share)

        def end(self, result: Any) -> None:
            super().end(result)
            marks.append(("end", time.monotonic(), time.process_time()))

    began = time.monotonic()
    quieten()
    ray.init(
        address="local", num_cpus=case.slots, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    up = time.monotonic() - began
    description = {"base": {"usl_epochs": 0, "le_epochs": 1}, "search": {"seed": {"grid": list(range(case.trials))}}}
    sweep = space.build({"name": "scale", **description}, {}, "scale")
    data: selection.Datasets = {}
    for trial in sweep.examples:
        select_data(trial.settings, data, load=True)
    output = tempfile.mkdtemp(prefix="raysweep-scale-")
    tuner.trial_function = sleeping  # the only difference from the real command
    try:
        results = Store.plan(output, None, sweep.name)
        results.create(sweep, provenance())
        stopping = Stopping(results)
        begun = time.monotonic()
        with (
            open(os.devnull, "w") as nowhere,
            results.lock(),
            stopping.running(),
            Noting(sweep, [], Console(file=nowhere)) as view,
        ):
            tuner.run(SweepRun(sweep, list(sweep.trials), [], results, data, view, stopping))
        mib = load.pss_mib(os.getpid())
        ended = time.monotonic()
        build_report(results, sweep)
        reported = time.monotonic() - ended
        notes = [json.loads(path.read_text()) for path in results.root.glob("*/waited.json")]
        trial_seconds = [json.loads(path.read_text())["wall_s"] for path in results.root.glob("*/result.json")]
    finally:
        shutil.rmtree(output)
        ray.shutdown()
    assert len(trial_seconds) == case.trials
    waited = sorted(each for note in notes for each in note["waited"])
    figures = {
        "Ray up, s": up,
        "until all slots have a trial, s": nth(marks, "begin", min(case.slots, case.trials))[1] - begun,
        "report, s": reported,
        "driver at the end, MiB": mib,
        "worker, MiB": statistics.median(note["mib"] for note in notes),
        **steady(marks, case),
    }
    if waited:
        figures["trials' time that goes into waiting for the driver"] = sum(waited) / sum(trial_seconds)
        figures["a report waits for the driver, median s"] = statistics.median(waited)
        figures["and in one case of a hundred, s"] = waited[int(len(waited) * 0.99)]
    if case.seconds and case.reports and not case.paced:
        first, last = nth(marks, "begin", case.slots), nth(marks, "end", case.trials - case.slots + 1)
        inside = sum(kind == "end" and first[1] < at <= last[1] for kind, at, _ in marks)
        figures["share of the slots' time that trials have"] = (
            inside * statistics.mean(trial_seconds) / (case.slots * (last[1] - first[1]))
        )
    return {name: measure.significant(value) for name, value in figures.items()}


def nth(marks: Sequence[tuple[str, float, float]], kind: str, number: int) -> tuple[str, float, float]:
    """Return the mark of the `number`-th event of this kind."""
    return [mark for mark in marks if mark[0] == kind][number - 1]


def steady(marks: Sequence[tuple[str, float, float]], case: Case) -> dict[str, float]:
    """Return what events cost the driver while all slots are in use."""
    first = nth(marks, "begin", case.slots)
    last = nth(marks, "end", case.trials - case.slots + 1)
    if case.trials > 4 * case.slots:  # a worker's first trial also imports modules
        first = nth(marks, "end", 2 * case.slots)
    if case.reports and case.trials <= 2 * case.slots:  # reports only: measure until the first trial ends
        last = nth(marks, "end", 1)
    window = [mark for mark in marks if first[1] < mark[1] < last[1]]
    kinds = Counter(kind for kind, _, _ in window)
    seconds, used = last[1] - first[1], last[2] - first[2]
    steady_figures = {
        "steady: seconds": seconds,
        "steady: driver's share of a processor": used / seconds,
        "steady: reports a second": kinds["report"] / seconds,
    }
    if kinds["end"]:
        steady_figures["steady: trials a second"] = kinds["end"] / seconds
    if not case.reports:
        steady_figures["driver's processor time per trial, s"] = used / kinds["end"]
    elif not kinds["end"]:
        steady_figures["driver's processor time per report, s"] = used / kinds["report"]
    return steady_figures


# Storage


def real_trial(
    place: str, changed: Mapping[str, Any], phase: Callable[[str], None] = lambda name: None
) -> dict[str, Any]:
    """Run one trial in the results directory at `place`, with the steps of its worker and then of the driver."""
    from raysweep import space
    from raysweep.backends.stopping import StopFlag
    from raysweep.data import selection
    from raysweep.data.selection import select_data
    from raysweep.results.store import Store
    from raysweep.trial import run_trial

    data: selection.Datasets = {}
    checkpoint_seconds = float(changed.get("checkpoint_seconds", 1e9))
    settings = {name: value for name, value in changed.items() if name != "checkpoint_seconds"}
    sweep = space.build({"name": "one", "base": {**TRIAL, **settings}}, {}, "one")
    trial = sweep.trials[0]
    select_data(trial.settings, data, load=True)
    results = Store(place)
    results.create(sweep, {})
    phase("the trial")
    with at_work(results, trial.name) as push:
        run_trial(
            trial,
            data,
            results.trial(trial.name),
            threads=1,
            gpu=False,
            checkpoint_seconds=checkpoint_seconds,
            saved=push,
        )
    phase("the driver, at its end")
    results.pull(trial.name)
    assert results.result(trial.name) is not None
    phase("a look whether to leave")
    StopFlag(results, "none").is_set()
    phase("")
    return {"trial": trial.name}


def directory(folder: Path) -> dict[str, Any]:
    """Count the files that a trial leaves in a directory and the system calls that it makes there."""
    place = folder / "plain"
    command = [sys.executable, __file__, "--one", str(place)]
    log = folder / "strace.log"
    traced = shutil.which("strace") is not None
    if traced:
        command = ["strace", "-f", "--seccomp-bpf", "-y", "-qq", "-e", f"trace={CALLS}", "-o", str(log), *command]
    name = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    root = place / name["trial"]
    sizes = {str(path.relative_to(root)): path.stat().st_size for path in sorted(root.rglob("*")) if path.is_file()}
    return {
        "files": sizes,
        "number of files": len(sizes),
        "bytes": sum(sizes.values()),
        "event file": event_bytes(next(root.glob("events.*"))),
        "system calls": dict(calls(log, place).most_common()) if traced else "not counted: no strace here",
    }


def calls(log: Path, place: Path) -> Counter[str]:
    """Count the system calls on paths below `place`, by name."""
    counts: Counter[str] = Counter()
    for line in log.read_text(errors="replace").splitlines():
        call = re.match(r"\d+ +(\w+)\(", line)
        if call is not None and str(place) in line.partition(" = ")[0]:
            counts[call[1]] += 1
    del counts["execve"]  # the command itself
    return counts


def event_bytes(path: Path) -> dict[str, Any]:
    """Return how much of an event file is points and how much is pictures."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    scalars, pictures = [], []
    for event in EventFileLoader(str(path)).Load():
        values = event.summary.value
        if values and values[0].metadata.plugin_data.plugin_name == "images":
            pictures.append(event.ByteSize())
        elif event.step:
            scalars.append(event.ByteSize())
    return {
        "events with points": len(scalars),
        "bytes of one": round(statistics.mean(scalars)),
        "pictures": len(pictures),
        "bytes of a picture": round(statistics.mean(pictures)) if pictures else 0,
    }


class Requests:
    """A WSGI application that counts the requests to another application."""

    def __init__(self, application: Any) -> None:
        self.application = application
        self.phase = ""
        self.counts: dict[str, Counter[str]] = {}

    def __call__(self, environment: dict[str, Any], start_response: Any) -> Any:
        """Count the request and pass it on."""
        if self.phase:
            method, query = environment["REQUEST_METHOD"], environment.get("QUERY_STRING", "")
            kind = "LIST" if method == "GET" and "list-type" in query else method
            counter = self.counts.setdefault(self.phase, Counter())
            counter[kind] += 1
            if method == "PUT":
                counter["bytes"] += int(
                    environment.get("HTTP_X_AMZ_DECODED_CONTENT_LENGTH") or environment["CONTENT_LENGTH"]
                )
        return self.application(environment, start_response)


@contextmanager
def s3() -> Iterator[Requests]:
    """Run an S3 server on this machine, with the environment variables that point to it."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    requests = Requests(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, requests, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        yield requests
    finally:
        server.shutdown()


def bucket(folder: Path) -> dict[str, Any]:
    """Count the requests of a trial, its driver and each checkpoint to a bucket."""
    import boto3

    figures_by_phase: dict[str, dict[str, int]] = {}
    os.environ["RAYSWEEP_CACHE"] = str(folder / "cache")
    with s3() as requests:

        def enter(phase: str) -> None:
            requests.phase = phase

        boto3.client("s3").create_bucket(Bucket="scale")
        for name, seconds in (("none", 1e9), ("each epoch", 0.0)):
            requests.counts = {}
            real_trial(f"s3://scale/{name.replace(' ', '-')}", {"checkpoint_seconds": seconds}, enter)
            if name == "none":
                figures_by_phase = {phase: dict(counter) for phase, counter in requests.counts.items()}
            else:
                plain, often = Counter(figures_by_phase["the trial"]), requests.counts["the trial"]
                # Each step of the epochs and the probe saves a checkpoint of two files; older ones are removed.
                saves = (often["LIST"] - plain["LIST"]) // 2
                figures_by_phase["a checkpoint"] = {
                    kind: round((often[kind] - plain[kind]) / saves, 1) for kind in often
                }
                figures_by_phase["checkpoints that this is the mean of"] = {"checkpoints": saves}
    return figures_by_phase


# TensorBoard, start-up, datasets


def tensorboard(runs: int, folder: Path) -> dict[str, Any]:
    """Measure how long TensorBoard takes to read `runs` trials, and its memory afterwards."""
    from raysweep.results.events import Events

    root = folder / "many"
    points = dict.fromkeys(("rec_loss", "emb_loss", "loss", "images_per_s"), 0.5)
    for number in range(runs):
        trial = root / f"alpha={number}"
        trial.mkdir(parents=True)
        events = Events(trial, 1, None)
        events.hyperparameters({"alpha": number})
        for epoch in range(1, 401):  # the default number of epochs
            events.scalars({f"pretrain/{name}": value for name, value in points.items()}, epoch)
        for epoch in range(1, 301):
            events.scalars({"linear/train_accuracy": 0.5, "linear/val_accuracy": 0.5}, epoch)
        events.end(finished=True)
        events.close()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = Path(sys.executable).with_name("tensorboard")
    began = time.monotonic()
    server = subprocess.Popen(
        [str(script), "--logdir", str(root), "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while True:
            with suppress(OSError):
                address = f"http://127.0.0.1:{port}/data/plugin/scalars/tags"
                with urllib.request.urlopen(address, timeout=30) as answer:
                    tags = json.load(answer)
                if sum("linear/val_accuracy" in scalars for scalars in tags.values()) == runs:
                    break
            if server.poll() is not None or time.monotonic() - began > 120:
                return {"trials": runs, "failed": "not read within 120 s"}
            time.sleep(0.25)
        took = time.monotonic() - began
        pids = [server.pid, *children(server.pid)]
        mib = sum(load.pss_mib(pid) for pid in pids)
    finally:
        server.terminate()
        server.wait()
    size = next(root.glob("*/events*")).stat().st_size
    return {
        "trials": runs,
        "bytes of an event file of the default length, without pictures": size,
        "until all are shown, s": measure.significant(took),
        "memory, MiB": measure.significant(mib),
        "memory per trial, KiB": measure.significant(mib * 1024 / runs),
    }


def children(parent: int) -> Iterable[int]:
    """Yield the child processes of a process."""
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with suppress(OSError):
                if int((path / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                    yield int(path.name)


def start(trials: int, folder: Path) -> dict[str, Any]:
    """Time a sweep of `trials` trials: starting it, reading it again for a resume after all ended, and the report."""
    from raysweep import space
    from raysweep.report.building import build_report
    from raysweep.results.attempts import begin_attempt
    from raysweep.results.result import make_result, write_result
    from raysweep.results.store import Store

    took: dict[str, float] = {}
    description = {"base": {"usl_epochs": 1}, "search": {"seed": {"grid": list(range(trials))}}}

    @contextmanager
    def timed(what: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        took[what] = measure.significant(time.perf_counter() - begun)

    with timed("the points are made, s"):
        sweep = space.build({"name": "start", **description}, {}, "start")
    results = Store.plan(folder, None, sweep.name)
    with timed("sweep.yaml is written, s"):
        results.create(sweep, {})
    for number, trial in enumerate(sweep.trials):
        path = results.trial(trial.name)
        path.mkdir()
        begin_attempt(path, trial.settings)
        metrics = {"linear/val_accuracy": number / trials, "linear/test_accuracy": number / trials}
        finished = make_result(
            trial, "x", path, status="finished", error=None, metrics=metrics, wall_s=1.0, device="cpu", warnings=[]
        )
        write_result(path, finished)
    with timed("sweep.yaml is read again, s"):
        opened, sweep = Store.open(results.root)
    with timed("the trials' states are read again, s"):
        opened.check_settings_of_attempts(sweep)
        opened.set_damaged_aside(sweep)
        opened.results(sweep)
    with timed("the report is made, s"):
        build_report(opened, sweep)
    return {"trials": trials, **took, "this process, MiB": round(load.pss_mib(os.getpid()), 1)}


def datasets() -> dict[str, Any]:
    """Return the size of each dataset in a node's object store, at one byte per value."""
    from raysweep import parts

    return {
        f"{name}, MiB": measure.significant(
            (traits["images"] + traits["unlabelled"]) * traits["channels"] * traits["size"] ** 2 / load.MEBIBYTE
        )
        for name, traits in ((part.name, part.traits) for part in parts.dataset.values())
    }


if __name__ == "__main__":
    sys.exit(main())
