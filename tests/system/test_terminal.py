"""A command survives the loss of its reader or terminal and characters it cannot print (real processes, no Ray).

Two tests start the command anew, under `nohup` and in a pipeline. The others run it in a fork that has torch imported.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raysweep.system.terminal import quoted
from tests.support import PATIENCE, ROOT, forked
from tests.support.cluster import wait_for
from tests.support.commands import STOPPING, here

PROGRAM = str(ROOT / "run_sweep.py")
PATIENT = str(ROOT / "tests" / "support" / "patient.py")
"""The same command with longer times, for tests in which trials must save before the command ends."""
SMALL = ["--usl_type", "simclr", "--le_epochs", "1", "--set", "probe_every=0", "--set", "images_every=0", "--local"]
QUICK = [*SMALL, "--usl_epochs", "1", "--name", "quick"]
LONG = [*SMALL, "--usl_epochs", "1000", "--name", "long"]  # each test interrupts it
LONG_PLACE = Path("runs", "long")


@pytest.mark.parametrize("word", ["runs/s", "my runs", "it's", "two\nlines", "caf\udce9/s", "tab\t'\\", "\x1b[31m", ""])
def test_a_quoted_word_is_one_line_that_a_shell_reads_back(word):
    line = quoted(word)
    assert line.isprintable()
    printed = subprocess.run(["bash", "-c", f"printf %s {line}"], capture_output=True, check=True).stdout
    assert os.fsdecode(printed) == word


@pytest.fixture(scope="module")
def data(few):
    """The arguments that choose a few images."""
    return [word for name, value in few.items() for word in (f"--{name}", str(value))]


def start(*arguments, cwd, program=PROGRAM, **options):
    """Start the real command in a session of its own."""
    return forked.start(program, *arguments, cwd=cwd, new_session=True, **options)


def has_begun(folder):
    return (folder / LONG_PLACE / "seed=0" / "attempt.json").exists()


def has_checkpoint(folder):
    return bool(list((folder / LONG_PLACE / "seed=0").glob("checkpoints/*.json")))


@pytest.fixture(scope="module")
def quick(data, no_figures, tmp_path_factory):
    """A directory that contains a finished sweep."""
    folder = tmp_path_factory.mktemp("quick")
    completed = here("run_sweep.py", *QUICK, *data, "--set", "seed=[0, 1]", cwd=folder)
    assert completed.returncode == 0, completed.stderr
    return folder


def report(folder, **options):
    """Run `report` on the sweep in a separate process, and return the completed process."""
    return forked.run("-m", "raysweep", "report", "runs/quick", cwd=folder, **options)


def test_a_sweep_goes_on_without_the_reader_of_its_output(data, tmp_path):
    process = start(*QUICK, *data, cwd=tmp_path)
    process.stdout.readline()
    process.stdout.close()
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert err.splitlines() == ["standard output was closed before the end; the report is in runs/quick/summary.md"]
    assert (tmp_path / "runs" / "quick" / "summary.md").exists()


def test_a_full_disk_below_standard_output_stops_nothing(quick):
    with open("/dev/full", "w") as full:
        completed = report(quick, stdout=full)
    assert completed.returncode == 0
    assert completed.stderr.splitlines() == [
        "standard output was closed before the end; the report is in runs/quick/summary.md"
    ]


def test_a_closed_descriptor_is_not_given_to_a_file(quick):
    (quick / "runs" / "quick" / "results.csv").unlink()
    # After `>&-` the descriptor is closed, and the interpreter sets the stream to None.
    closed = "import os, sys; os.close(1); sys.stdout = None; import raysweep.__main__ as program; "
    closed += "sys.exit(program.main(sys.argv[1:]))"
    completed = forked.run("-c", closed, "report", "runs/quick", cwd=quick)
    assert (completed.returncode, completed.stderr) == (0, "")
    assert (quick / "runs" / "quick" / "results.csv").read_text().startswith("trial,point,status,")


def test_a_dry_run_of_many_trials_into_head(tmp_path):
    grids = ("temperature=[0.123]", "usl_lr=[0.000125]", "crop_strength=[0.25]", "color_strength=[0.75]")
    names = [word for grid in (*grids, f"seed={list(range(1000))}") for word in ("--set", grid)]  # 80 bytes per trial
    process = start(*QUICK, "--dry-run", *names, cwd=tmp_path)  # it prints more than a pipe takes
    process.stdout.readline()
    process.stdout.close()
    _, err = process.communicate()
    assert (process.returncode, err) == (0, "")


@pytest.mark.parametrize(("encoding", "sign"), [("ascii", "+/-"), ("latin-1", "±")])
def test_a_terminal_that_lacks_our_characters(quick, encoding, sign):
    completed = report(quick, PYTHONIOENCODING=encoding)
    assert completed.returncode == 0, completed.stderr
    assert f"mean over seeds {sign} half of the 95 % interval" in completed.stdout
    helped = subprocess.run(
        [sys.executable, PROGRAM, "--help"],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        encoding=encoding,
        check=False,
    )
    assert helped.returncode == 0, helped.stderr
    assert "Weight alpha of the embedding loss" in helped.stdout


def test_plain_lines_where_standard_output_is_no_terminal_whatever_the_colours(data, no_figures, tmp_path):
    compared = [*QUICK, *data, "--set", "baseline=true"]  # the table, which has colours, needs two points
    completed = here("run_sweep.py", *compared, cwd=tmp_path, FORCE_COLOR="1", TERM="xterm")
    assert completed.returncode == 0, completed.stderr
    assert [line for line in completed.stdout.splitlines() if line.startswith("[2/2] seed=0")]
    assert "\x1b[" in completed.stdout, "colours are forced"
    for redrawing in ("\x1b[?25l", "\x1b[1A", "\x1b[2K"):
        assert redrawing not in completed.stdout


def test_a_closed_terminal_saves_and_ends_like_sigterm(data, tmp_path):
    process = start(*LONG, *data, cwd=tmp_path, program=PATIENT)
    wait_for(lambda: has_begun(tmp_path), process)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err.splitlines()[0] == STOPPING
    assert has_checkpoint(tmp_path)


def test_nohup_keeps_a_closed_terminal_away(data, tmp_path):
    process = subprocess.Popen(
        ["nohup", sys.executable, PATIENT, *LONG, *data],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: has_begun(tmp_path), process)
    assert has_signal(process.pid, "SigIgn", signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert STOPPING in err.splitlines()
    assert has_checkpoint(tmp_path)


def test_ctrl_c_to_a_pipeline_saves_although_its_reader_is_gone(data, tmp_path):
    line = f"set -o pipefail; {sys.executable} {PATIENT} {' '.join([*LONG, *data])} | tee log"
    process = subprocess.Popen(
        ["bash", "-c", line],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: has_begun(tmp_path), process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal signals bash, the sweep and tee
    _, err = process.communicate(timeout=PATIENCE)
    assert err.splitlines()[0] == STOPPING
    assert "interrupted; resume with: " in err
    assert has_checkpoint(tmp_path)


def test_many_ctrl_c_end_with_one_line_and_no_traceback(data, tmp_path):
    process = start(*LONG, *data, cwd=tmp_path, program=PATIENT)
    wait_for(lambda: has_begun(tmp_path), process)
    for _ in range(6):
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    _, err = process.communicate()
    assert process.returncode == 130
    first, last = err.splitlines()
    assert first == STOPPING
    assert last.startswith("interrupted; resume with: ")


def has_signal(pid, kind, number):
    """Return whether the kernel lists the signal among those that a process handles (SigCgt) or ignores (SigIgn)."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(status.partition(f"{kind}:")[2].split()[0], 16)
    return bool(mask >> (number - 1) & 1)


def handles_signals(pid):
    return has_signal(pid, "SigCgt", signal.SIGTERM)


def imports_torch(pid):
    return "libtorch_cpu" in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", [handles_signals, imports_torch])
def test_a_signal_before_the_first_trial_gives_one_line(tmp_path, number, moment):
    process = subprocess.Popen(
        [sys.executable, PROGRAM, *LONG], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not moment(process.pid):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    assert handles_signals(process.pid)
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (130, "interrupted\n")
    assert not has_begun(tmp_path)


def test_many_signals_before_the_first_trial_give_one_line(tmp_path):
    process = forked.start(PROGRAM, *LONG, cwd=tmp_path)
    while not handles_signals(process.pid):
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    end = time.monotonic() + PATIENCE
    while process.poll() is None:  # until the process has ended, so that a signal arrives in each of its last moments
        assert time.monotonic() < end
        process.send_signal(signal.SIGINT)
        time.sleep(0.001)
    _, err = process.communicate()
    assert (process.returncode, err) == (130, "interrupted\n")


def test_signals_after_the_trials_leave_the_last_line_alone(tmp_path):
    program = (
        "import signal\n"
        "from raysweep.backends.stopping import Stopping\n"
        "from raysweep.results.store import Store\n"
        "with Stopping(Store('.')).running():\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):\n"
        "    signal.raise_signal(number)\n"
        "print('the last line')\n"
    )
    completed = forked.run("-c", program, cwd=tmp_path)
    assert (completed.returncode, completed.stdout) == (0, "the last line\n"), completed.stderr
    assert completed.stderr.splitlines() == [STOPPING]


def test_a_signal_while_the_first_one_is_handled_counts_as_its_repetition(tmp_path):
    program = (
        "import signal\n"
        "from raysweep.backends import stopping\n"
        "from raysweep.results.store import Store\n"
        "def say(text):\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    print(text)\n"
        "stopping.say_at_once = say\n"
        "with stopping.Stopping(Store('.')).running():\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    print('trials save')\n"
        "    try:\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "    except KeyboardInterrupt:\n"
        "        print('quits')\n"
    )
    completed = forked.run("-c", program, cwd=tmp_path)
    assert completed.stdout.splitlines() == [STOPPING, "trials save", "quits"], completed.stderr


def test_no_warning_if_the_trials_have_ended_before_they_are_told_to_stop(tmp_path):
    program = (
        "import threading\n"
        "from raysweep.backends.stopping import Stopping\n"
        "from raysweep.results.store import Store\n"
        "stopping = Stopping(Store('.'))\n"
        "with stopping.running():\n"
        "    pass\n"
        "stopping.request_stop()\n"
        "for thread in threading.enumerate():\n"
        "    if thread is not threading.main_thread():\n"
        f"        thread.join({PATIENCE})\n"
        "print('went on')\n"
    )
    completed = forked.run("-c", program, cwd=tmp_path)
    assert (completed.stdout, completed.stderr) == ("went on\n", "")


def test_repetitions_of_a_signal_do_not_interrupt_its_handling(tmp_path):
    program = (
        "import signal\n"
        "from raysweep.system import signals\n"
        "signals.handle_interrupts()\n"
        "for _ in range(2):\n"
        "    signals.REPEATED_SECONDS = 0.0\n"
        "    try:\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "    except KeyboardInterrupt:\n"
        "        signals.REPEATED_SECONDS = 3600.0\n"
        "        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):\n"
        "            signal.raise_signal(number)\n"
        "        print('interrupted')\n"
        "signals.REPEATED_SECONDS, signals.is_ending = 0.0, True\n"
        "signal.raise_signal(signal.SIGINT)\n"
    )
    completed = forked.run("-c", program, cwd=tmp_path)
    assert (completed.returncode, completed.stdout) == (0, "interrupted\n" * 2), completed.stderr


def test_a_signal_after_the_last_trial_interrupts_the_sweep(data, tmp_path):
    space = {"name": "x", "base": {"usl_type": "simclr", "usl_epochs": 0, "le_epochs": 1}}
    space["base"] |= dict(zip([word.removeprefix("--") for word in data[::2]], data[1::2]))
    program = (
        "import signal\n"
        "from raysweep import api\n"
        "from raysweep.backends.progress import Silence, SilentTrials\n"
        "from raysweep.errors import SweepInterrupted\n"
        "class Trials(SilentTrials):\n"
        "    def __exit__(self, *fault):\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "class Progress(Silence):\n"
        "    def trials(self, sweep, kept):\n"
        "        return Trials()\n"
        "try:\n"
        f"    api.run({space}, options=api.RunOptions(local=True), progress=Progress())\n"
        "except SweepInterrupted as fault:\n"
        "    print(fault)\n"
    )
    completed = forked.run("-c", program, cwd=tmp_path)
    assert completed.stdout.startswith("interrupted; resume with: "), completed.stderr
    assert (tmp_path / "runs" / "x" / "seed=0" / "result.json").exists()
    assert not (tmp_path / "runs" / "x" / "summary.md").exists()


def test_the_exit_status_after_an_interrupt_within_an_exec_of_a_string(tmp_path):
    """Python then ends `python -m` by SIGINT, whatever exit status the program gives."""
    plugin = "import signal\nexec('signal.raise_signal(signal.SIGINT)')\n"
    (tmp_path / "interrupting.py").write_text(plugin)
    command = [sys.executable, "-m", "raysweep", "sweep", "--plugin", "interrupting.py"]
    ended = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (130, b"interrupted\n")


def test_an_interrupt_that_a_library_swallowed_still_ends_the_sweep(tmp_path):
    """C code may clear the exception of a signal handler, as some libraries do while they are imported."""
    program = (
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
    completed = forked.run("-c", program, cwd=tmp_path)
    assert completed.stdout == "interrupted\n", completed.stderr


def test_a_repeated_sigterm_counts_once_however_late_python_sees_it(tmp_path):
    """The second SIGTERM arrives while the main thread is in one long call of C code."""
    program = (
        "import os, time\n"
        "from raysweep.backends.stopping import Stopping\n"
        "from raysweep.results.store import Store\n"
        "stopping = Stopping(Store('.'))\n"
        "with stopping.running():\n"
        "    print('ready', flush=True)\n"
        "    while not stopping.interrupted:\n"
        "        time.sleep(0.01)\n"
        "    os.system('echo handled; read line; sleep 1.5')\n"  # the C function goes on waiting after a signal
        "    stopping.must_stop()\n"
        "print('went on')\n"
    )
    process = forked.start("-c", program, cwd=tmp_path, stdin=subprocess.PIPE)
    for word in ("ready", "handled"):
        assert process.stdout.readline().strip() == word
        process.send_signal(signal.SIGTERM)
    process.stdin.write("\n")
    process.stdin.flush()
    out, err = process.communicate()
    assert out.strip() == "went on", err
    assert process.returncode == 0
