"""A trial in several processes, each with its rows of every batch.

All processes draw the same numbers and hold the same state; only the batch is divided. Embeddings are gathered before a
loss reads them, so that every loss is the loss of the whole batch, and the gradients equal the gradients of one
process. The main process, rank 0, alone evaluates, writes results, and decides when to stop.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raysweep.augment.operations import BatchPart, all_views

T = TypeVar("T")


@dataclass(frozen=True)
class BatchShard:
    """The rows of a batch of `batch` images that one process holds: `start` up to, but not including, `end`.

    A process computes its share of each loss of the batch. The shares of all processes add up to the loss.
    """

    batch: int
    start: int
    end: int
    processes: int

    @property
    def fraction(self) -> float:
        """The fraction of the batch's images that this process holds."""
        return (self.end - self.start) / self.batch

    def views(self, count: int) -> BatchPart:
        """Return this process's positions among `count` views of each image of the batch, with first views first."""
        offsets = torch.arange(count)[:, None] * self.batch
        index = (offsets + torch.arange(self.start, self.end)).flatten()
        return replace(all_views(count, self.batch), index=index)

    def gather(self, z: Tensor) -> Tensor:
        """Gather this process's rows (end − start, D) into all rows (batch, D), with gradient.

        A value computed from all rows, divided by the number of processes, is this process's share of the value.
        """
        rows: Tensor = _Gather.apply(z, self)
        return rows


class _Gather(torch.autograd.Function):
    """Gathers the rows of all processes by adding rows to zeros, as shards may differ in size; the sum is exact."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, shard: BatchShard) -> Tensor:
        ctx.shard = shard
        rows = z.new_zeros(shard.batch, z.shape[1])
        rows[shard.start : shard.end] = z
        dist.all_reduce(rows)
        return rows

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # Every process computes the same share of the same loss. The gradient of the gathered rows is the sum of the
        # gradients of all processes. These gradients are equal, so the sum is a multiple of the gradient in this
        # process, and the processes need not communicate.
        shard: BatchShard = ctx.shard
        return gradient[shard.start : shard.end] * shard.processes, None


@dataclass
class DistributedContext:
    """The processes of a trial, and the rank of this one; by default it is the only one."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None
    """The group for messages between the processes.

    It uses the network even if gradients go from GPU to GPU, so that a message never waits for a GPU.
    """
    has_met: bool = False
    """Whether this process has called `meet`."""

    @property
    def is_main(self) -> bool:
        """Whether this is the main process."""
        return self.rank == 0

    def meet(self) -> bool:
        """Start training in all processes. Return False if the main process has called `dismiss` instead."""
        self.has_met = True
        return self.broadcast_flag(True)

    def dismiss(self) -> None:
        """End the other processes, which wait in `meet`. The main process calls this.

        It does nothing if the main process has called `meet`.
        """
        if not self.has_met:
            self.broadcast_flag(False)

    def shard(self, batch: int) -> BatchShard | None:
        """Return the rows of a batch of `batch` images that this process holds; None means all rows."""
        if self.size == 1:
            return None
        return BatchShard(batch, batch * self.rank // self.size, batch * (self.rank + 1) // self.size, self.size)

    def parallel(self, network: nn.Module) -> nn.Module:
        """Return the network; with several processes, its gradients are averaged over them."""
        if self.size == 1:
            return network
        return DistributedDataParallel(network, gradient_as_bucket_view=True)

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of the batch's loss from this process's share of it."""
        # The gradients are averaged over the processes, but their sum is needed.
        (loss if self.size == 1 else loss * self.size).backward()

    def all_reduce(self, values: Tensor) -> None:
        """Replace the values of each process by the sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)

    def broadcast_flag(self, flag: bool) -> bool:
        """Return the flag of the main process; the flags of the others are ignored. All processes must call it."""
        if self.size == 1:
            return flag
        message = torch.tensor([flag])
        dist.broadcast(message, src=0, group=self.group)
        return bool(message)

    def yield_together(self, value: T) -> Generator[T, None, bool]:
        """Yield `value`. Return True if the generator of the main process was closed."""
        try:
            yield value
        except GeneratorExit:
            self.broadcast_flag(True)
            raise
        return self.broadcast_flag(False)

    def broadcast_state(self, state: dict[str, Any] | None) -> dict[str, Any]:
        """Return the `state` of the main process, tensors and plain values, in every process."""
        assert self.size > 1
        packed = [None]
        if self.is_main:
            file = io.BytesIO()
            torch.save(state, file)
            packed = [file.getvalue()]  # type: ignore[list-item]
        dist.broadcast_object_list(packed, src=0, group=self.group)
        assert packed[0] is not None
        loaded: dict[str, Any] = torch.load(io.BytesIO(packed[0]), map_location="cpu", weights_only=True)
        return loaded


SINGLE_PROCESS = DistributedContext()


def join() -> DistributedContext:
    """Join the existing default group of torch.distributed. All processes must call this."""
    # The time-out is long, because the others wait while the main process evaluates. A process that dies closes its
    # connections, which ends all of them.
    group = dist.new_group(backend="gloo", timeout=timedelta(days=1))
    assert isinstance(group, dist.ProcessGroup)
    return DistributedContext(dist.get_rank(), dist.get_world_size(), group)


class TrainingStep(nn.Module):
    """The modules that one optimizer trains and the losses of a batch, as one network that is trained in parallel.

    Args:
        trained: The modules. Each of their parameters must take part in the losses.
        losses: A function of (views, clean images).
    """

    def __init__(self, trained: Iterable[nn.Module], losses: Callable[[Tensor, Tensor], T]) -> None:
        super().__init__()
        self.trained = nn.ModuleList(trained)
        self.losses = losses

    def forward(self, views: Tensor, clean: Tensor) -> Any:
        """Return the losses of a batch."""
        return self.losses(views, clean)
