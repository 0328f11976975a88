"""The linear probe: a linear classifier on cached features."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raysweep.errors import Diverged
from raysweep.randomness import seed_of


@dataclass(frozen=True)
class LinearProbe:
    """A classifier in training, and what it reached after `epoch` epochs."""

    classifier: nn.Linear
    epoch: int
    loss: float
    train_accuracy: float


def train_linear(
    features: Tensor, labels: Tensor, classes: int, *, epochs: int, lr: float, batch_size: int, seed: int
) -> Iterator[LinearProbe]:
    """Train a linear classifier by Adam and cross entropy, yielding it after each epoch.

    Args:
        features: (N, D) float32.
        labels: (N,) int64 in [0, classes), on the same device.
        classes: number of classes.
        epochs: passes over the features; the last one counts.
        lr: Adam's learning rate.
        batch_size: features per step, the last incomplete batch included.
        seed: of the initial weights and the order.

    Raises:
        Diverged: the loss is NaN or infinite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "linear"))
        classifier = nn.Linear(features.shape[1], classes).to(features.device)
    order_of = torch.Generator().manual_seed(seed_of(seed, "linear order"))
    optimizer = torch.optim.Adam(classifier.parameters(), lr=lr, fused=True)
    for epoch in range(1, epochs + 1):
        sums = torch.zeros(2, dtype=torch.float64, device=features.device)
        for index in torch.randperm(len(features), generator=order_of).to(features.device).split(batch_size):
            target = labels[index]
            logits = classifier(features[index])
            loss = F.cross_entropy(logits, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            sums += torch.stack((loss.detach() * len(index), (logits.argmax(1) == target).sum()))
        loss_mean, accuracy = (sums / len(features)).tolist()
        if not math.isfinite(loss_mean):
            raise Diverged(f"the linear probe's loss became {loss_mean} in its epoch {epoch}")
        yield LinearProbe(classifier, epoch, loss_mean, accuracy)


@torch.inference_mode()
def accuracy(classifier: nn.Linear, features: Tensor, labels: Tensor) -> float:
    """Share of the features (N, D) that `classifier` assigns to their labels (N,)."""
    return int((classifier(features).argmax(1) == labels).sum()) / len(labels)
