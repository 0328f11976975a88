"""An optimiser of one's own: gradient descent with the sign of the gradient (Bernstein et al. 2018, arXiv 1802.04434).

Sweep its shrinkage:

    raysweep sweep --plugin examples/my_optimizer.py --optimizer signs --set 'shrinkage=[0,0.1]' --set 'seed=[0,1,2]'
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

import raysweep

if TYPE_CHECKING:
    import torch


@raysweep.optimizer
def signs(
    weights: Sequence[torch.nn.Parameter],
    lr: float,
    *,
    shrinkage: Annotated[float, Field(ge=0), "Decoupled weight decay of the `signs` optimiser."] = 0.0,
) -> torch.optim.Optimizer:
    """Each weight moves by the learning rate, against the sign of its gradient."""
    import torch

    class Signs(torch.optim.Optimizer):
        @torch.no_grad()
        def step(self, closure=None):  # type: ignore[no-untyped-def]
            for group in self.param_groups:
                for weight in group["params"]:
                    if weight.grad is not None:
                        weight.mul_(1 - group["lr"] * shrinkage).add_(weight.grad.sign(), alpha=-group["lr"])

    return Signs(weights, {"lr": lr})
