"""The predictor of BYOL and SimSiam, and the similarity that it is trained for."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from raysweep.methods.precision import to_fp32


def build_predictor(dim: int, width: int, batch_norm: bool) -> nn.Sequential:
    """Build a predictor (B, `dim`) -> (B, `dim`) with one hidden layer of `width` units."""
    normalisation = [nn.BatchNorm1d(width)] if batch_norm else []
    return nn.Sequential(nn.Linear(dim, width, bias=not batch_norm), *normalisation, nn.ReLU(), nn.Linear(width, dim))


def mean_cosine(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over the rows of the cosine similarity of predictions (B, D) and targets (B, D), in fp32."""
    return F.cosine_similarity(to_fp32(predictions), to_fp32(targets)).mean()
