"""Detect failures of Ray itself: workers that never start, or a dead head process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import ray

from raysweep.backends.stopping import Stopping
from raysweep.system.terminal import INTERRUPTED, end_process, say_at_once

START_SECONDS = 45.0
"""Seconds without any worker after which the user is told. A worker starts in 2 to 5 s, or 30 s on a busy machine."""
LOG_BYTES = 65536
PROBE_SECONDS = 1.0
HEAD_SECONDS, HEAD_SECONDS_CLUSTER = 3.0, 40.0
"""Seconds without an answer after which the head process counts as dead.

The first value is for a Ray that was started here, the second value is for a cluster.

Ray's own library ends the driver without a message from raysweep, after 20 s for a Ray started here (see `environment`)
and after 60 s for a cluster, whose head may come back.
"""
LEAVE_SECONDS = 8.0
"""Seconds that trials then have to save a checkpoint."""


class StartWatch:
    """Detects that no worker starts although there is room for one."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.over = False
        """Whether a worker has started, or the user has been told."""

    def is_late(self, some_running: bool) -> bool:
        """Return whether the user must be told now, which happens once."""
        if some_running:
            self.over = True
        if self.over or time.monotonic() - self.started < START_SECONDS:
            return False
        self.over = True
        return True


def explain_late_workers(session: Path | None) -> str:
    """Return one line that says that no worker has started, with the last related line of Ray's logs.

    Args:
        session: The directory of the Ray session that was started on this machine; None for another cluster.
    """
    text = f"no worker has started for {START_SECONDS:.0f} s"
    if session is None:
        return (
            f"{text}; the raylet.err and worker-*.err files in the nodes' logs say why (/tmp/ray/session_latest/logs)"
        )
    logs = session / "logs"
    candidates = [*logs.glob("worker-*.err"), *logs.glob("runtime_env_setup-*.log"), logs / "raylet.err"]
    for path in sorted((p for p in candidates if p.exists()), key=lambda p: p.stat().st_mtime, reverse=True):
        line = last_line(path)
        if line:
            return f"{text}; Ray's {path.name} ends with: {line} (logs: {logs})"
    return f"{text}, and Ray does not say why; the machine may be busy (logs: {logs})"


def last_line(path: Path) -> str:
    """Return the last line of a log file that says something; Ray's own marks, such as `:job_id:01000000`, do not."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip(" :") and line[0] != ":"), "")


class HeadWatch:
    """Ends this process in an orderly way when Ray's head process (the GCS) has died.

    Otherwise Ray's library would end the driver from C++, and no Python code could run any more. The trials, whose
    processes live on for a while, are first told to save a checkpoint.

    Args:
        stopping: Tells the trials to stop.
        is_idle: Returns whether no trial is running.
        is_own: Whether this process started the cluster.
    """

    def __init__(self, stopping: Stopping, is_idle: Callable[[], bool], is_own: bool) -> None:
        self.stopping, self.is_idle = stopping, is_idle
        self.patience = HEAD_SECONDS if is_own else HEAD_SECONDS_CLUSTER
        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        self.address = host.strip("[]"), int(port)
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> HeadWatch:
        self.thread.start()
        return self

    def __exit__(self, *fault: object) -> None:
        self.over.set()

    def _watch(self) -> None:
        answered = time.monotonic()
        while not self.over.wait(PROBE_SECONDS):
            try:
                socket.create_connection(self.address, timeout=PROBE_SECONDS).close()
                answered = time.monotonic()
            except ConnectionRefusedError:
                pass  # nothing listens any more; a busy head would time out instead, and gets more time
            except OSError:
                answered += PROBE_SECONDS / 2
            if time.monotonic() - answered > self.patience:
                self._end()

    def _end(self) -> None:
        if not self.stopping.interrupted:  # otherwise the user knows already
            say_at_once("Ray's head process has died: trials are saving checkpoints")
        self.stopping.request_stop()
        end = time.monotonic() + LEAVE_SECONDS
        while time.monotonic() < end and not self.is_idle():
            time.sleep(0.1)
        if self.stopping.interrupted:  # a signal to all processes of a job ends the head process too
            end_process(INTERRUPTED, f"interrupted; resume with: {self.stopping.resume}")
        end_process(1, f"the sweep broke off: Ray's head process has died; resume with: {self.stopping.resume}")
