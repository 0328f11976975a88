"""Kill a sweep at random moments, resume it every time, and compare its results with an undisturbed sweep's.

    python benchmarks/chaos.py --kills 20 --seed 0

This runs `run_sweep.py` on Ray twice: once undisturbed, and once with kills. SIGKILL hits the driver, a worker, the
raylet, the GCS server, or everything at once. Ctrl-C hits the driver's session, and SIGTERM the driver. After the death
of a worker, the same driver must continue. After any other kill, the remaining processes are killed too, and the sweep
continues with `--resume`.

The exit status is 0 if no finished trial was run again, no metric, table, figure or encoder differs, and no step is in
TensorBoard twice; otherwise it is 1. The script needs Linux (`/proc`).
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
EARLY = 0.2  # the share of kills before the driver has begun its first trial
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
    """The events of the disturbed sweep and their effects."""

    kills: Counter[str] = field(default_factory=Counter)
    resumes: int = 0
    ended_alone: list[str] = field(default_factory=list)
    """How drivers ended that ended on their own."""
    hung: list[str] = field(default_factory=list)
    """The victims after whose death the driver did not end within the patience."""
    again: set[str] = field(default_factory=set)
    """Finished trials that were run again."""
    differing: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)

    @property
    def lost(self) -> bool:
        """Return whether the kills changed anything."""
        return bool(self.again or self.differing or self.duplicates or self.ended_alone)


class Driver:
    """The real command in a separate session; its output goes to a file.

    Args:
        arguments: the arguments of `run_sweep.py`.
        log: the file for standard output and error.
        mark: the value of `MARK` that identifies its processes.
        scratch: the directory of Ray's sessions. The path must be short, because Ray puts sockets there.
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
        """Whether the driver has ended."""
        return self.process.poll() is not None

    @property
    def stuck(self) -> bool:
        """Whether waiting is useless: the driver has ended, or has run for longer than `LONGEST`."""
        return self.ended or time.monotonic() - self.started > LONGEST

    @property
    def status(self) -> str:
        """The exit status and the last line of output."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        printed = [line for line in lines if not line.startswith("[20")]  # leaves out Ray's crash dumps
        return f"exit {self.process.returncode} ({printed[-1][:80] if printed else ''})"

    def wait(self, seconds: float, look: Callable[[], None], until: Callable[[], bool] = lambda: False) -> bool:
        """Wait up to `seconds` or `until` something holds, and return whether the driver ended.

        `look` is called repeatedly.
        """
        end = time.monotonic() + seconds
        while not self.ended and time.monotonic() < end and not until():
            look()
            time.sleep(min(0.1, max(0.0, end - time.monotonic())))
        return self.ended

    def clean_up(self) -> None:
        """Kill all remaining processes, and wait until they are gone."""
        while left := processes(self.mark):
            for pid in left:
                send(pid, signal.SIGKILL)
            self.process.poll()  # otherwise it stays as a zombie
            time.sleep(0.05)
        self.process.wait()


def processes(mark: str) -> dict[int, str]:
    """Return the living processes of one sweep as a mapping from pid to title."""
    titles_by_pid = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                if f"{MARK}={mark}".encode() in (path / "environ").read_bytes().split(b"\0"):
                    titles_by_pid[int(path.name)] = (
                        (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    )
            except OSError:  # the process has just ended, or belongs to another user
                continue
    return titles_by_pid


def send(pid: int, number: signal.Signals) -> None:
    """Signal a process that may already be gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def strike(victim: str, driver: Driver, draws: random.Random) -> bool:
    """Kill the victim; return False if there is none yet."""
    living = processes(driver.mark)
    if victim in ("driver", "sigterm"):
        number = signal.SIGKILL if victim == "driver" else signal.SIGTERM
        send(driver.process.pid, number)
    elif victim == "ctrl-c":
        os.killpg(driver.process.pid, signal.SIGINT)  # as a terminal sends it
    elif victim == "everything":
        for pid in living:
            send(pid, signal.SIGKILL)
    else:
        titles = {"worker": "ray::ImplicitFunc", "raylet": "/raylet/raylet ", "gcs": "/gcs_server "}
        fitting = sorted(pid for pid, title in living.items() if titles[victim] in title)
        if not fitting:
            return False
        send(draws.choice(fitting), signal.SIGKILL)
    return True


class Watched:
    """The finished trials in a sweep's directory, and the finished trials that changed afterwards.

    Args:
        root: the sweep's directory, which may not exist yet.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.seen: dict[str, tuple[object, ...]] = {}
        self.again: set[str] = set()

    def look(self) -> None:
        """Record newly finished trials, and finished trials whose result has changed."""
        for name, was in self.seen.items():
            if self._identity(self.root / name) != was:
                self.again.add(name)
        for path in self.root.glob("*/result.json"):
            if path.parent.name not in self.seen and json.loads(path.read_text())["status"] == "finished":
                self.seen[path.parent.name] = self._identity(path.parent)

    def attempts(self) -> int:
        """Return how many attempts at trials have begun."""
        return sum(self._attempt(path.parent) for path in self.root.glob("*/attempt.json"))

    @staticmethod
    def _attempt(trial: Path) -> int:
        return int(json.loads((trial / "attempt.json").read_text())["attempt"])

    def _identity(self, trial: Path) -> tuple[object, ...]:
        """Return inode, modification time and attempt of a trial's result."""
        try:
            status = (trial / "result.json").stat()
            return status.st_ino, status.st_mtime_ns, self._attempt(trial)
        except FileNotFoundError:
            return ()


def victims(kills: int, draws: random.Random) -> Iterator[str]:
    """Yield `kills` victims in random order; each kind comes once before any comes again."""
    for number in range(kills):
        if number % len(VICTIMS) == 0:
            deck = draws.sample(VICTIMS, len(VICTIMS))
        yield deck[number % len(VICTIMS)]


def undisturbed(space: Path, output: Path, scratch: Path) -> tuple[float, float]:
    """Run the reference; return the seconds until its first trial began, and from then to the end."""
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
    space: Path,
    output: Path,
    scratch: Path,
    trials: int,
    kills: int,
    seed: int,
    start_s: float,
    work_s: float,
    patience: float,
) -> Outcome:
    """Run the sweep with kills to its end.

    Args:
        space: the search-space file.
        output: the directory in which the sweep's directory is made.
        scratch: the directory of Ray's sessions.
        trials: the number of trials. A kill does not wait once only one of them is unfinished.
        kills: the number of kills.
        seed: the seed of the random victims and moments.
        start_s: the seconds that a driver needs until trials run.
        work_s: the seconds that the trials need. The kills are spread over this time.
        patience: the seconds that a driver has to end after its raylet or GCS server died or it was told to end.
    """
    draws, outcome, root, mark = random.Random(seed), Outcome(), output / "chaos", uuid.uuid4().hex
    watched = Watched(root)
    begun = time.monotonic()

    def start(number: int) -> Driver:
        if (root / "sweep.yaml").exists():
            outcome.resumes += 1
            arguments = ["--resume", str(root)]
        else:  # the driver was killed before it created the sweep
            arguments = [str(space), "--name", "chaos", "--output", str(output)]
        return Driver(arguments, output / f"driver-{number:02}.log", mark, scratch)

    driver, before = start(0), 0
    for number, victim in enumerate(victims(kills, draws), start=1):
        early, struck = draws.random() < EARLY, False
        moment = draws.uniform(0, start_s if early else 1.5 * work_s / kills)
        while not early and not driver.stuck and watched.attempts() == before:
            driver.wait(0.1, watched.look)
        driver.wait(moment, watched.look, until=lambda: len(watched.seen) >= trials - 1)
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
            before = -1  # the driver is already running trials
            continue
        if victim == "worker" and driver.ended and struck:
            outcome.ended_alone.append(driver.status)
        told = time.monotonic()
        if not driver.wait(patience, watched.look):
            outcome.hung.append(victim)
        took, hung = time.monotonic() - told, not driver.ended
        driver.clean_up()
        ending = f"hung for {took:.0f} s" if hung else f"{driver.status} after {took:.1f} s"
        watched.look()
        tell(begun, f"kill {number:2}: {victim:10} {when}; {len(watched.seen)} finished; {ending}")
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
    """Describe the differences between two sweeps' directories, and the steps that are in TensorBoard twice."""
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
        expected, actual = curves(reference / trial), curves(got / trial)
        for tag in sorted({*expected, *actual} - {*OWN}):
            steps = [step for step, _ in actual.get(tag, [])]
            duplicates += [f"{trial}: {tag}: step {step}" for step, count in Counter(steps).items() if count > 1]
            if sorted(set(actual.get(tag, []))) != sorted(set(expected.get(tag, []))):
                differing.append(f"{trial}: TensorBoard's {tag}")
    return differing, duplicates


def compare_tables(reference: Path, got: Path) -> list[str]:
    """Describe the cells in which two CSV files differ, except in columns that differ from run to run."""
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
    """Read a trial's events anew; return the steps and values of scalars, and of pictures as bytes, by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trial), size_guidance={"scalars": 0, "images": 0}).Reload()
    tags: dict[str, list[tuple[int, object]]] = {}
    for tag in events.Tags()["scalars"]:
        tags[tag] = [(event.step, event.value) for event in events.Scalars(tag)]
    for tag in events.Tags()["images"]:
        tags[tag] = [(event.step, event.encoded_image_string) for event in events.Images(tag)]
    return tags


def tell(begun: float, text: str) -> None:
    """Print one line with the time since the beginning."""
    print(f"{time.monotonic() - begun:6.1f} s  {text}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the two sweeps and print the differences; return the exit status."""
    parser = argparse.ArgumentParser(description="Kill a sweep at random moments, resume it, and compare the outcome.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="seed of the random victims and moments (0)")
    parser.add_argument("--trials", type=int, default=12, help="least number of trials; each seed has three (12)")
    parser.add_argument("--epochs", type=int, default=16, help="pretraining epochs of each trial (16)")
    parser.add_argument("--le_epochs", type=int, default=30, help="epochs of the linear probe (30)")
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
    """Run both sweeps and compare them."""
    space, reference, got = folder / "chaos.yaml", folder / "undisturbed", folder / "disturbed"
    reference.mkdir()
    got.mkdir()
    seeds = list(range(-(-parsed.trials // 3)))
    cpu = max(1, (os.cpu_count() or 1) // 2)  # two trials at a time on any machine, so that others wait
    space.write_text(SPACE.format(epochs=parsed.epochs, le_epochs=parsed.le_epochs, seeds=seeds, cpu=cpu))
    start_s, work_s = undisturbed(space, reference, scratch)
    print(f"undisturbed: {3 * len(seeds)} trials in {start_s + work_s:.0f} s, of which {start_s:.0f} s to start")
    trials = 3 * len(seeds)
    outcome = disturbed(space, got, scratch, trials, parsed.kills, parsed.seed, start_s, work_s, parsed.patience)
    outcome.differing, outcome.duplicates = compare(reference / "chaos", got / "chaos")
    return outcome


def show(outcome: Outcome) -> None:
    """Print the counts and their meaning."""
    by_victim = ", ".join(f"{victim} {outcome.kills[victim]}" for victim in VICTIMS if outcome.kills[victim])
    print(f"kills                        {outcome.kills.total()}  ({by_victim})")
    print(f"resumes                      {outcome.resumes}")
    print(f"drivers that did not end     {len(outcome.hung)}  {', '.join(outcome.hung)}")
    for words, items in (
        ("drivers that failed alone   ", outcome.ended_alone),
        ("finished trials run again   ", sorted(outcome.again)),
        ("differing metrics           ", outcome.differing),
        ("duplicate TensorBoard steps ", outcome.duplicates),
    ):
        print(f"{words} {len(items)}")
        for line in items[:20]:
            print(f"    {line}")


if __name__ == "__main__":
    sys.exit(main())
