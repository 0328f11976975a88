"""Weighted k-nearest-neighbour classification."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from raysweep.errors import Diverged


def knn_accuracy(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, labels: Tensor, *, classes: int, k: int, temperature: float
) -> float:
    """Return the accuracy of kNN with one number of neighbours; see `knn_accuracies`."""
    return knn_accuracies(bank, bank_labels, queries, labels, classes=classes, ks=(k,), temperature=temperature)[0]


@torch.inference_mode()
def knn_accuracies(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    labels: Tensor,
    *,
    classes: int,
    ks: Sequence[int],
    temperature: float,
) -> list[float]:
    """Return the accuracy of kNN for each number of neighbours, from one computation of the similarities.

    A neighbour with the cosine similarity s has a vote of weight exp(s / temperature).

    Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", section 3.4
    (arXiv 1805.01978). If classes have equal votes, the one with the lowest number wins.

    Args:
        bank: (N, D) features of the labelled images.
        bank_labels: (N,) int64 in [0, classes).
        queries: (M, D) features to classify.
        labels: (M,) the true labels of the queries.
        classes: number of classes.
        ks: numbers of neighbours, each at most N.
        temperature: > 0.

    Returns:
        The accuracy for each number in `ks`, in [0, 1].

    Raises:
        Diverged: features are so large that their squares overflow.

    Example:
        >>> bank, labels = torch.eye(3), torch.tensor([0, 1, 2])
        >>> knn_accuracies(bank, labels, bank, labels, classes=3, ks=[1, 3], temperature=0.07)
        [1.0, 1.0]
    """
    assert max(ks) <= len(bank), "numbers of neighbours are checked against the bank before a trial starts"
    bank, finite = normalize(bank)
    right = torch.zeros(len(ks), device=bank.device)
    for part, target in zip(queries.split(1000), labels.split(1000), strict=True):
        directions, part_finite = normalize(part)
        finite &= part_finite
        similarities = directions @ bank.T
        for number, k in enumerate(ks):
            # Each k needs its own search: the first k of a longer list may be other images if similarities are equal.
            similarity, index = similarities.topk(k, dim=1)  # the nearest first
            # Only ratios of votes matter. The nearest neighbour gets weight 1, so that no temperature makes all weights
            # 0. float64 is needed, because a valid temperature may be 0 in float32.
            weights = ((similarity - similarity[:, :1]).double() / temperature).exp()
            votes = weights.new_zeros(len(part), classes).scatter_add_(1, bank_labels[index], weights)
            right[number] += (votes.argmax(1) == target).sum()
    # All results are read at once, because every read waits for the GPU.
    *correct, all_finite = torch.cat((right, finite.to(right.dtype)[None])).tolist()
    if not all_finite:
        raise Diverged("the features are not finite, or so large that their squares overflow")
    return [float(count) / len(queries) for count in correct]


def normalize(features: Tensor) -> tuple[Tensor, Tensor]:
    """Scale each feature vector of (N, D) to length 1. Zero vectors stay zero.

    Returns:
        The scaled features, and a scalar tensor that says whether all lengths are finite.
    """
    lengths = features.norm(dim=1, keepdim=True)
    # The squares of tiny features would be inexact or 0. Multiplication by a power of two changes no digit.
    features = torch.where(lengths < 1e-12, features * 2.0**100, features)
    return F.normalize(features, dim=1, eps=1e-30), lengths.isfinite().all()
