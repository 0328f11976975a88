"""A trial in several processes, each with a part of every batch: what they share, and how they agree.

All processes draw the same numbers and hold the same state; only the batch is divided. Embeddings are gathered before
a loss reads them, so that every loss is that of the whole batch, and gradients are those of one process. The first
process leads: it alone evaluates, writes, and decides when to leave.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raysweep.augment.operations import BatchPart

T = TypeVar("T")


@dataclass(frozen=True)
class BatchShard:
    """One process's part of a batch of `batch` images: those from `start` to before `end`.

    Losses that it computes are its shares of the batch's: over all processes they add up to them.
    """

    batch: int
    start: int
    end: int
    processes: int

    @property
    def fraction(self) -> float:
        """Of the batch's images."""
        return (self.end - self.start) / self.batch

    def views(self, count: int) -> BatchPart:
        """Where the views of its images are among `count` views of each of the batch's, first views first."""
        each = torch.arange(count)[:, None] * self.batch
        return BatchPart(count * self.batch, (each + torch.arange(self.start, self.end)).flatten())

    def gather(self, z: Tensor) -> Tensor:
        """This process's rows (end − start, D) -> all rows (batch, D), with gradient.

        What is then computed from all rows, divided by the number of processes, is the process's share.
        """
        rows: Tensor = _Gather.apply(z, self)
        return rows


class _Gather(torch.autograd.Function):
    """Rows of all processes. A sum with zeros, because parts may differ in size; it is exact."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, share: BatchShard) -> Tensor:
        ctx.share = share
        rows = z.new_zeros(share.batch, z.shape[1])
        rows[share.start : share.end] = z
        dist.all_reduce(rows)
        return rows

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # Every process computes the same share of the same loss, so that the sum of their gradients, which a gather's
        # backward is, is a multiple of one of them: no need to communicate.
        share: BatchShard = ctx.share
        return gradient[share.start : share.end] * share.processes, None


@dataclass
class DistributedContext:
    """The processes of a trial, and which of them this is; by default the only one."""

    rank: int = 0
    size: int = 1
    talk: dist.ProcessGroup | None = None
    """By which they agree: over the network even where gradients go from GPU to GPU, so that no GPU is waited for."""

    met: bool = False
    """Whether the leader has called the others."""

    @property
    def lead(self) -> bool:
        """Whether this process leads."""
        return self.rank == 0

    def meet(self) -> bool:
        """The leader calls the others, which wait for it; gives whether there is something to do together."""
        self.met = True
        return self.agree(True)

    def dismiss(self) -> None:
        """The leader ends; where it never came to call the others, these end too."""
        if not self.met:
            self.agree(False)

    def share(self, batch: int) -> BatchShard | None:
        """This process's part of a batch; None for all of it."""
        if self.size == 1:
            return None
        return BatchShard(batch, batch * self.rank // self.size, batch * (self.rank + 1) // self.size, self.size)

    def parallel(self, network: nn.Module) -> nn.Module:
        """The network, its gradients averaged over the processes where there are several."""
        if self.size == 1:
            return network
        return DistributedDataParallel(network, gradient_as_bucket_view=True)

    def backward(self, share: Tensor) -> None:
        """Gradients of the batch's loss, from this process's share of it."""
        # Averaged they must give the sum: the factor that is easily forgotten.
        (share if self.size == 1 else share * self.size).backward()

    def add_up(self, shares: Tensor) -> None:
        """Replace what each process has by the sum, in place."""
        if self.size > 1:
            dist.all_reduce(shares)

    def agree(self, flag: bool) -> bool:
        """What the leader says; what the others pass is not looked at. All processes must call it."""
        if self.size == 1:
            return flag
        said = torch.tensor([flag])
        dist.broadcast(said, src=0, group=self.talk)
        return bool(said)

    def hand_over(self, value: T) -> Generator[T, None, bool]:
        """Yield `value`; gives whether to leave: where the leader's generator is closed, the others' end too."""
        try:
            yield value
        except GeneratorExit:
            self.agree(True)
            raise
        return self.agree(False)

    def spread(self, state: dict[str, Any] | None) -> dict[str, Any]:
        """The leader's `state`, tensors and plain values, for every process."""
        assert self.size > 1
        packed = [None]
        if self.lead:
            file = io.BytesIO()
            torch.save(state, file)
            packed = [file.getvalue()]  # type: ignore[list-item]
        dist.broadcast_object_list(packed, src=0, group=self.talk)
        assert packed[0] is not None
        loaded: dict[str, Any] = torch.load(io.BytesIO(packed[0]), map_location="cpu", weights_only=True)
        return loaded


SINGLE_PROCESS = DistributedContext()


def join() -> DistributedContext:
    """The processes of torch.distributed's default group, which is there already; all of them must call it."""
    # Long, for the others wait while the leader evaluates; one that dies closes its connections, which ends them all.
    talk = dist.new_group(backend="gloo", timeout=timedelta(days=1))
    assert isinstance(talk, dist.ProcessGroup)
    return DistributedContext(dist.get_rank(), dist.get_world_size(), talk)


class TrainingStep(nn.Module):
    """What one optimizer trains, and the losses of a batch, as one network: the unit that is trained in parallel.

    Args:
        trained: every parameter of theirs has a part in the losses.
        losses: of (views, clean images).
    """

    def __init__(self, trained: Iterable[nn.Module], losses: Callable[[Tensor, Tensor], T]) -> None:
        super().__init__()
        self.trained = nn.ModuleList(trained)
        self.losses = losses

    def forward(self, views: Tensor, clean: Tensor) -> Any:
        """As `losses`."""
        return self.losses(views, clean)
