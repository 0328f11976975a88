"""The optimiser for pretraining: Adam without PyTorch's slow imports."""

from __future__ import annotations

import inspect

import torch


class Adam(torch.optim.Adam):
    """PyTorch's Adam (Kingma & Ba 2015, arXiv 1412.6980), fused, without its wrappers for `torch.compile`.

    The wrappers matter only to compiled code, but their first call imports all of `torch._dynamo`. That takes 1.35 s in
    each process, a third of the time before its first trial starts.

    Args:
        params: Tensors, or groups of tensors with their own settings, as for `torch.optim.Adam`.
        lr: Learning rate of the groups that do not set one.
    """

    def __init__(self, params: torch.optim.optimizer.ParamsT, lr: float = 1e-3) -> None:
        super().__init__(params, lr=lr, fused=True)

    # `unwrap` returns the wrapped method, or the method itself if it has no wrapper.
    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Adam.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))  # the wrapper also turned gradients off
