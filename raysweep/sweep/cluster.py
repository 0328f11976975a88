"""Connecting to Ray, and refusing what its cluster cannot do before anything starts."""

from __future__ import annotations

import logging
import os
import socket
import uuid
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysweep.bucket import Bucket
from raysweep.errors import InputError
from raysweep.space import Resources

CONNECT_SECONDS = 5.0

# What Ray says on every start and end, to which a user can do nothing. Everything else it warns of is let through.
CHATTER = (
    "Token authentication is enabled",
    "Failed to fetch metrics for",
    "Trial task failed for trial",  # the view says so in one line, and error.txt has the traceback
    "Trials did not complete",
)


def quieten() -> None:
    """Silence Ray's chatter in this process. To be called before Ray is initialised."""
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # their files lag behind; ours are live
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # it would swallow Ctrl-C: the exit status is ours to set
    # A stopped trial's thread ends, and lets go of its directory, while the next trial waits for its worker.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "30")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new output prints a table even when told to be silent
    for handler in logging.getLogger("ray").handlers:
        handler.addFilter(lambda record: not any(text in record.getMessage() for text in CHATTER))


def connect(address: str | None, resources: Resources, most: int | None = None) -> str:
    """Attach to the cluster at `address` or RAY_ADDRESS, or start one on this machine; returns the plan in words.

    Raises:
        InputError: nobody answers at the address, or no node can ever hold one trial.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    quieten()
    if address is None:  # a server that died on this machine does not come back; Ray would look for it for a minute
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "10")
    try:
        if address is not None:
            knock(address)
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,  # nobody looks at it, and it costs a second
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except (OSError, ValueError, RuntimeError) as fault:
        reason = " ".join(str(fault).split())
        if address is None:
            raise InputError(f"Ray cannot be started on this machine: {reason}") from None
        raise InputError(
            f"the Ray cluster at {address} cannot be used: {reason} (is it up, and is its token, which `ray "
            f"get-auth-token` prints there, in ~/.ray/auth_token here?)"
        ) from None
    return check_resources(resources, most)


def disconnect() -> None:
    """Leave the cluster, and end it if `connect` started it."""
    ray.shutdown()


def knock(address: str) -> None:
    """Raises OSError unless something listens at `address`, [ray://]HOST:PORT: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS):
            pass


def alive_nodes() -> list[dict[str, Any]]:
    """What Ray says of each node that is up."""
    return [node for node in ray.nodes() if node["Alive"]]


def check_resources(resources: Resources, most: int | None = None) -> str:
    """Raises InputError unless some node can hold a trial; returns how many run at a time, at most `most`, in words."""
    nodes = [node["Resources"] for node in alive_nodes()]
    slots = 0
    for node in nodes:
        fits = int(node.get("CPU", 0)) // resources.cpu
        if resources.gpu:
            gpus = node.get("GPU", 0)
            on_gpus = int(gpus) * int(1 / resources.gpu) if resources.gpu <= 1 else int(gpus // resources.gpu)
            fits = min(fits, on_gpus)
        slots += fits
    if not slots:
        most_cpus = max((int(node.get("CPU", 0)) for node in nodes), default=0)
        most_gpus = max((int(node.get("GPU", 0)) for node in nodes), default=0)
        raise InputError(
            f"resources: a trial needs {resources.cpu} cpu and {resources.gpu:g} gpu on one node, but the cluster's "
            f"{len(nodes)} node(s) have at most {most_cpus} cpu and {most_gpus} gpu"
        )
    return f"{min(slots, most or slots)} at a time on {len(nodes)} node{'s' if len(nodes) > 1 else ''}"


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
