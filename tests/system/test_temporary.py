"""Temporary directories: what killed processes leave is removed, and nothing else."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from raysweep.system.temporary import LOCK, PREFIX, remove_left_over

OLD = time.time() - 30 * 24 * 3600
HOLD = """
import time
from raysweep.system.temporary import temporary_directory
with temporary_directory() as path:
    (path / "state").write_text("x")
    print(path, flush=True)
    time.sleep(3600)
"""


def test_only_what_a_killed_process_left_is_removed(tmp_path):
    """A directory of the user may have any name, and be of any age."""
    users = tmp_path / f"{PREFIX}runs"
    users.mkdir()
    (users / "results.csv").write_text("x")
    os.utime(users, (OLD, OLD))
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True, env=environment)
    place = process.stdout.readline().strip()
    assert os.path.exists(os.path.join(place, LOCK))
    remove_left_over(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {users.name, os.path.basename(place)}, "it is in use"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    lock = Path(place, LOCK)
    machine = lock.read_text()
    lock.write_text("another machine")
    remove_left_over(tmp_path)
    assert lock.exists(), "another machine may use it"
    lock.write_text(machine)
    remove_left_over(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [users.name]
    assert (users / "results.csv").read_text() == "x"
