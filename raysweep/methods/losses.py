"""The table of losses between the embeddings of two views. A loss is added here, as a function with its parameters.

A loss is a pure function of the embeddings z1 and z2, (B, D) each, of the two views of a whole batch. It returns a
scalar. In a trial in several processes it sees the whole batch as well.

torch is imported inside the functions, because this module is also read to print the help of a command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from raysweep.parts import loss

if TYPE_CHECKING:
    from torch import Tensor

Temperature = Annotated[float, Field(gt=0), "Temperature τ of NT-Xent."]
BarlowLambda = Annotated[float, Field(ge=0), "Weight λ of Barlow Twins' redundancy-reduction term."]
VicregInvariance = Annotated[float, Field(ge=0), "Weight λ of VICReg's invariance term."]
VicregVariance = Annotated[float, Field(ge=0), "Weight μ of VICReg's variance term."]
VicregCovariance = Annotated[float, Field(ge=0), "Weight ν of VICReg's covariance term."]


@loss(zero_on_equal_views=True)
def mse(z1: Tensor, z2: Tensor) -> Tensor:
    """Mean over all elements of the squared difference; zero where the views agree.

    `z1` and `z2` are the embeddings (B, D) of both views; the result is a scalar, at least 0.
    """
    from torch.nn import functional as F

    return F.mse_loss(z1, z2)


@loss(zero_on_equal_views=True)
def l1(z1: Tensor, z2: Tensor) -> Tensor:
    """Mean over all elements of the absolute difference; zero where the views agree.

    `z1` and `z2` are the embeddings (B, D) of both views; the result is a scalar, at least 0.
    """
    from torch.nn import functional as F

    return F.l1_loss(z1, z2)


@loss(name="simclr")
def nt_xent(z1: Tensor, z2: Tensor, *, temperature: Temperature = 0.5) -> Tensor:
    """Normalised temperature-scaled cross entropy (SimCLR; Chen et al. 2020, arXiv 2002.05709, equation 1).

    Each of the 2B views must find its partner among the 2B − 1 others, by cosine similarity over `temperature` > 0. The
    loss is the mean over both directions. B ≥ 2, and no row is zero.
    """
    import torch
    from torch.nn import functional as F

    z = F.normalize(torch.cat((z1, z2)), dim=1)
    similarity = z @ z.T / temperature
    similarity.fill_diagonal_(-torch.inf)  # a view is no candidate for itself
    b = len(z1)
    partner = torch.arange(2 * b, device=z.device).roll(b)
    return F.cross_entropy(similarity, partner)


@loss(name="barlow")
def barlow_twins(z1: Tensor, z2: Tensor, *, barlow_lambda: BarlowLambda = 0.005) -> Tensor:
    """Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230, equation 1 and algorithm 1).

    C is the cross-correlation matrix of the standardised embeddings over the batch. The loss draws C to the identity
    matrix: Σ_i (1 − C_ii)² + λ · Σ_{i≠j} C_ij². The standardisation uses biased variances plus 1e-5, as batch
    normalisation and the published code do. B ≥ 2.
    """
    c = standardised(z1).T @ standardised(z2) / len(z1)
    on_diagonal = c.diagonal()
    off_diagonal = c - on_diagonal.diag()
    return (1 - on_diagonal).square().sum() + barlow_lambda * off_diagonal.square().sum()


def standardised(z: Tensor) -> Tensor:
    """Mean 0 and variance 1 per dimension over the batch."""
    centred = z - z.mean(0)
    return centred * (centred.square().mean(0) + 1e-5).rsqrt()


@loss
def vicreg(
    z1: Tensor,
    z2: Tensor,
    *,
    vicreg_invariance: VicregInvariance = 25.0,
    vicreg_variance: VicregVariance = 25.0,
    vicreg_covariance: VicregCovariance = 1.0,
) -> Tensor:
    """VICReg (Bardes, Ponce & LeCun 2022, arXiv 2105.04906); `vicreg_losses` describes its terms. B ≥ 2."""
    from raysweep.methods.vicreg import vicreg_losses

    return vicreg_losses(
        z1,
        z2,
        vicreg_invariance=vicreg_invariance,
        vicreg_variance=vicreg_variance,
        vicreg_covariance=vicreg_covariance,
    ).total


@loss
def hinge(
    z1: Tensor,
    z2: Tensor,
    *,
    hinge_m: Annotated[
        float, Field(gt=0), "Threshold m of the contrastive hinge's distances, its decision boundary."
    ] = 2.0,
    hinge_delta: Annotated[float, Field(ge=0), "Margin δ of the contrastive hinge on both sides of m."] = 1.0,
) -> Tensor:
    """Contrastive hinge (Tang, Yang & Amit 2022, doi 10.3389/fncom.2022.789253), published with m = 2 and δ = 1.

    With d_ij = ‖z_i − z'_j‖₁ and y_ij = 1 where i = j, else −1: Σ_ij max(0, δ − y_ij (m − d_ij)) / B. The published sum
    is not divided by B; only the scale of its weight α differs. Views of one image are drawn closer than m − δ, views
    of different images are pushed beyond m + δ. The loss is zero where both hold for all.
    """
    import torch

    distance = torch.cdist(z1, z2, p=1)
    y = 2 * torch.eye(len(z1), dtype=distance.dtype, device=distance.device) - 1
    return (hinge_delta - y * (hinge_m - distance)).clamp_min(0).sum() / len(z1)
