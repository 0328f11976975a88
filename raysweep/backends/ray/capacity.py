"""The number of trials that the nodes of a cluster can hold: the plan in words, and a check while a sweep runs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from raysweep.errors import InputError
from raysweep.space import Resources
from raysweep.system.terminal import counted

LOOK_SECONDS = 5.0  # seconds between two checks of the nodes while no trial runs
Node = Mapping[str, float]
"""A node's resources, by Ray's names."""


def per_gpu(resources: Resources) -> int:
    """Return how many workers Ray puts on one GPU. Ray counts in steps of 1/10,000 and cuts off smaller amounts."""
    return 10_000 // int(resources.gpu * 10_000) if 0 < resources.gpu <= 1 else 0


def workers_on(node: Node, resources: Resources) -> int:
    """Return how many trial workers fit on a node; a worker cannot be spread over several nodes."""
    by_cores = int(node.get("CPU", 0)) // resources.cpu
    return min(by_cores, workers_by_gpus(node, resources)) if resources.gpu else by_cores


def workers_by_gpus(node: Node, resources: Resources) -> int:
    """Return how many workers would fit on a node if only its GPUs counted."""
    gpus = int(node.get("GPU", 0))
    return gpus * per_gpu(resources) if resources.gpu <= 1 else gpus // int(resources.gpu)


def room(nodes: Sequence[Node], resources: Resources) -> int:
    """Return how many trials these nodes hold at a time. A trial's workers may be on different nodes."""
    return sum(workers_on(node, resources) for node in nodes) // resources.workers


def plan(nodes: Sequence[Node], resources: Resources, most: int | None = None) -> str:
    """Describe how many trials run at a time on these nodes, at most `most`, and where.

    Raises:
        InputError: The nodes can never hold a trial.
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
    return words + unused_gpus(nodes, resources)


def unused_gpus(nodes: Sequence[Node], resources: Resources) -> str:
    """Return the end of the plan if the nodes have GPUs and the trials ask for none; else an empty text."""
    idle = sum(int(node.get("GPU", 0)) for node in nodes)
    if resources.gpu or not idle:
        return ""
    uses = "is" if idle == 1 else "are"
    return f"; {counted(idle, 'GPU')} {uses} not used (--set resources.gpu=1 gives one to each trial)"


def needs(resources: Resources) -> str:
    """Describe what a trial needs."""
    each = f"{resources.cpu} cpu and {resources.gpu:g} gpu"
    return f"{each} on one node" if resources.workers == 1 else f"{resources.workers} workers of {each}"


def has(nodes: Sequence[Node]) -> str:
    """Describe what the nodes have, grouping equal nodes."""
    kinds = Counter((int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes)
    listed = [f"{counted(count, 'node')} with {cpu} cpu and {gpu} gpu" for (cpu, gpu), count in kinds.most_common(4)]
    if not listed:
        return "the cluster has no node up"
    rest = len(nodes) - sum(count for _, count in kinds.most_common(4))
    return f"the cluster has {', '.join(listed)}{f' and {rest} others' if rest else ''} up"


def gpus_in_words(gpu: float) -> str:
    """Return a number of GPUs in words, such as `0.5 GPU`, `1 GPU` or `2 GPUs`."""
    return f"{gpu:g} GPU{'s' if gpu > 1 else ''}"


class CapacityMonitor:
    """Detects that trials wait and none runs, because no running node has room for one."""

    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self.looked: float | None = None
        """The monotonic time of the last check of the nodes; None while trials run."""
        self.waiting = False

    def begins_to_wait(self, running: bool) -> bool:
        """Return whether waiting begins now. Call this repeatedly; `running` tells whether any trial runs."""
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
    """Return Ray's information about each node that is up."""
    return [node for node in ray.nodes() if node["Alive"]]
