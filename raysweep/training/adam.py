"""PyTorch's optimisers without the wrappers that are slow to import; the fused Adam."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar, cast

import torch

OptimizerType = TypeVar("OptimizerType", bound=type[torch.optim.Optimizer])


def without_compiler(base: OptimizerType) -> OptimizerType:
    """Return a subclass of an optimiser class. It computes the same updates, without the wrappers for `torch.compile`.

    The wrappers matter only to compiled code, but their first call imports all of `torch._dynamo`. That takes 1.35 s in
    each process, a third of the time before its first trial starts.

    Example:
        `without_compiler(torch.optim.SGD)(network.parameters(), lr=0.1)` is an SGD.
    """
    # `unwrap` returns the wrapped method, or the method itself if it has no wrapper.
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    members: dict[str, Any] = {name: inspect.unwrap(getattr(base, name)) for name in names}
    members["step"] = torch.no_grad()(inspect.unwrap(base.step))  # the wrapper also turned gradients off
    return cast(OptimizerType, type(base.__name__, (base,), members))


def fused_adam(params: torch.optim.optimizer.ParamsT, lr: float = 1e-3) -> torch.optim.Adam:
    """Return PyTorch's Adam (Kingma & Ba 2015, arXiv 1412.6980) with its fused kernel.

    Args:
        params: Tensors, or groups of tensors with their own settings, as for `torch.optim.Adam`.
        lr: Learning rate of the groups that do not set one.
    """
    return without_compiler(torch.optim.Adam)(params, lr=lr, fused=True)
