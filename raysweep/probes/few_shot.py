"""Few-shot classification: the nearest class mean of a few labelled images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raysweep.errors import Diverged
from raysweep.probes.knn import normalize


@torch.inference_mode()
def few_shot_accuracies(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, labels: Tensor, *, classes: int, draws: Sequence[Tensor]
) -> list[float]:
    """Return the accuracy of the nearest class mean for each draw of labelled images.

    SimpleShot (Wang et al. 2019, arXiv 1911.04623), with the transformation CL2N: the mean of all features in the bank
    is subtracted, which needs no labels, and each feature vector is scaled to length 1. A query gets the class whose
    mean over the drawn images has the smallest Euclidean distance to the query. If distances are equal, the class with
    the lowest number wins. A class without images in the draw is never chosen.

    Args:
        bank: (N, D) features of the images from which labelled ones are drawn.
        bank_labels: (N,) int64 in [0, classes).
        queries: (M, D) features to classify.
        labels: (M,) the true labels of the queries.
        classes: number of classes.
        draws: for each draw, the positions of its images in the bank, int64 on the device of the bank.

    Returns:
        The accuracy of each draw, in [0, 1].

    Raises:
        Diverged: features are so large that their squares overflow.

    Example:
        >>> bank, labels = torch.eye(4), torch.tensor([0, 1, 0, 1])
        >>> few_shot_accuracies(bank, labels, bank[:2], labels[:2], classes=2, draws=[torch.tensor([0, 1])])
        [1.0]
    """
    center = bank.mean(0)
    means, finite = [], torch.ones((), dtype=torch.bool, device=bank.device)
    for index in draws:
        directions, all_finite = normalize(bank[index] - center)
        finite &= all_finite
        drawn = bank_labels[index]
        sums = directions.new_zeros(classes, bank.shape[1]).index_add_(0, drawn, directions)
        means.append(sums / drawn.bincount(minlength=classes)[:, None])  # NaN without images
    stacked = torch.cat(means)
    # |q − m|² = |q|² − 2 q·m + |m|², and |q|² is the same for every class.
    offsets = stacked.square().sum(1)
    right = torch.zeros(len(draws), device=bank.device)
    for part, target in zip(queries.split(1000), labels.split(1000), strict=True):
        directions, all_finite = normalize(part - center)
        finite &= all_finite
        distances = (offsets - 2 * directions @ stacked.T).view(len(part), len(draws), classes)
        right += (distances.nan_to_num(nan=torch.inf).argmin(2) == target[:, None]).sum(0)
    # All results are read at once, because every read waits for the GPU.
    *correct, all_are_finite = torch.cat((right, finite.to(right.dtype)[None])).tolist()
    if not all_are_finite:
        raise Diverged("the features are not finite, or so large that their squares overflow")
    return [float(count) / len(queries) for count in correct]
