"""The MLP probe: a classifier with one hidden layer on cached features."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raysweep.errors import Diverged
from raysweep.probes.features import standard_scale
from raysweep.probes.linear import train_classifiers
from raysweep.randomness import generator, seed_of
from raysweep.training.adam import fused_adam

if TYPE_CHECKING:
    from raysweep.probes.evaluation import Evaluation

BATCH = 1000
"""Number of feature vectors that are evaluated at a time."""


class MLP:
    """A classifier with one hidden layer in training; see `raysweep.probes.linear.Classifiers`.

    Args:
        scaling: the mean and the scale (D,) of the features, which each batch is scaled by; see `standard_scale`. The
            features stay as they are, so that other probes can read them.
        width: the number of hidden units.
        classes: the number of classes.
        lr: Adam's learning rate.
        weight_decay: an L2 penalty, as in Adam.
        seed: the seed of the order of images and of the initial weights.
    """

    def __init__(
        self, scaling: tuple[Tensor, Tensor], *, width: int, classes: int, lr: float, weight_decay: float, seed: int
    ) -> None:
        self.mean, self.scale = scaling
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "mlp"))
            network = nn.Sequential(nn.Linear(len(self.mean), width), nn.ReLU(), nn.Linear(width, classes))
        self.network = network.to(self.mean.device)
        self.optimizer = fused_adam([{"params": list(network.parameters()), "lr": lr, "weight_decay": weight_decay}])
        self.generator = generator(seed, "mlp order")
        self.epoch = 0
        self._loss = torch.zeros(())

    def logits(self, features: Tensor) -> Tensor:
        """Compute logits (B, classes) from features (B, D), which are not scaled yet."""
        logits: Tensor = self.network((features - self.mean) * self.scale)
        return logits

    def start_epoch(self) -> None:
        """Prepare for an epoch."""
        self._loss = torch.zeros((), dtype=torch.float64, device=self.mean.device)

    def train_step(self, features: Mapping[str, Tensor], target: Tensor, index: Tensor) -> None:
        """Train on one batch of the single layer; see `raysweep.probes.linear.Classifiers.train_step`."""
        (layer,) = features.values()
        loss = F.cross_entropy(self.logits(layer.index_select(0, index)), target)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self._loss += loss.detach() * len(index)

    def end_epoch(self, images: int) -> None:
        """Raise Diverged if the loss of the epoch, a sum over `images`, is not finite."""
        loss = float(self._loss) / images
        if not math.isfinite(loss):
            raise Diverged(f"the MLP probe's loss became {loss} in its epoch {self.epoch}")

    @torch.inference_mode()
    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Return the accuracy on features (N, D) with labels (N,)."""
        batches = zip(features.split(BATCH), labels.split(BATCH), strict=True)
        right = torch.stack([(self.logits(part).argmax(1) == target).sum() for part, target in batches]).sum()
        return int(right) / len(labels)

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values, which load with `weights_only=True`."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "epoch": self.epoch,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Load the result of `state_dict`. Training resumes bit for bit."""
        self.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.generator.set_state(saved["generator"])
        self.epoch = saved["epoch"]


class MLPEvaluation:
    """Train the MLP probe; see `raysweep.probes.probes.TrainedProbe`.

    Args:
        evaluation: the features and labels.
        layer: the layer whose features are read.
        width: the number of hidden units.
        epochs: the number of epochs.
        batch_size: features in each step.
        lr: Adam's learning rate.
        weight_decay: an L2 penalty, as in Adam.
        standardize: whether features are scaled to mean 0 and variance 1 over the fit split.
        labels_per_class: number of labelled images of each class; None means all.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        *,
        layer: str,
        width: int,
        epochs: int,
        batch_size: int,
        lr: float,
        weight_decay: float,
        standardize: bool,
        labels_per_class: int | None,
    ) -> None:
        self.evaluation, self.layer, self.epochs, self.batch_size = evaluation, layer, epochs, batch_size
        self.labels_per_class = labels_per_class
        evaluation.extract()  # in one pass with the layers of the probes that follow
        fit = evaluation.features(layer)["fit"]
        scaling = standard_scale(fit) if standardize else (torch.zeros_like(fit[0]), torch.ones_like(fit[0]))
        self.mlp = MLP(
            scaling,
            width=width,
            classes=evaluation.classes,
            lr=lr,
            weight_decay=weight_decay,
            seed=evaluation.settings.seed,
        )
        self.progress, self.step = 0.0, 0
        self._is_tested = False

    def run(self) -> Iterator[dict[str, float]]:
        """Train to the end. Yield the validation accuracy of each epoch, and at the end the test accuracy."""
        if self._is_tested:  # the trial was saved at the last yield
            return
        features, evaluation = self.evaluation.features(self.layer), self.evaluation
        fit, labels = features["fit"], evaluation.labels("fit")
        index = evaluation.drawn(self.labels_per_class)
        if index is not None:
            fit, labels = fit[index], labels[index]
        training = train_classifiers(
            self.mlp, {self.layer: fit}, labels, epochs=self.epochs, batch_size=self.batch_size
        )
        for _ in training:
            self.step, self.progress = self.mlp.epoch, self.mlp.epoch / self.epochs
            has_val = bool(len(features["val"]))
            yield {"mlp/val_accuracy": self._accuracy("val")} if has_val else {}
        self.step, self._is_tested = self.epochs, True
        yield {"mlp/test_accuracy": self._accuracy("test")}

    def _accuracy(self, split: str) -> float:
        """Return the accuracy on a split."""
        return self.mlp.accuracy(self.evaluation.features(self.layer)[split], self.evaluation.labels(split))

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values from which training resumes bit for bit."""
        return {**self.mlp.state_dict(), "is_tested": self._is_tested}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the result of `state_dict`, before `run`."""
        self.mlp.load_state_dict(state)
        self._is_tested = state.get("is_tested", False)  # an older version did not record it
        self.step, self.progress = self.mlp.epoch, self.mlp.epoch / self.epochs
