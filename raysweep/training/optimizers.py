"""The table of optimisers for pretraining. To add an optimiser, add a function here that builds it.

An optimiser is a `torch.optim.Optimizer` of a list of parameters. A schedule may set the entry `lr` of its parameter
groups before each step. Its state must consist of tensors and plain values, so that a trial can resume.

PyTorch is imported inside the functions, because commands import this module just to print their help.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from raysweep.parts import Condition, optimizer

if TYPE_CHECKING:
    import torch

WeightDecay = Annotated[
    float, Field(ge=0), "Weight decay in pretraining: decoupled in AdamW, an L2 penalty in SGD and LARS."
]
DecayNormsAndBiases = Annotated[
    bool,
    "Whether weight decay also applies to biases and to the parameters of normalisation layers, which are the "
    "parameters with one dimension.",
    Condition("`weight_decay` > 0", lambda s: s.weight_decay > 0),
]
Momentum = Annotated[float, Field(ge=0, lt=1), "Momentum of SGD and LARS."]
Nesterov = Annotated[
    bool,
    "Whether the momentum is Nesterov's (Sutskever et al. 2013).",
    Condition("`momentum` > 0", lambda s: s.momentum > 0),
]


@optimizer
def adam(weights: Sequence[torch.nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Adam (Kingma & Ba 2015, arXiv 1412.6980), without weight decay."""
    from raysweep.training.adam import fused_adam

    return fused_adam(list(weights), lr=lr)


@optimizer
def adamw(
    weights: Sequence[torch.nn.Parameter],
    lr: float,
    *,
    weight_decay: WeightDecay = 0.0,
    decay_norms_and_biases: DecayNormsAndBiases = True,
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101): Adam with decoupled weight decay."""
    import torch

    from raysweep.training.adam import without_compiler

    groups = decayed(weights, weight_decay, decay_norms_and_biases)
    return without_compiler(torch.optim.AdamW)(groups, lr=lr, fused=True)


@optimizer
def sgd(
    weights: Sequence[torch.nn.Parameter],
    lr: float,
    *,
    weight_decay: WeightDecay = 0.0,
    decay_norms_and_biases: DecayNormsAndBiases = True,
    momentum: Momentum = 0.9,
    nesterov: Nesterov = False,
) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum (Sutskever et al. 2013, "On the importance of initialization")."""
    import torch

    from raysweep.training.adam import without_compiler

    groups = decayed(weights, weight_decay, decay_norms_and_biases)
    return without_compiler(torch.optim.SGD)(groups, lr=lr, momentum=momentum, nesterov=nesterov and momentum > 0)


def check_timm(settings: Any) -> None:
    """Raise ValueError if timm is not installed."""
    if find_spec("timm") is None:
        raise ValueError(
            f"optimizer: {settings.optimizer}: needs the package timm; install it with pip install 'raysweep[timm]'"
        )


@optimizer(check=check_timm)
def lars(
    weights: Sequence[torch.nn.Parameter],
    lr: float,
    *,
    weight_decay: WeightDecay = 0.0,
    momentum: Momentum = 0.9,
    nesterov: Nesterov = False,
    trust_coefficient: Annotated[
        float,
        Field(gt=0),
        "Trust coefficient η of LARS. The trust ratio of a layer is η times the norm of its weights, divided by the "
        "norm of their gradient.",
    ] = 0.001,
    clip_trust: Annotated[
        bool,
        "Whether a layer's rate is its trust ratio, but at most `usl_lr` (LARC), instead of the product of both. "
        "solo-learn calls it `clip_lr`.",
    ] = False,
    adapt_norms_and_biases: Annotated[
        bool,
        "Whether LARS also adapts the rate of biases and of the parameters of normalisation layers, and decays them. "
        "SimCLR and BYOL do not.",
    ] = False,
) -> torch.optim.Optimizer:
    """LARS (You et al. 2017, arXiv 1708.03888): SGD with a rate for each layer. It needs the package timm."""
    from timm.optim.lars import Lars

    from raysweep.training.adam import without_compiler

    # timm adapts a group without weight decay only if it is told to.
    adapted = {"weight_decay": weight_decay, "always_adapt": True}
    groups = grouped(weights, adapted, adapted if adapt_norms_and_biases else {"weight_decay": 0.0})
    return without_compiler(Lars)(
        groups,
        lr=lr,
        momentum=momentum,
        nesterov=nesterov and momentum > 0,
        trust_coeff=trust_coefficient,
        trust_clip=clip_trust,
    )


def decayed(
    weights: Sequence[torch.nn.Parameter], weight_decay: float, decay_norms_and_biases: bool
) -> list[dict[str, Any]]:
    """Return parameter groups with their weight decay.

    Biases and normalisation layers get it only with `decay_norms_and_biases`.
    """
    return grouped(weights, {"weight_decay": weight_decay}, {"weight_decay": weight_decay * decay_norms_and_biases})


def grouped(
    weights: Sequence[torch.nn.Parameter], options: dict[str, Any], options_of_vectors: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return parameter groups: the parameters with at most one dimension, and the others.

    Biases and the parameters of normalisation layers have one dimension, and all other weights have more.

    Args:
        weights: The parameters of all layers.
        options: The options of the parameters with two or more dimensions.
        options_of_vectors: The options of the parameters with at most one dimension.

    Returns:
        One group if the options are equal, otherwise two. No group is empty.
    """
    if options == options_of_vectors:
        return [{"params": list(weights), **options}]
    groups = [
        {"params": [weight for weight in weights if weight.ndim > 1], **options},
        {"params": [weight for weight in weights if weight.ndim <= 1], **options_of_vectors},
    ]
    return [group for group in groups if group["params"]]
