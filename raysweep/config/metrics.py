"""The metrics that a trial reports: the experiment has some of its own, and its parts declare others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from raysweep import parts
from raysweep.config.settings import Settings
from raysweep.parts import Metric


def is_watched(settings: Settings) -> bool:
    """Whether a trial takes online measures while it pretrains."""
    return settings.usl_epochs > 0 and settings.probe_every > 0


def is_pretrained(settings: Settings) -> bool:
    """Whether a trial pretrains."""
    return settings.usl_epochs > 0


LOSS = Metric(
    "The objective, mean over the epoch's steps.", better="min", lowest=-float("inf"), is_reported=is_pretrained
)
LAST_FALL = Metric(
    "How much of its whole fall the loss fell in the last tenth of the epochs; a loss that has levelled off is near 0.",
    lowest=-float("inf"),
    is_diagnosis=True,
    is_reported=lambda settings: settings.usl_epochs >= 5 and settings.layerwise == "none",
)
WATCHED = {
    "pretrain/embedding_std": Metric(
        "Mean standard deviation of the embedding's dimensions, on 1,024 fixed images.", is_reported=is_watched
    ),
    "pretrain/rankme": Metric(
        "RankMe, the effective rank of the same embeddings (Garrido et al. 2023).", is_reported=is_watched
    ),
    "pretrain/images_per_s": Metric("Training images per second.", better="max", is_reported=is_pretrained),
    "online/knn_val_accuracy": Metric(
        "kNN on fixed subsets while pretraining: bank from the fit split, queries from val.",
        better="max",
        highest=1.0,
        is_reported=lambda settings: is_watched(settings) and settings.val_fraction > 0,
    ),
}


@cache
def metrics_by_name() -> dict[str, Metric]:
    """Every metric, in the order of the columns of the tables, with the metrics of parts that are declared later."""
    of_methods, of_schedules, of_probes = (
        {name: metric for part in table.values() for name, metric in part.metrics.items()}
        for table in (parts.method, parts.schedule, parts.probe)
    )
    of_pretraining = {"pretrain/loss": LOSS, **of_methods, "pretrain/last_fall": LAST_FALL, **of_schedules}
    return {**of_pretraining, **WATCHED, **of_probes}


parts.watchers.append(metrics_by_name.cache_clear)


class MetricTexts(Mapping[str, str]):
    """The description of every metric. Steps are epochs, each metric's own."""

    def __getitem__(self, name: str) -> str:
        return metrics_by_name()[name].text

    def __iter__(self) -> Iterator[str]:
        return iter(metrics_by_name())

    def __len__(self) -> int:
        return len(metrics_by_name())


METRICS = MetricTexts()


def is_objective(name: str) -> bool:
    """Whether the metric is the objective of pretraining or a term of it, which the methods declare."""
    return name == "pretrain/loss" or any(name in part.metrics for part in parts.method.values())


def choices() -> tuple[str, ...]:
    """The metrics by which a sweep may choose. A metric that has seen test labels is not among them."""
    return tuple(name for name, metric in metrics_by_name().items() if not metric.uses_test and not metric.is_diagnosis)


def online_metrics() -> tuple[str, ...]:
    """The metrics that are reported while pretraining."""
    return tuple(name for name in choices() if name.startswith(("pretrain/", "online/")))


def has_metric(name: str, settings: Settings) -> bool:
    """Whether an experiment with these settings reports the metric `name`."""
    for part in parts.in_use(settings):
        if name in part.metrics:
            is_reported = part.metrics[name].is_reported
            return is_reported is None or is_reported(settings)
    metric = {"pretrain/loss": LOSS, "pretrain/last_fall": LAST_FALL, **WATCHED}.get(name)
    return metric is not None and metric.is_reported is not None and metric.is_reported(settings)


@dataclass(frozen=True)
class Collapse:
    """The condition under which the embedding of a trial counts as collapsed for good."""

    evaluations: int
    """Number of evaluations in a row, ≥ 1, that find it collapsed."""
    rankme: float
    """The embedding is collapsed below this effective rank."""
    std: float
    """The embedding is collapsed below this mean standard deviation."""

    def holds(self, metrics: Mapping[str, float]) -> bool:
        """Whether an evaluation found the embedding collapsed."""
        return metrics["pretrain/rankme"] < self.rankme or metrics["pretrain/embedding_std"] < self.std

    def words(self, metrics: Mapping[str, float], epoch: int) -> str:
        """The reason for which the trial was stopped."""
        rank, std = metrics["pretrain/rankme"], metrics["pretrain/embedding_std"]
        return (
            f"the embedding collapsed: RankMe {rank:.3g}, standard deviation {std:.3g} in pretraining epoch {epoch}, "
            f"under {self.rankme:g} or {self.std:g} in {self.evaluations} evaluation(s) in a row"
        )
