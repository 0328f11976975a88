"""Kill a sweep at random moments, resume it every time, and compare its outcome with that of a sweep left alone.

    python benchmarks/chaos.py --kills 20 --seed 0

runs `run_sweep.py` on Ray twice: once undisturbed, and once with kills. A victim is the driver, a worker, the raylet,
the GCS server, everything at once (all by SIGKILL), or the driver's session by Ctrl-C, or the driver by SIGTERM. After
a worker's death the same driver must go on; after any other, what is left is killed too and `--resume` goes on.

Exit status 0 if no finished trial was run again, no metric, table, figure or encoder differs, and no step is in
TensorBoard twice; 1 otherwise. Needs Linux (`/proc`).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
VICTIMS = ("driver", "worker", "raylet", "gcs", "everything", "ctrl-c", "sigterm")
MARK = "RAYSWEEP_CHAOS"  # an environment variable that all processes of the sweep inherit, and no others
OWN = ("wall_s", "attempts", "pretrain/images_per_s")  # columns that differ from run to run
EARLY = 0.2  # of the kills come before the driver has begun its first trial
LONGEST = 1200.0  # seconds after which an undisturbed run, or a resume, counts as hanging
SPACE = """\
name: chaos
base: {{usl_type: ae_parallel, dataset: digits, batch_size: 100, usl_epochs: {epochs}, le_epochs: {le_epochs},
       probe_every: 2, images_every: 3}}
search:
  alpha: {{grid: [0.01, 1.0]}}
  seed: {{grid: {seeds}}}
baseline: true
tune: {{checkpoint_seconds: 0, max_failures: 100}}
resources: {{cpu: {cpu}}}
"""


@dataclass
class Outcome:
    """What happened, and what it changed."""

    kills: Counter[str] = field(default_factory=Counter)
    resumes: int = 0
    ended_alone: list[str] = field(default_factory=list)
    """Drivers that ended without being told to, and how."""
    hung: list[str] = field(default_factory=list)
    """Victims after whose death the driver had not ended when the patience was over."""
    again: set[str] = field(default_factory=set)
    """Finished trials that were run again."""
    differing: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)

    @property
    def lost(self) -> bool:
        """Whether the kills changed anything."""
        return bool(self.again or self.differing or self.duplicates or self.ended_alone)


class Driver:
    """The real command in a session of its own, its output in a file.

    Args:
        arguments: of `run_sweep.py`.
        log: where standard output and error go.
        mark: the value of `MARK` by which its processes are found.
        scratch: where Ray keeps its sessions; a short path, because sockets lie in it.
    """

    def __init__(self, arguments: Sequence[str], log: Path, mark: str, scratch: Path) -> None:
        self.mark, self.log, self.started = mark, log, time.monotonic()
        environment = {**os.environ, MARK: mark, "RAY_TMPDIR": str(scratch)}
        environment.pop("RAY_ADDRESS", None)
        with open(log, "wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "run_sweep.py"), *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def ended(self) -> bool:
        """Whether it has."""
        return self.process.poll() is not None

    @property
    def stuck(self) -> bool:
        """Whether there is nothing to wait for: it has ended, or seems never to."""
        return self.ended or time.monotonic() - self.started > LONGEST

    @property
    def status(self) -> str:
        """How it ended, and the last it said."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        said = [line for line in lines if not line.startswith("[20")]  # without the dump of a crash inside Ray
        return f"exit {self.process.returncode} ({said[-1][:80] if said else ''})"

    def wait(self, seconds: float, look: Callable[[], None]) -> bool:
        """Whether it ends within so many seconds; `look` is called all the while."""
        end = time.monotonic() + seconds
        while not self.ended and time.monotonic() < end:
            look()
            time.sleep(min(0.1, max(0.0, end - time.monotonic())))
        return self.ended

    def clean_up(self) -> None:
        """Kill whatever of it is left, and see it gone."""
        while found := processes(self.mark):
            for pid in found:
                send(pid, signal.SIGKILL)
            self.process.poll()  # else it stays as a zombie
            time.sleep(0.05)
        self.process.wait()


def processes(mark: str) -> dict[int, str]:
    """The living processes of one sweep and their titles."""
    found = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                if f"{MARK}={mark}".encode() in (path / "environ").read_bytes().split(b"\0"):
                    found[int(path.name)] = (
                        (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    )
            except OSError:  # it has just ended, or is another user's
                continue
    return found


def send(pid: int, number: signal.Signals) -> None:
    """Signal a process that may be gone already."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def strike(victim: str, driver: Driver, draws: random.Random) -> bool:
    """Kill the victim; false as long as there is none."""
    found = processes(driver.mark)
    if victim in ("driver", "sigterm"):
        number = signal.SIGKILL if victim == "driver" else signal.SIGTERM
        send(driver.process.pid, number)
    elif victim == "ctrl-c":
        os.killpg(driver.process.pid, signal.SIGINT)  # as a terminal does
    elif victim == "everything":
        for pid in found:
            send(pid, signal.SIGKILL)
    else:
        titles = {"worker": "ray::ImplicitFunc", "raylet": "/raylet/raylet ", "gcs": "/gcs_server "}
        fitting = sorted(pid for pid, title in found.items() if titles[victim] in title)
        if not fitting:
            return False
        send(draws.choice(fitting), signal.SIGKILL)
    return True


class Watched:
    """The finished trials of a sweep's directory, and whether they stay as they are.

    Args:
        root: the sweep's directory, which may not exist yet.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.seen: dict[str, tuple[object, ...]] = {}
        self.again: set[str] = set()

    def look(self) -> None:
        """Note what has finished, and what was finished and is no longer what it was."""
        for name, was in self.seen.items():
            if self._identity(self.root / name) != was:
                self.again.add(name)
        for path in self.root.glob("*/result.json"):
            if path.parent.name not in self.seen and json.loads(path.read_text())["status"] == "finished":
                self.seen[path.parent.name] = self._identity(path.parent)

    def attempts(self) -> int:
        """How often a trial was begun."""
        return sum(self._attempt(path.parent) for path in self.root.glob("*/attempt.json"))

    @staticmethod
    def _attempt(trial: Path) -> int:
        return int(json.loads((trial / "attempt.json").read_text())["attempt"])

    def _identity(self, trial: Path) -> tuple[object, ...]:
        """Which file the result is, from when, and after which attempt."""
        try:
            of = (trial / "result.json").stat()
            return of.st_ino, of.st_mtime_ns, self._attempt(trial)
        except FileNotFoundError:
            return ()


def victims(kills: int, draws: random.Random) -> Iterator[str]:
    """So many victims in random order, every kind before any comes again."""
    for number in range(kills):
        if number % len(VICTIMS) == 0:
            deck = draws.sample(VICTIMS, len(VICTIMS))
        yield deck[number % len(VICTIMS)]


def undisturbed(space: Path, output: Path, scratch: Path) -> tuple[float, float]:
    """Run the reference; the seconds until its first trial began and those from there to the end."""
    driver = Driver([str(space), "--name", "chaos", "--output", str(output)], output / "driver.log", "ref", scratch)
    began: list[float] = []

    def look() -> None:
        if not began and any(output.glob("chaos/*/attempt.json")):
            began.append(time.monotonic() - driver.started)

    ended = driver.wait(LONGEST, look)
    if not ended or driver.process.returncode != 0:
        driver.clean_up()
        raise SystemExit(f"the undisturbed sweep did not finish: {driver.status}; see {driver.log}")
    return began[0], time.monotonic() - driver.started - began[0]


def disturbed(
    space: Path, output: Path, scratch: Path, kills: int, seed: int, start_s: float, work_s: float, patience: float
) -> Outcome:
    """Run the sweep with kills, to its end.

    Args:
        space: its search space.
        output: where its directory is made.
        scratch: for Ray.
        kills: how many.
        seed: of the victims and moments.
        start_s: seconds that a driver needs until trials run.
        work_s: seconds that the trials need: the kills are spread over them.
        patience: seconds that a driver gets to end once its raylet or GCS server is dead, or it was asked to.
    """
    draws, outcome, root, mark = random.Random(seed), Outcome(), output / "chaos", uuid.uuid4().hex
    watched = Watched(root)
    begun = time.monotonic()

    def start(number: int) -> Driver:
        if (root / "sweep.yaml").exists():
            outcome.resumes += 1
            arguments = ["--resume", str(root)]
        else:  # killed before there was a sweep
            arguments = [str(space), "--name", "chaos", "--output", str(output)]
        return Driver(arguments, output / f"driver-{number:02}.log", mark, scratch)

    driver, before = start(0), 0
    for number, victim in enumerate(victims(kills, draws), start=1):
        early, struck = draws.random() < EARLY, False
        moment = draws.uniform(0, start_s if early else 1.5 * work_s / kills)
        while not early and not driver.stuck and watched.attempts() == before:
            driver.wait(0.1, watched.look)
        driver.wait(moment, watched.look)
        while not driver.stuck and not (struck := strike(victim, driver, draws)):
            driver.wait(0.1, watched.look)
        if not struck:
            if driver.process.poll() == 0:
                tell(begun, f"the sweep is over after {number - 1} kills: give it more --trials or --epochs")
                outcome.ended_alone.append("over before its kills")
                break
            tell(begun, f"no kill {number}: the driver is no longer there, or hangs: {driver.status}")
            outcome.ended_alone.append(driver.status)
        outcome.kills[victim] += struck
        when = f"after {moment:4.1f} s of {'starting' if early else 'work'}"
        if victim == "worker" and not driver.wait(1.0, watched.look):
            watched.look()
            tell(begun, f"kill {number:2}: {victim:10} {when}; {len(watched.seen)} finished; it goes on")
            before = -1  # it is at work already
            continue
        if victim == "worker" and driver.ended and struck:
            outcome.ended_alone.append(driver.status)
        told = time.monotonic()
        if not driver.wait(patience, watched.look):
            outcome.hung.append(victim)
        took, hung = time.monotonic() - told, not driver.ended
        driver.clean_up()
        how = f"hung for {took:.0f} s" if hung else f"{driver.status} after {took:.1f} s"
        watched.look()
        tell(begun, f"kill {number:2}: {victim:10} {when}; {len(watched.seen)} finished; {how}")
        driver, before = start(number), watched.attempts()
    ended = driver.wait(LONGEST, watched.look)
    driver.clean_up()
    watched.look()
    tell(begun, f"the last run: {'' if ended else 'hung, '}{driver.status}")
    if driver.process.returncode != 0:
        outcome.ended_alone.append(driver.status)
    outcome.again = watched.again
    return outcome


def compare(reference: Path, got: Path) -> tuple[list[str], list[str]]:
    """What differs between the two sweeps' directories, and which steps are in TensorBoard twice, in words."""
    differing = [f"results.csv: {line}" for line in compare_tables(reference / "results.csv", got / "results.csv")]
    differing += [f"summary.csv: {line}" for line in compare_tables(reference / "summary.csv", got / "summary.csv")]
    files = {"differences.csv"}
    for root in (reference, got):
        files |= {
            str(path.relative_to(root)) for path in (*root.glob("figures/*.png"), *root.glob("*/encoder.safetensors"))
        }
    for name in sorted(files):
        one, other = reference / name, got / name
        if not one.exists() or not other.exists() or one.read_bytes() != other.read_bytes():
            differing.append(name)
    duplicates = []
    for trial in sorted(path.parent.name for path in reference.glob("*/result.json")):
        expected, found = curves(reference / trial), curves(got / trial)
        for tag in sorted({*expected, *found} - {*OWN}):
            steps = [step for step, _ in found.get(tag, [])]
            duplicates += [f"{trial}: {tag}: step {step}" for step, count in Counter(steps).items() if count > 1]
            if sorted(set(found.get(tag, []))) != sorted(set(expected.get(tag, []))):
                differing.append(f"{trial}: TensorBoard's {tag}")
    return differing, duplicates


def compare_tables(reference: Path, got: Path) -> list[str]:
    """The cells in which two CSV files differ, the columns aside that differ from run to run."""
    if not got.exists():
        return ["is missing"]
    tables = []
    for path in (reference, got):
        with open(path, newline="") as file:
            tables.append(list(csv.DictReader(file)))
    one, other = tables
    if len(one) != len(other):
        return [f"{len(other)} rows instead of {len(one)}"]
    return [
        f"{row['point']}: {key}: {row.get(key)} became {now.get(key)}"
        for row, now in zip(one, other, strict=True)
        for key in dict.fromkeys([*row, *now])
        if key.split(" ")[0] not in OWN and row.get(key) != now.get(key)
    ]


def curves(trial: Path) -> dict[str, list[tuple[int, object]]]:
    """By tag, the steps and values that a fresh reader of the trial's events sees: scalars, and pictures as bytes."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trial), size_guidance={"scalars": 0, "images": 0}).Reload()
    found: dict[str, list[tuple[int, object]]] = {}
    for tag in events.Tags()["scalars"]:
        found[tag] = [(event.step, event.value) for event in events.Scalars(tag)]
    for tag in events.Tags()["images"]:
        found[tag] = [(event.step, event.encoded_image_string) for event in events.Images(tag)]
    return found


def tell(begun: float, text: str) -> None:
    """One line, with the time since the beginning."""
    print(f"{time.monotonic() - begun:6.1f} s  {text}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the two sweeps and print what differs; returns the exit status."""
    parser = argparse.ArgumentParser(description="Kill a sweep at random moments, resume it, and compare the outcome.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the victims and of the moments (0)")
    parser.add_argument("--trials", type=int, default=12, help="at least; three to a seed (12)")
    parser.add_argument("--epochs", type=int, default=16, help="of pretraining, per trial (16)")
    parser.add_argument("--le_epochs", type=int, default=30, help="of the linear probe (30)")
    parser.add_argument("--patience", type=float, default=30.0, help="seconds for a driver to end by itself (30)")
    parser.add_argument("--out", type=Path, help="a new directory, which is kept (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="also write the outcome there")
    parsed = parser.parse_args(argv)
    if parsed.out is not None:
        parsed.out.mkdir(parents=True)
    folder = (parsed.out or Path(tempfile.mkdtemp(prefix="raysweep-chaos-"))).resolve()
    scratch = Path(tempfile.mkdtemp(prefix="chaos"))
    try:
        outcome = run(parsed, folder, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    show(outcome)
    if parsed.json is not None:
        content: dict[str, Any] = {
            "command": shlex.join(["benchmarks/chaos.py", *(sys.argv[1:] if argv is None else argv)]),
            **vars(outcome),
            "again": sorted(outcome.again),
        }
        parsed.json.write_text(json.dumps(content, indent=1) + "\n")
    if outcome.lost:
        print(f"both sweeps and the drivers' output lie in {folder}")
        return 1
    if parsed.out is None:
        shutil.rmtree(folder)
    return 0


def run(parsed: argparse.Namespace, folder: Path, scratch: Path) -> Outcome:
    """Both sweeps, compared."""
    space, reference, got = folder / "chaos.yaml", folder / "undisturbed", folder / "disturbed"
    reference.mkdir()
    got.mkdir()
    seeds = list(range(-(-parsed.trials // 3)))
    cpu = max(1, (os.cpu_count() or 1) // 2)  # two trials at a time on any machine, so that some wait
    space.write_text(SPACE.format(epochs=parsed.epochs, le_epochs=parsed.le_epochs, seeds=seeds, cpu=cpu))
    start_s, work_s = undisturbed(space, reference, scratch)
    print(f"undisturbed: {3 * len(seeds)} trials in {start_s + work_s:.0f} s, of which {start_s:.0f} s to start")
    outcome = disturbed(space, got, scratch, parsed.kills, parsed.seed, start_s, work_s, parsed.patience)
    outcome.differing, outcome.duplicates = compare(reference / "chaos", got / "chaos")
    return outcome


def show(outcome: Outcome) -> None:
    """The counts, and what they count."""
    by_victim = ", ".join(f"{victim} {outcome.kills[victim]}" for victim in VICTIMS if outcome.kills[victim])
    print(f"kills                        {outcome.kills.total()}  ({by_victim})")
    print(f"resumes                      {outcome.resumes}")
    print(f"drivers that did not end     {len(outcome.hung)}  {', '.join(outcome.hung)}")
    for words, of in (
        ("drivers that failed alone   ", outcome.ended_alone),
        ("finished trials run again   ", sorted(outcome.again)),
        ("differing metrics           ", outcome.differing),
        ("duplicate TensorBoard steps ", outcome.duplicates),
    ):
        print(f"{words} {len(of)}")
        for line in of[:20]:
            print(f"    {line}")


if __name__ == "__main__":
    sys.exit(main())
