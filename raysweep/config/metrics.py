"""The metrics that a trial reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raysweep.config.conditions import LAYERED
from raysweep.config.settings import BLOCKS, Settings


@dataclass(frozen=True)
class Collapse:
    """When a trial's embedding counts as collapsed for good."""

    evaluations: int
    """In a row, ≥ 1."""
    rankme: float
    """Collapsed below this effective rank,"""
    std: float
    """or below this mean standard deviation."""

    def holds(self, metrics: Mapping[str, float]) -> bool:
        """Whether an evaluation found the embedding collapsed."""
        return metrics["pretrain/rankme"] < self.rankme or metrics["pretrain/embedding_std"] < self.std

    def words(self, metrics: Mapping[str, float], epoch: int) -> str:
        """The reason for a trial's end."""
        rank, std = metrics["pretrain/rankme"], metrics["pretrain/embedding_std"]
        return (
            f"the embedding collapsed: RankMe {rank:.3g}, standard deviation {std:.3g} in pretraining epoch {epoch}, "
            f"under {self.rankme:g} or {self.std:g} in {self.evaluations} evaluation(s) in a row"
        )


METRICS: dict[str, str] = {
    "pretrain/loss": "The objective, mean over the epoch's steps.",
    "pretrain/rec_loss": "Its reconstruction part, summed over the views.",
    "pretrain/emb_loss": "Its embedding part, before the weight α.",
    "pretrain/embedding_std": "Mean standard deviation of the embedding's dimensions, on 1,024 fixed images.",
    "pretrain/rankme": "RankMe, the effective rank of the same embeddings (Garrido et al. 2023).",
    "pretrain/images_per_s": "Training images per second.",
    "online/knn_val_accuracy": "kNN on fixed subsets while pretraining: bank from the fit split, queries from val.",
    "linear/train_accuracy": "Linear probe on its own training images, while they train it.",
    "linear/val_accuracy": "Linear probe, validation split.",
    "linear/test_accuracy": "Linear probe, test split; computed once, at the end.",
    **{
        f"linear/layer{number}/{split}_accuracy": f"Linear probe on block {number}, {words}."
        for number in range(1, BLOCKS + 1)
        for split, words in (("val", "validation split"), ("test", "test split"))
    },
    "kmeans/accuracy": "k-means on the test features: accuracy under the best one-to-one assignment.",
    "kmeans/nmi": "k-means: normalised mutual information.",
    "kmeans/ari": "k-means: adjusted Rand index.",
    "knn/val_accuracy": "Weighted kNN, bank from the fit split, validation split.",
    "knn/test_accuracy": "Weighted kNN, bank from the fit split, test split.",
}
"""Every metric, in words; steps are epochs, each metric's own."""
# What a sweep may choose by: nothing that has seen a test label.
CHOICES = tuple(name for name in METRICS if not name.endswith("test_accuracy") and not name.startswith("kmeans/"))
ONLINE = tuple(name for name in METRICS if name.startswith(("pretrain/", "online/")))
"""What is reported while pretraining."""


def has_metric(name: str, settings: Settings) -> bool:
    """Whether an experiment with these settings reports the metric `name`."""
    if "val_accuracy" in name and settings.val_fraction == 0:
        return False
    if name in ("online/knn_val_accuracy", "pretrain/embedding_std", "pretrain/rankme") and not settings.probe_every:
        return False
    if name == "pretrain/rec_loss" and settings.usl_type == "simclr":
        return False
    if name == "pretrain/emb_loss" and settings.views == 1:
        return False
    if name.startswith("linear/layer") and not (settings.per_layer and LAYERED.holds(settings)):
        return False
    return settings.usl_epochs > 0 or not name.startswith(("pretrain/", "online/"))
