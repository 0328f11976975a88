"""Connecting to Ray, and refusing what its cluster cannot do before anything starts."""

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
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysweep.backends.ray.capacity import alive_nodes, plan
from raysweep.backends.ray.environment import imports_from_our_folder
from raysweep.errors import InputError
from raysweep.results.bucket import Bucket
from raysweep.space import Resources
from raysweep.system.cpus import allowed_cpus

CONNECT_SECONDS = 5.0
# What Ray says on every start and end, to which a user can do nothing. Everything else it warns of is let through.
CHATTER = (
    "Token authentication is enabled",
    "Failed to fetch metrics for",
    "Trial task failed for trial",  # the view says so in one line, and error.txt has the traceback
    "Trials did not complete",
    "No trial is running and no new trial has been started",  # `Lookout` says so; Tune adds up all nodes
)


def quieten() -> None:
    """Silence Ray's chatter in this process. To be called before Ray is initialised."""
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # their files lag behind; ours are live
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # it would swallow Ctrl-C: the exit status is ours to set
    # A stopped trial's thread ends, and lets go of its directory, while the next trial waits for its worker. Those in
    # several processes end these first; after this time Tune would fail the next trial.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "90")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new output prints a table even when told to be silent
    for handler in logging.getLogger("ray").handlers:
        handler.addFilter(lambda record: not any(text in record.getMessage() for text in CHATTER))


_own_session: Path | None = None


def own_session() -> Path | None:
    """Directory of the Ray session that this process started; None where it uses another cluster."""
    return _own_session


def connect(address: str | None, resources: Resources, most: int | None = None) -> str:
    """Attach to the cluster at `address` or RAY_ADDRESS, or start one on this machine; returns the plan in words.

    A Ray that is started here gets as many CPUs as this process may use, not as many as the machine has.

    Raises:
        InputError: nobody answers at the address, or our token is not the cluster's, or its nodes can never hold one
            trial.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    quieten()
    cpus = allowed_cpus()
    try:
        if address is not None:
            knock(address)
        with nullcontext() if address is None else held_back(), imports_from_our_folder(), keeping_signals():
            context = start_or_attach(address, cpus.count)
    except Exception as fault:  # Ray's start raises many kinds, plain Exception among them
        reason = " ".join(str(fault).split()) or type(fault).__name__
        if address is None:
            raise InputError(f"Ray cannot be started on this machine: {reason}") from None
        if is_token_refused(fault):
            raise InputError(
                f"the Ray cluster at {address} wants its own token: write what `ray get-auth-token` prints on its head "
                f"node to ~/.ray/auth_token here, or set RAY_AUTH_TOKEN to it"
            ) from None
        raise InputError(f"the Ray cluster at {address} cannot be used: {reason} (is it up?)") from None
    global _own_session
    _own_session = Path(context.address_info["session_dir"]) if address is None else None
    words = plan([node["Resources"] for node in alive_nodes()], resources, most)
    if address is None and cpus.source:
        words += f" ({cpus.count} of {os.cpu_count()} CPUs: {cpus.source})"
    return words


def start_or_attach(address: str | None, cpus: int) -> Any:
    """`ray.init`: attach to a cluster, or start Ray with so many CPUs on this machine.

    A Ray that does not start within the 30 s that Ray allows, as on a busy machine, is started once more. By then its
    files are in memory, and it starts faster.
    """
    for is_last in (address is not None, True):
        try:
            return ray.init(
                address=address or "local",
                num_cpus=None if address else cpus,
                include_dashboard=None if address else False,  # nobody looks at it, and it costs a second
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
        except Exception as fault:  # Ray raises a plain Exception here
            if is_last or "timed out during startup" not in str(fault):
                raise
            ray.shutdown()
    raise AssertionError("the last attempt returns or raises")


@contextmanager
def keeping_signals() -> Iterator[None]:
    """Put this process's signal handlers back after Ray has started, which sets a SIGTERM handler of its own.

    Ray's handler raises SystemExit with the number of the signal. Here that becomes what Ctrl-C raises.
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
    """Whether the cluster wants another token than ours; of that Ray keeps, within another error, only the text."""
    return isinstance(fault, AuthenticationError) or AuthenticationError.__name__ in str(fault.__cause__)


@contextmanager
def held_back() -> Iterator[None]:
    """Hold back what is written to standard error meanwhile, and drop it if this fails.

    Every second in which Ray tries a token its C++ code writes a line there, which no setting of Ray's stops.
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


def knock(address: str) -> None:
    """Raises OSError unless something listens at `address`, [ray://]HOST:PORT: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS):
            pass


@ray.remote(num_cpus=0)
def sees(path: str) -> bool:
    """Whether the node that this runs on has `path`."""
    return os.path.exists(path)


@ray.remote(num_cpus=0)
def fault_at(place: str) -> str:
    """Why the node that this runs on cannot use this place in a bucket; empty where it can."""
    try:
        Bucket(place).check(write=False)
    except InputError as fault:
        return str(fault)
    return ""


def check_bucket(place: str) -> None:
    """Raises InputError unless every node of the cluster can use this place in a bucket."""
    nodes = alive_nodes()
    for node, fault in zip(nodes, ray.get([on(fault_at, node).remote(place) for node in nodes]), strict=True):
        if fault:
            raise InputError(f"--output: node {node['NodeManagerAddress']}: {fault}")


def on(task: Any, node: dict[str, Any]) -> Any:
    """The task, to be run on this node."""
    return task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))


def check_shared(directory: Path) -> None:
    """Raises InputError unless every node of the cluster sees `directory` (which exists) as this process does."""
    nodes = alive_nodes()
    if len(nodes) == 1:
        return
    marker = directory / f".shared-{uuid.uuid4().hex}"
    marker.touch()
    try:
        answers = [on(sees, node).remote(str(marker)) for node in nodes]
        blind = [node["NodeManagerAddress"] for node, seen in zip(nodes, ray.get(answers), strict=True) if not seen]
    finally:
        marker.unlink()
    if blind:
        raise InputError(
            f"--output {directory}: node {blind[0]} does not see it; give a directory that all nodes share, such as an "
            f"NFS mount, or a bucket (s3://…)"
        )
