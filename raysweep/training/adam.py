"""The optimiser."""

from __future__ import annotations

import inspect

import torch


class Adam(torch.optim.Adam):
    """PyTorch's Adam (Kingma & Ba 2015, arXiv 1412.6980), fused, without its wrappers for `torch.compile`.

    They matter to compiled code only, but when first called they import all of `torch._dynamo`: 1.35 s in each process,
    a third of what it needs to begin its first trial.

    Args:
        params: as for `torch.optim.Adam`: tensors, or groups of them with settings of their own.
        lr: learning rate of the groups that have none.
    """

    def __init__(self, params: torch.optim.optimizer.ParamsT, lr: float = 1e-3) -> None:
        super().__init__(params, lr=lr, fused=True)

    # What a wrapper wraps, or the method itself where it is not wrapped.
    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Adam.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))  # its wrapper turns gradients off as well
