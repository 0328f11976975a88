"""Two measures of a collapse of the embedding. They need no labels."""

from __future__ import annotations

import torch
from torch import Tensor


def embedding_std(z: Tensor) -> float:
    """Return the standard deviation over embeddings z (N, D), mean over dimensions; 0 means full collapse."""
    return float(z.std(0, correction=0).mean())


def rankme(z: Tensor) -> float:
    """Return RankMe of embeddings z (N, D): exp of the entropy of their normalised singular values.

    Garrido et al. 2023, arXiv 2210.02885, equation 4, with ε = 1e-7. The result is in [1, min(N, D)], but the ε of the
    paper can make it slightly larger than min(N, D). It is 0 if every embedding is zero.
    """
    singular = torch.linalg.svdvals(z.double())
    total = singular.sum()
    if total == 0:
        return 0.0
    p = singular / total + 1e-7
    return float((-(p * p.log()).sum()).exp())
