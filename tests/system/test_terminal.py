"""A command survives the loss of its reader or terminal and characters it cannot print (real processes, no Ray)."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import PATIENCE, ROOT
from tests.support.cluster import wait_for
from tests.support.commands import STOPPING, here

PROGRAM = [sys.executable, str(ROOT / "run_sweep.py")]
QUICK = ["--usl_type", "simclr", "--usl_epochs", "1", "--le_epochs", "1", "--local", "--name", "quick"]
LONG = [
    "--usl_type",
    "simclr",
    "--usl_epochs",
    "4",
    "--batch_size",
    "2",
    "--le_epochs",
    "1",
    "--local",
    "--name",
    "long",
]
LONG_PLACE = Path("runs", "long")


def start(*arguments, cwd, before=()):
    """Start the real command in a separate process group."""
    return subprocess.Popen(
        [*before, *PROGRAM, *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # The tests themselves may run under `nohup`, whose setting to ignore SIGHUP would be inherited.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )


def has_begun(folder):
    return (folder / LONG_PLACE / "seed=0" / "attempt.json").exists()


def has_checkpoint(folder):
    return bool(list((folder / LONG_PLACE / "seed=0").glob("checkpoints/*.json")))


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A directory that contains a finished sweep."""
    folder = tmp_path_factory.mktemp("quick")
    completed = here("run_sweep.py", *QUICK, "--set", "seed=[0, 1]", cwd=folder)
    assert completed.returncode == 0, completed.stderr
    return folder


def report(folder, **options):
    """Run `report` on the sweep in a separate process, and return the completed process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("environment", {})}
    return subprocess.run(
        [sys.executable, "-m", "raysweep", "report", "runs/quick"],
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        timeout=PATIENCE,
        check=False,
        **options,
    )


def test_a_sweep_goes_on_without_the_reader_of_its_output(tmp_path):
    process = start(*QUICK, cwd=tmp_path)
    process.stdout.readline()
    process.stdout.close()
    err, status = process.stderr.read(), process.wait(300)
    assert status == 0, err
    assert err.splitlines() == ["standard output was closed before the end; the report is in runs/quick/summary.md"]
    assert (tmp_path / "runs" / "quick" / "summary.md").exists()


def test_a_full_disk_below_standard_output_stops_nothing(quick):
    with open("/dev/full", "w") as full:
        completed = report(quick, stdout=full, text=True)
    assert completed.returncode == 0
    assert completed.stderr.splitlines() == [
        "standard output was closed before the end; the report is in runs/quick/summary.md"
    ]


def test_a_closed_descriptor_is_not_given_to_a_file(quick):
    (quick / "runs" / "quick" / "results.csv").unlink()
    line = f"{sys.executable} -m raysweep report runs/quick >&-"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    completed = subprocess.run(line, shell=True, cwd=quick, env=environment, stderr=subprocess.PIPE, check=False)
    assert (completed.returncode, completed.stderr) == (0, b"")
    assert (quick / "runs" / "quick" / "results.csv").read_text().startswith("trial,point,status,")


def test_a_dry_run_of_many_trials_into_head(tmp_path):
    process = start(*QUICK, "--dry-run", "--set", f"seed={list(range(10_000))}", cwd=tmp_path)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 0


@pytest.mark.parametrize(("encoding", "sign"), [("ascii", "+/-"), ("latin-1", "±")])
def test_a_terminal_that_lacks_our_characters(quick, encoding, sign):
    environment = {"PYTHONIOENCODING": encoding}
    completed = report(quick, stdout=subprocess.PIPE, encoding=encoding, environment=environment)
    assert completed.returncode == 0, completed.stderr
    assert f"mean over seeds {sign} half of the 95 % interval" in completed.stdout
    helped = subprocess.run(
        [*PROGRAM, "--help"], env={**os.environ, **environment}, capture_output=True, encoding=encoding, check=False
    )
    assert helped.returncode == 0, helped.stderr
    assert "Weight alpha of the embedding loss" in helped.stdout


def test_plain_lines_where_standard_output_is_no_terminal_whatever_the_colours(tmp_path):
    compared = [*QUICK, "--set", "baseline=true"]  # the table, which has colours, needs two points
    completed = here("run_sweep.py", *compared, cwd=tmp_path, FORCE_COLOR="1", TERM="xterm")
    assert completed.returncode == 0, completed.stderr
    assert [line for line in completed.stdout.splitlines() if line.startswith("[2/2] seed=0")]
    assert "\x1b[" in completed.stdout, "colours are forced"
    for redrawing in ("\x1b[?25l", "\x1b[1A", "\x1b[2K"):
        assert redrawing not in completed.stdout


def test_a_closed_terminal_saves_and_ends_like_sigterm(tmp_path):
    process = start(*LONG, cwd=tmp_path)
    wait_for(lambda: has_begun(tmp_path), process)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert err.splitlines()[0] == STOPPING
    assert has_checkpoint(tmp_path)


def test_nohup_keeps_a_closed_terminal_away(tmp_path):
    process = start(*LONG, cwd=tmp_path, before=["nohup"])
    wait_for(lambda: has_begun(tmp_path), process)
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(3)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert has_checkpoint(tmp_path)


def test_ctrl_c_to_a_pipeline_saves_although_its_reader_is_gone(tmp_path):
    line = f"set -o pipefail; {sys.executable} {ROOT / 'run_sweep.py'} {' '.join(LONG)} | tee log"
    process = subprocess.Popen(
        ["bash", "-c", line], cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(lambda: has_begun(tmp_path), process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal signals bash, the sweep and tee
    err = process.stderr.read()
    process.wait(120)
    assert err.splitlines()[0] == STOPPING
    assert "interrupted; resume with: " in err
    assert has_checkpoint(tmp_path)


def test_many_ctrl_c_end_with_one_line_and_no_traceback(tmp_path):
    process = start(*LONG, cwd=tmp_path)
    wait_for(lambda: has_begun(tmp_path), process)
    for _ in range(6):
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    first, last = err.splitlines()
    assert first == STOPPING
    assert last.startswith("interrupted; resume with: ")


def handles_sigterm(pid):
    """Return whether the process has a handler for SIGTERM, according to the kernel."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize(
    ("number", "later"), [(signal.SIGINT, 0.0), (signal.SIGTERM, 0.0), (signal.SIGINT, 0.4), (signal.SIGTERM, 1.0)]
)
def test_a_signal_before_the_first_trial_gives_one_line(tmp_path, number, later):
    process = start(*LONG, cwd=tmp_path)
    while not handles_sigterm(process.pid):
        time.sleep(0.001)
    time.sleep(later)
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "interrupted" in err.splitlines()[-1]


def test_an_interrupt_that_a_library_swallowed_still_ends_the_sweep(tmp_path):
    """C code may clear the exception of a signal handler, as some libraries do while they are imported."""
    (tmp_path / "program.py").write_text(
        "import os, signal\n"
        "from contextlib import suppress\n"
        "from raysweep.backends.stopping import Stopping\n"
        "from raysweep.results.store import Store\n"
        "from raysweep.system.signals import handle_interrupts\n"
        "handle_interrupts()\n"
        "with suppress(KeyboardInterrupt):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    signal.pause()\n"
        "try:\n"
        "    with Stopping(Store('.')).running():\n"
        "        print('runs trials')\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    completed = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert completed.stdout == "interrupted\n", completed.stderr


def test_a_repeated_sigterm_counts_once_however_late_python_sees_it(tmp_path):
    """The second SIGTERM arrives while the main thread is in one long call of C code."""
    (tmp_path / "program.py").write_text(
        "import time\n"
        "from raysweep.backends.stopping import Stopping\n"
        "from raysweep.results.store import Store\n"
        "started = time.monotonic(); sum(range(10**7)); speed = 10**7 / (time.monotonic() - started)\n"
        "stopping = Stopping(Store('.'))\n"
        "with stopping.running():\n"
        "    print('ready', flush=True)\n"
        "    while not stopping.interrupted:\n"
        "        time.sleep(0.01)\n"
        "    print('handled', flush=True)\n"
        "    sum(range(int(2.5 * speed)))\n"
        "    stopping.asked()\n"
        "print('went on')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for word in ("ready", "handled"):
        assert process.stdout.readline().strip() == word
        process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE)
    assert out.strip() == "went on", err
    assert process.returncode == 0
