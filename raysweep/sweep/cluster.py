"""Connecting to Ray, and refusing what its cluster cannot do before anything starts."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysweep.bucket import Bucket
from raysweep.cpus import allowed_cpus
from raysweep.errors import InputError
from raysweep.space import Resources
from raysweep.sweep.environment import imports_from_our_folder

CONNECT_SECONDS = 5.0

# What Ray says on every start and end, to which a user can do nothing. Everything else it warns of is let through.
CHATTER = (
    "Token authentication is enabled",
    "Failed to fetch metrics for",
    "Trial task failed for trial",  # the view says so in one line, and error.txt has the traceback
    "Trials did not complete",
    "No trial is running and no new trial has been started",  # `Lookout` says so; Tune adds up all nodes
)
LOOK_SECONDS = 5.0  # between two looks at the nodes, while no trial runs

Node = Mapping[str, float]
"""What a node has, by Ray's names of resources."""


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


def per_gpu(resources: Resources) -> int:
    """How many workers Ray puts on one GPU, whose ten-thousandths it counts, cutting off what is smaller."""
    return 10_000 // int(resources.gpu * 10_000) if 0 < resources.gpu <= 1 else 0


def workers_on(node: Node, resources: Resources) -> int:
    """How many workers of trials a node holds; one lies on one node."""
    by_cores = int(node.get("CPU", 0)) // resources.cpu
    return min(by_cores, workers_by_gpus(node, resources)) if resources.gpu else by_cores


def workers_by_gpus(node: Node, resources: Resources) -> int:
    """How many its GPUs alone would hold."""
    gpus = int(node.get("GPU", 0))
    return gpus * per_gpu(resources) if resources.gpu <= 1 else gpus // int(resources.gpu)


def room(nodes: Sequence[Node], resources: Resources) -> int:
    """How many trials these nodes hold at a time. The workers of one may lie on different nodes."""
    return sum(workers_on(node, resources) for node in nodes) // resources.workers


def plan(nodes: Sequence[Node], resources: Resources, most: int | None = None) -> str:
    """How many trials run at a time on these nodes, at most `most`, and where, in words.

    Raises:
        InputError: they can never hold one.
    """
    fit = room(nodes, resources)
    if not fit:
        raise InputError(f"resources: a trial needs {needs(resources)}, but {has(nodes)}")
    used = [node for node in nodes if workers_on(node, resources)]
    count = min(fit, most or fit)
    words = f"{count} at a time"
    on_nodes = counted(len(used), "node")
    if resources.workers > 1:
        each = gpus_in_words(resources.gpu) if resources.gpu else counted(resources.cpu, "core")
        words += f", each {resources.workers} workers with {each}, on {on_nodes}"
    elif resources.gpu > 1:
        words += f", each with {gpus_in_words(resources.gpu)}, on {on_nodes}"
    elif resources.gpu:
        gpus = sum(int(node["GPU"]) for node in used)
        most_on_one = min(count, per_gpu(resources))
        words += ": " if count == gpus * most_on_one else ": at most "
        words += f"{most_on_one} per GPU on {counted(gpus, 'GPU')}"
        words += f" of {on_nodes}" if len(used) > 1 else ""
    else:
        words += f" on {on_nodes}"
    if resources.gpu and count == fit < sum(workers_by_gpus(node, resources) for node in nodes) // resources.workers:
        words += " (the cores hold no more)"
    return words


def needs(resources: Resources) -> str:
    """What a trial needs, in words."""
    each = f"{resources.cpu} cpu and {resources.gpu:g} gpu"
    return f"{each} on one node" if resources.workers == 1 else f"{resources.workers} workers of {each}"


def has(nodes: Sequence[Node]) -> str:
    """What the nodes have, in words, alike ones together."""
    kinds = Counter((int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes)
    listed = [f"{counted(count, 'node')} with {cpu} cpu and {gpu} gpu" for (cpu, gpu), count in kinds.most_common(4)]
    if not listed:
        return "the cluster has no node up"
    rest = len(nodes) - sum(count for _, count in kinds.most_common(4))
    return f"the cluster has {', '.join(listed)}{f' and {rest} others' if rest else ''} up"


def counted(count: int, what: str) -> str:
    """Such as `1 node`, `2 nodes`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def gpus_in_words(gpu: float) -> str:
    """Such as `0.5 GPU`, `1 GPU`, `2 GPUs`."""
    return f"{gpu:g} GPU{'s' if gpu > 1 else ''}"


class Lookout:
    """Notices that trials wait while none runs, because no node that is up has room for one."""

    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self.looked: float | None = None
        """When, by the monotonic clock; None while trials run."""
        self.waiting = False

    def begins_to_wait(self, running: bool) -> bool:
        """Whether that is so from now on. To be asked over and over, with whether any trial runs."""
        now = time.monotonic()
        if running:
            self.looked, self.waiting = None, False
        elif self.looked is None:
            self.looked = now
        elif now - self.looked >= LOOK_SECONDS:
            before = self.waiting
            self.looked = now
            self.waiting = not room([node["Resources"] for node in alive_nodes()], self.resources)
            return self.waiting and not before
        return False


def alive_nodes() -> list[dict[str, Any]]:
    """What Ray says of each node that is up."""
    return [node for node in ray.nodes() if node["Alive"]]


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
