"""The linear probe: linear classifiers on cached features, several of them trained together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raysweep.config import Head
from raysweep.errors import Diverged
from raysweep.randomness import seed_of


class LinearProbes:
    """Linear classifiers, one for each head; those that read the same layer lie side by side in one matrix.

    Args:
        heads: what each reads and how it is trained.
        widths: D of the features of each layer.
        classes: number of classes.
        seed: of the initial weights: a head's are those that it has when it is alone.
        device: of the features.
    """

    def __init__(
        self, heads: Sequence[Head], widths: Mapping[str, int], classes: int, seed: int, device: torch.device
    ) -> None:
        self.heads, self.classes = tuple(heads), classes
        self.epoch = 0
        self.train_accuracy: list[float] = [0.0] * len(heads)
        """Of every head in the last epoch, while its images trained it."""
        self.weights: dict[str, Tensor] = {}
        """By layer: (heads·classes, D)."""
        self.biases: dict[str, Tensor] = {}
        self.of_layer = {layer: [i for i, head in enumerate(heads) if head.layer == layer] for layer in widths}
        for layer, members in self.of_layer.items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed_of(seed, "linear"))
                alone = nn.Linear(widths[layer], classes)
            self.weights[layer] = alone.weight.detach().repeat(len(members), 1).to(device).requires_grad_()
            self.biases[layer] = alone.bias.detach().repeat(len(members)).to(device).requires_grad_()

    def logits(self, features: Mapping[str, Tensor], layer: str) -> Tensor:
        """Features by layer, (B, D) each -> logits (B, heads of the layer, classes)."""
        flat = F.linear(features[layer], self.weights[layer], self.biases[layer])
        return flat.view(len(flat), -1, self.classes)

    @torch.inference_mode()
    def accuracy(self, features: Mapping[str, Tensor], labels: Tensor) -> list[float]:
        """For every head the share of the features, (N, D) by layer, that it assigns to their labels (N,)."""
        found = [0.0] * len(self.heads)
        for layer, members in self.of_layer.items():
            right = (self.logits(features, layer).argmax(2) == labels[:, None]).sum(0)
            for i, count in zip(members, right.tolist(), strict=True):
                found[i] = count / len(labels)
        return found

    def slices(self, layer: str) -> list[tuple[int, slice]]:
        """Each head of the layer and the rows of the layer's matrix that are its own."""
        c = self.classes
        return [(i, slice(n * c, (n + 1) * c)) for n, i in enumerate(self.of_layer[layer])]


def train_linear(
    features: Mapping[str, Tensor],
    labels: Tensor,
    classes: int,
    heads: Sequence[Head],
    *,
    epochs: int,
    batch_size: int,
    seed: int,
) -> Iterator[LinearProbes]:
    """Train linear classifiers by Adam and cross entropy, all in one pass, yielding them after each epoch.

    A head's initial weights, order of images and updates are those of the head trained alone.

    Args:
        features: by layer (N, D) float32.
        labels: (N,) int64 in [0, classes), on the same device.
        classes: number of classes.
        heads: the classifiers to train; each reads one of the layers.
        epochs: passes over the features; the last one counts.
        batch_size: features per step, the last incomplete batch included.
        seed: of the initial weights and the order.

    Raises:
        Diverged: the loss of a head is NaN or infinite.
    """
    read = {head.layer: features[head.layer] for head in heads}
    probes = LinearProbes(heads, {layer: of.shape[1] for layer, of in read.items()}, classes, seed, labels.device)
    # One group of parameters for each head, as views into its layer's matrix: each has its own learning rate and decay.
    own = {
        layer: [
            (
                rows,
                nn.Parameter(probes.weights[layer].detach()[rows]),
                nn.Parameter(probes.biases[layer].detach()[rows]),
            )
            for _, rows in probes.slices(layer)
        ]
        for layer in read
    }
    groups = [
        {"params": [weight, bias], "lr": heads[i].lr, "weight_decay": heads[i].weight_decay}
        for layer in read
        for (i, _), (_, weight, bias) in zip(probes.slices(layer), own[layer], strict=True)
    ]
    optimizer = torch.optim.Adam(groups, fused=True)
    order_of = torch.Generator().manual_seed(seed_of(seed, "linear order"))
    for epoch in range(1, epochs + 1):
        sums = {layer: torch.zeros(2, len(own[layer]), dtype=torch.float64, device=labels.device) for layer in read}
        for index in torch.randperm(len(labels), generator=order_of).to(labels.device).split(batch_size):
            target = labels[index]
            for layer, of in read.items():
                logits = probes.logits({layer: of[index]}, layer)
                each = F.cross_entropy(
                    logits.transpose(1, 2), target[:, None].expand(-1, logits.shape[1]), reduction="none"
                ).mean(0)
                weight, bias = probes.weights[layer], probes.biases[layer]
                gradients = torch.autograd.grad(each.sum(), (weight, bias))
                for rows, own_weight, own_bias in own[layer]:
                    own_weight.grad, own_bias.grad = gradients[0][rows], gradients[1][rows]
                right = (logits.argmax(2) == target[:, None]).sum(0)
                sums[layer] += torch.stack((each.detach() * len(index), right))
            optimizer.step()
        for layer in read:
            losses, shares = (sums[layer] / len(labels)).tolist()
            for (i, _), loss, share in zip(probes.slices(layer), losses, shares, strict=True):
                if not math.isfinite(loss):
                    raise Diverged(f"the linear probe's loss became {loss} in its epoch {epoch} ({heads[i]})")
                probes.train_accuracy[i] = share
        probes.epoch = epoch
        yield probes
