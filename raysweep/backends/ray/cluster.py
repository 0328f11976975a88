"""Connect to Ray, and check before anything starts that its cluster can run the sweep."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError
from ray.util.client import ray as client
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysweep.backends.ray.capacity import alive_nodes, plan
from raysweep.backends.ray.environment import cluster_address, imports_from_our_folder
from raysweep.errors import InputError
from raysweep.results.bucket import Bucket
from raysweep.space import Resources
from raysweep.system.cpus import allowed_cpus

CONNECT_SECONDS = 5.0
# Messages that Ray logs on every start and end, about which a user can do nothing. Other warnings are let through.
CHATTER = (
    "Token authentication is enabled",
    "Failed to fetch metrics for",
    "Trial task failed for trial",  # the display says so in one line, and error.txt has the traceback
    "Trials did not complete",
    "SIGTERM handler is not set",  # in another thread than the main one
    "No trial is running and no new trial has been started",  # `CapacityMonitor` says so; Tune adds up all nodes
    "Experiment state snapshotting failed",  # at Tune's end; Tune's own state is never read again
    "which may be a performance bottleneck",  # a step of Tune took half a second, as on a busy machine
)


def quieten() -> None:
    """Silence Ray's routine messages in this process. Call this before Ray is initialised."""
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # Tune's files lag behind; raysweep's are live
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # it would swallow Ctrl-C, and with it the exit status
    # A stopped trial's thread ends and releases its directory while the next trial waits for the worker. A trial in
    # several processes ends these first. After this timeout Tune would fail the next trial.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "90")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new output prints a table even if it is told to be silent
    logging.getLogger("ray").setLevel(logging.WARNING)
    for handler in logging.getLogger("ray").handlers:
        handler.addFilter(is_worth_showing)


def show_chatter() -> None:
    """Let Ray log its routine messages again, for a program that uses Ray itself after a sweep."""
    for handler in logging.getLogger("ray").handlers:
        handler.removeFilter(is_worth_showing)


def is_worth_showing(record: logging.LogRecord) -> bool:
    """Return whether a message of Ray is useful to the user (a filter of `logging`)."""
    return not any(text in record.getMessage() for text in CHATTER)


_own_session: Path | None = None


def own_session() -> Path | None:
    """Return the directory of the Ray session that this process started; None if it uses another cluster."""
    return _own_session


def connect(address: str | None, resources: Resources, most: int | None = None) -> str:
    """Connect to the cluster at `address` or RAY_ADDRESS, or start Ray on this machine. Return the plan in words.

    A Ray that is started here gets as many CPUs as this process may use, not as many as the machine has. If the user
    has already initialised Ray in this process, as in a notebook, that Ray is used as it is.

    Raises:
        InputError: An address is given although Ray is initialised, Ray is initialised as a client, nothing answers
            at the address, the cluster rejects the token, or its nodes can never hold a trial.
    """
    global _own_session
    quieten()
    if ray.is_initialized():
        if client.is_connected():
            raise InputError(
                "Ray is initialised in this process as a client (ray://…), through which a sweep cannot run; start "
                "the sweep on a machine of the cluster, or send it there with `ray job submit`"
            )
        if address is not None:
            raise InputError(
                f"address {address}: Ray is already initialised in this process; leave the address out to use that "
                "Ray, or call ray.shutdown() before"
            )
        _own_session = None
        words = plan([node["Resources"] for node in alive_nodes()], resources, most)
        return f"{words} of the Ray that is already initialised in this process"
    address = cluster_address(address)
    cpus = allowed_cpus()
    try:
        if address is not None:
            check_reachable(address)
        with nullcontext() if address is None else stderr_held_back(), imports_from_our_folder(), keeping_signals():
            context = start_or_attach(address, cpus.count)
    except Exception as fault:  # Ray's start raises many kinds of exceptions, including plain Exception
        reason = " ".join(str(fault).split()) or type(fault).__name__
        if address is None:
            raise InputError(f"Ray cannot be started on this machine: {reason}") from None
        if is_token_refused(fault):
            raise InputError(
                f"the Ray cluster at {address} needs its own token: run `ray get-auth-token` on its head node, and "
                f"write the output to ~/.ray/auth_token on this machine, or into RAY_AUTH_TOKEN"
            ) from None
        raise InputError(f"the Ray cluster at {address} cannot be used: {reason} (is it up?)") from None
    _own_session = Path(context.address_info["session_dir"]) if address is None else None
    words = plan([node["Resources"] for node in alive_nodes()], resources, most)
    if address is None and cpus.source:
        words += f" ({cpus.count} of {os.cpu_count()} CPUs: {cpus.source})"
    return words


def start_or_attach(address: str | None, cpus: int) -> Any:
    """Call `ray.init`: attach to a cluster, or start Ray with `cpus` CPUs on this machine.

    If Ray does not start within its own limits of 15 and 30 s, as on a busy machine, it is started again, up to twice.
    By then its files are cached in memory, so it starts faster.
    """
    for is_last in (address is not None, False, True):
        try:
            return ray.init(
                address=address or "local",
                num_cpus=None if address else cpus,
                include_dashboard=None if address else False,  # nobody uses it, and it costs a second
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
        except Exception as fault:  # Ray raises a plain Exception for a timeout
            if is_last or "timed out during startup" not in str(fault):
                raise
            ray.shutdown()
    raise AssertionError("the last attempt returns or raises")


@contextmanager
def keeping_signals() -> Iterator[None]:
    """Restore this process's signal handlers after Ray has started, because Ray sets its own SIGTERM handler.

    Ray's handler raises SystemExit with the signal's number. That is turned into KeyboardInterrupt, as for Ctrl-C.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except SystemExit as fault:
        if fault.code != signal.SIGTERM:
            raise
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def is_token_refused(fault: BaseException) -> bool:
    """Return whether the cluster rejected the token. Ray keeps only the text of that error, inside another error."""
    return isinstance(fault, AuthenticationError) or AuthenticationError.__name__ in str(fault.__cause__)


@contextmanager
def stderr_held_back() -> Iterator[None]:
    """Hold back what is written to standard error inside the block, and drop it if the block fails.

    While Ray tries a token, its C++ code writes a line there every second, and no setting of Ray prevents that.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held, os.fdopen(os.dup(2), "wb") as stderr:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr.fileno(), 2)
        held.seek(0)
        stderr.write(held.read())


def check_reachable(address: str) -> None:
    """Raise OSError if nothing listens at `address`, HOST:PORT; Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS):
            pass


@ray.remote(num_cpus=0)
def sees(path: str) -> bool:
    """Return whether the node on which this task runs has `path`."""
    return os.path.exists(path)


@ray.remote(num_cpus=0)
def fault_at(place: str) -> str:
    """Return why the node on which this task runs cannot use this place in a bucket; "" if it can."""
    try:
        Bucket(place).check(write=False)
    except InputError as fault:
        return str(fault)
    return ""


def check_bucket(place: str) -> None:
    """Raise InputError unless every node of the cluster can use this place in a bucket."""
    nodes = alive_nodes()
    for node, fault in zip(nodes, ray.get([pinned_to(fault_at, node).remote(place) for node in nodes]), strict=True):
        if fault:
            raise InputError(f"--output: node {node['NodeManagerAddress']}: {fault}")


def pinned_to(task: Any, node: dict[str, Any]) -> Any:
    """Return the task, bound to this node."""
    return task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))


def check_shared(directory: Path) -> None:
    """Raise InputError unless every node of the cluster sees the existing `directory` as this process does."""
    nodes = alive_nodes()
    if len(nodes) == 1:
        return
    marker = directory / f".shared-{uuid.uuid4().hex}"
    marker.touch()
    try:
        answers = [pinned_to(sees, node).remote(str(marker)) for node in nodes]
        blind = [node["NodeManagerAddress"] for node, seen in zip(nodes, ray.get(answers), strict=True) if not seen]
    finally:
        marker.unlink()
    if blind:
        raise InputError(
            f"--output {directory}: node {blind[0]} does not see it; give a directory that all nodes share, such as an "
            f"NFS mount, or a bucket (s3://…)"
        )
