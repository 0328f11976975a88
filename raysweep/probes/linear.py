"""The linear probe: linear classifiers on cached features, several of them trained together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raysweep.config import ProbeSpec
from raysweep.errors import Diverged
from raysweep.randomness import generator, seed_of
from raysweep.training.adam import Adam


class LinearProbes:
    """Linear classifiers, one for each head, in training; those of one layer lie side by side in one matrix.

    Args:
        heads: what each reads and how it is trained.
        widths: D of the features of each layer.
        classes: number of classes.
        seed: of the initial weights, which are a head's when it is alone, and of the order of the images.
        device: of the features.
    """

    def __init__(
        self, heads: Sequence[ProbeSpec], widths: Mapping[str, int], classes: int, seed: int, device: torch.device
    ) -> None:
        self.heads, self.classes = tuple(heads), classes
        self.epoch = 0
        self.train_accuracy: list[float] = [0.0] * len(heads)
        """Of every head in the last epoch, while its images trained it."""
        self.weights: dict[str, Tensor] = {}
        """By layer: (heads·classes, D)."""
        self.biases: dict[str, Tensor] = {}
        self.own: dict[str, list[tuple[slice, nn.Parameter, nn.Parameter]]] = {}
        """By layer, for each of its heads: its rows of the matrix, and they as parameters that share its memory."""
        self.of_layer = {layer: [i for i, head in enumerate(heads) if head.layer == layer] for layer in widths}
        groups = []  # one for each head: each has its own learning rate and decay
        for layer, members in self.of_layer.items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed_of(seed, "linear"))
                alone = nn.Linear(widths[layer], classes)
            weights = alone.weight.detach().repeat(len(members), 1).to(device)
            biases = alone.bias.detach().repeat(len(members)).to(device)
            rows = [slice(n * classes, (n + 1) * classes) for n in range(len(members))]
            self.own[layer] = [(own, nn.Parameter(weights[own]), nn.Parameter(biases[own])) for own in rows]
            self.weights[layer], self.biases[layer] = weights.requires_grad_(), biases.requires_grad_()
            for i, (_, weight, bias) in zip(members, self.own[layer], strict=True):
                groups.append({"params": [weight, bias], "lr": heads[i].lr, "weight_decay": heads[i].weight_decay})
        self.optimizer = Adam(groups)
        self.generator = generator(seed, "linear order")

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, so that it loads with `weights_only=True`."""
        return {
            "weights": {layer: weights.detach() for layer, weights in self.weights.items()},
            "biases": {layer: biases.detach() for layer, biases in self.biases.items()},
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "epoch": self.epoch,
            "train_accuracy": self.train_accuracy,
        }

    @torch.no_grad()
    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; training goes on bit for bit."""
        for layer in self.weights:
            self.weights[layer].copy_(saved["weights"][layer])
            self.biases[layer].copy_(saved["biases"][layer])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.generator.set_state(saved["generator"])
        self.epoch, self.train_accuracy = saved["epoch"], list(saved["train_accuracy"])

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


def train_linear(
    probes: LinearProbes, features: Mapping[str, Tensor], labels: Tensor, *, epochs: int, batch_size: int
) -> Iterator[None]:
    """Train linear classifiers to their last epoch by Adam and cross entropy, all in one pass, yielding after each.

    A head's initial weights, order of images and updates are those of the head trained alone.

    Args:
        probes: where to go on; between two epochs they may be saved.
        features: by layer (N, D) float32, of every layer that a head reads.
        labels: (N,) int64 in [0, classes), on the same device.
        epochs: passes over the features in all; the last one counts.
        batch_size: features per step, the last incomplete batch included.

    Raises:
        Diverged: the loss of a head is NaN or infinite.
    """
    while probes.epoch < epochs:
        sums = {
            layer: torch.zeros(2, len(own), dtype=torch.float64, device=labels.device)
            for layer, own in probes.own.items()
        }
        for index in torch.randperm(len(labels), generator=probes.generator).to(labels.device).split(batch_size):
            target = labels.index_select(0, index)
            for layer, own in probes.own.items():
                logits = probes.logits({layer: features[layer].index_select(0, index)}, layer)
                # A row for each image and head: along a dimension that is not the last a step takes 0.77 ms, not 0.64.
                targets = target[:, None].expand(-1, len(own)).flatten()
                each = F.cross_entropy(logits.flatten(0, 1), targets, reduction="none").view(-1, len(own)).mean(0)
                gradients = torch.autograd.grad(each.sum(), (probes.weights[layer], probes.biases[layer]))
                for rows, weight, bias in own:
                    weight.grad, bias.grad = gradients[0][rows], gradients[1][rows]
                right = (logits.argmax(2) == target[:, None]).sum(0)
                sums[layer] += torch.stack((each.detach() * len(index), right))
            probes.optimizer.step()
        probes.epoch += 1
        for layer, members in probes.of_layer.items():
            losses, shares = (sums[layer] / len(labels)).tolist()
            for i, loss, share in zip(members, losses, shares, strict=True):
                if not math.isfinite(loss):
                    raise Diverged(
                        f"the linear probe's loss became {loss} in its epoch {probes.epoch} ({probes.heads[i]})"
                    )
                probes.train_accuracy[i] = share
        yield
