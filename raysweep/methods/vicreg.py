"""The terms of VICReg."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from raysweep.methods.method import Losses

VARIANCE_EPSILON = 1e-4
"""Added to each variance before the root, as published. It keeps the gradient finite if a dimension is constant."""


def vicreg_losses(
    z1: Tensor, z2: Tensor, *, vicreg_invariance: float, vicreg_variance: float, vicreg_covariance: float
) -> Losses:
    """Compute VICReg's three terms and their weighted sum (Bardes, Ponce & LeCun 2022, arXiv 2105.04906).

    The terms are computed as in the published code and in lightly, which average the variance term over the two views
    where equation 6 of the paper adds it up.

    Args:
        z1: Embeddings (B, D) of the first views, B ≥ 2.
        z2: Embeddings (B, D) of the second views.
        vicreg_invariance: Weight λ of the invariance term.
        vicreg_variance: Weight μ of the variance term.
        vicreg_covariance: Weight ν of the covariance term.

    Returns:
        The weighted sum, and the terms without their weights.

    Example:
        `vicreg_losses(z, z, vicreg_invariance=25, vicreg_variance=25, vicreg_covariance=1).parts["invariance_loss"]`
        is zero.
    """
    invariance = F.mse_loss(z1, z2)
    variance = (variance_term(z1) + variance_term(z2)) / 2
    covariance = covariance_term(z1) + covariance_term(z2)
    total = vicreg_invariance * invariance + vicreg_variance * variance + vicreg_covariance * covariance
    return Losses(total, {"invariance_loss": invariance, "variance_loss": variance, "covariance_loss": covariance})


def variance_term(z: Tensor) -> Tensor:
    """Return the mean over dimensions of max(0, 1 − std), with the unbiased variance over the batch (equation 1)."""
    return F.relu(1 - (z.var(0) + VARIANCE_EPSILON).sqrt()).mean()


def covariance_term(z: Tensor) -> Tensor:
    """Return the sum of the squared covariances of different dimensions, divided by D (equations 3 and 4)."""
    centred = z - z.mean(0)
    covariance = centred.T @ centred / (len(z) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / z.shape[1]
