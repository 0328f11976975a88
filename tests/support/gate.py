"""A gate that holds trials between two steps, so that a test can act at this moment on any machine."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from raysweep.backends.stopping import LOOK_SECONDS
from tests.support import PATIENCE


class Gate:
    """A gate for the trials of one sweep; `arguments` are the arguments of the sweep's command.

    Args:
        folder: the directory of its files.
        step: the step before which it holds trials, counted from 0. It is neither a trial's first nor its last step,
            because the check of a plugin computes these two.
    """

    def __init__(self, folder, step):
        self.file = Path(folder, "gate")
        self.plugin = str(Path(__file__).with_name("gated.py"))
        self.arguments = ["--plugin", self.plugin, "--schedule", "gated", "--gate", str(self.file)]
        self.is_over = False  # whether the command beside `meanwhile` has ended
        self.hold(step)

    def hold(self, step):
        """Hold trials before this later step, and let trials go on that are held before another step."""
        new = self.file.with_name("new gate")
        new.write_text(str(step))
        new.replace(self.file)

    def open(self):
        """Let trials run to their end."""
        self.file.unlink(missing_ok=True)

    def wait(self, process=None, trials=1):
        """Wait until this number of trials is held, and return the ids of their processes; see `until`."""
        return self.until(lambda: held if len(held := self.held()) >= trials else None, process)

    def until(self, condition, process=None):
        """Wait until `condition()` returns a true value, and return it. Fail if the command ends before.

        `process` is the process of the command if it has its own; else the command runs beside `meanwhile`.
        """
        end = time.monotonic() + PATIENCE
        while not (value := condition()):
            assert process is None or process.poll() is None, process.communicate()
            assert not self.is_over, "the command has ended before"
            assert time.monotonic() < end, f"nothing happened for {PATIENCE} s; held: {self.held()}"
            time.sleep(0.05)
        return value

    def open_when_told(self, root, process=None, seconds=LOOK_SECONDS):
        """Wait until the trials of the sweep at `root` are told to stop, and open the gate so that they look at once.

        A trial looks after a step if it has not looked for these seconds.
        """
        self.until(lambda: [flag for flag in root.glob(".leave-*") if flag.read_text() == "leave"], process)
        time.sleep(seconds)
        self.open()

    def kill(self):
        """Wait until a trial is held, and kill the processes of all held trials."""
        for pid in self.wait():
            os.kill(pid, signal.SIGKILL)
            self.file.with_name(f"{self.file.name}.{pid}").unlink()

    def held(self):
        """Return the ids of the living processes whose trials are held."""
        pids = [int(path.suffix[1:]) for path in self.file.parent.glob(f"{self.file.name}.*")]
        return [pid for pid in pids if lives(pid)]

    @contextmanager
    def meanwhile(self, act):
        """Run `act()` in a thread beside the block, which runs a command in this process; then open the gate.

        A failure of `act()` is raised after the block.
        """

        def act_and_open():
            try:
                return act()
            finally:
                self.open()

        with ThreadPoolExecutor(1) as thread:
            ending = thread.submit(act_and_open)
            try:
                yield
            finally:
                self.is_over = True
        ending.result()


def lives(pid):
    """Return whether a process exists and has not ended. A process that has ended exists until its parent asks."""
    try:
        status = Path("/proc", str(pid), "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
