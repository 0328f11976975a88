"""Is the embedding collapsing? Two measures that need no labels."""

from __future__ import annotations

import torch
from torch import Tensor


def embedding_std(z: Tensor) -> float:
    """Mean over dimensions of the standard deviation over embeddings z (N, D); 0 is full collapse."""
    return float(z.std(0, correction=0).mean())


def rankme(z: Tensor) -> float:
    """RankMe of embeddings z (N, D): exp of the entropy of their normalised singular values, in [1, min(N, D)].

    Garrido et al. 2023, arXiv 2210.02885, equation 4, with its ε = 1e-7. Zero where every embedding is zero.
    """
    singular = torch.linalg.svdvals(z.double())
    total = singular.sum()
    if total == 0:
        return 0.0
    p = singular / total + 1e-7
    return float((-(p * p.log()).sum()).exp())
