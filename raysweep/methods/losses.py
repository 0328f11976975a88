"""Losses between the embeddings of two views, as pure functions of z, z' (B, D) that return a scalar."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def mse(z1: Tensor, z2: Tensor) -> Tensor:
    """Mean over all elements of the squared difference; z1, z2: (B, D). Zero where the views agree."""
    return F.mse_loss(z1, z2)


def l1(z1: Tensor, z2: Tensor) -> Tensor:
    """Mean over all elements of the absolute difference; z1, z2: (B, D). Zero where the views agree."""
    return F.l1_loss(z1, z2)


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross entropy (SimCLR; Chen et al. 2020, arXiv 2002.05709, equation 1).

    Each of the 2B views must find its partner among the 2B − 1 others, by cosine similarity over `temperature` > 0;
    the mean over both directions. z1, z2: (B, D), B ≥ 2, nonzero rows.
    """
    z = F.normalize(torch.cat((z1, z2)), dim=1)
    similarity = z @ z.T / temperature
    similarity.fill_diagonal_(-torch.inf)  # a view is no candidate for itself
    b = len(z1)
    partner = torch.arange(2 * b, device=z.device).roll(b)
    return F.cross_entropy(similarity, partner)


def barlow_twins(z1: Tensor, z2: Tensor, weight: float) -> Tensor:
    """Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230, equation 1 and algorithm 1).

    The cross-correlation over the batch of the standardised embeddings is drawn to the identity: Σ_i (1 − C_ii)² +
    weight · Σ_{i≠j} C_ij². z1, z2: (B, D), B ≥ 2. Batch variances are the biased ones with 1e-5 added, as batch norm
    (and the published code) has them.
    """
    c = _standardise(z1).T @ _standardise(z2) / len(z1)
    on_diagonal = c.diagonal()
    off_diagonal = c - on_diagonal.diag()
    return (1 - on_diagonal).square().sum() + weight * off_diagonal.square().sum()


def _standardise(z: Tensor) -> Tensor:
    """Mean 0 and variance 1 per dimension over the batch."""
    centred = z - z.mean(0)
    return centred * (centred.square().mean(0) + 1e-5).rsqrt()


def hinge(z1: Tensor, z2: Tensor, m: float, delta: float) -> Tensor:
    """Contrastive hinge (Tang, Yang & Amit 2022, doi 10.3389/fncom.2022.789253), published with m = 2 and δ = 1.

    With d_ij = ‖z_i − z'_j‖₁ and y_ij = 1 where i = j, else −1: Σ_ij max(0, δ − y_ij (m − d_ij)) / B. The published sum
    is not divided by B; only the scale of its weight α differs. Views of one image are drawn closer than m − δ, those
    of different images pushed beyond m + δ. z1, z2: (B, D); zero where both hold for all.
    """
    distance = torch.cdist(z1, z2, p=1)
    y = 2 * torch.eye(len(z1), dtype=distance.dtype, device=distance.device) - 1
    return (delta - y * (m - distance)).clamp_min(0).sum() / len(z1)
