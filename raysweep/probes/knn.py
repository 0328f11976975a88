"""Weighted k-nearest-neighbour classification."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.inference_mode()
def knn_accuracy(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, labels: Tensor, *, classes: int, k: int, temperature: float
) -> float:
    """Accuracy of kNN by cosine similarity s, each neighbour voting with exp(s / temperature).

    Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", section 3.4
    (arXiv 1805.01978).

    Args:
        bank: (N, D) features of the labelled images.
        bank_labels: (N,) int64 in [0, classes).
        queries: (M, D) features to classify.
        labels: (M,) their true labels.
        classes: number of classes.
        k: neighbours, at most N.
        temperature: > 0.
    """
    assert k <= len(bank), "knn_k is checked against the bank before a trial starts"
    bank = F.normalize(bank, dim=1)
    right = torch.zeros((), device=bank.device)
    for part, target in zip(queries.split(1000), labels.split(1000), strict=True):
        similarity, index = (F.normalize(part, dim=1) @ bank.T).topk(k, dim=1)
        # exp((s − 1)/τ): the same votes as exp(s/τ), without overflow at a small τ
        weights = ((similarity - 1) / temperature).exp()
        votes = torch.zeros(len(part), classes, device=bank.device).scatter_add_(1, bank_labels[index], weights)
        right += (votes.argmax(1) == target).sum()
    return right.item() / len(queries)
