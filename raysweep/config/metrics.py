"""The metrics that a trial reports: the metrics of the whole experiment, and the metrics that its parts declare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from raysweep import parts
from raysweep.config.settings import Settings, about
from raysweep.part_functions import explained
from raysweep.parts import Metric


def is_watched(settings: Settings) -> bool:
    """Return whether a trial is evaluated during pretraining."""
    return settings.usl_epochs > 0 and settings.probe_every > 0


def is_pretrained(settings: Settings) -> bool:
    """Return whether a trial pretrains."""
    return settings.usl_epochs > 0


LOSS = Metric("The loss of pretraining, mean over the steps of the epoch.", better="min", is_reported=is_pretrained)
RANKME = "label_free/embedding_rankme"
"""RankMe of the embedding of evaluated images, which the probe `label_free` reports."""
LAST_FALL = Metric(
    "Fraction of the loss's whole fall that happened in the last tenth of the epochs; near 0 if the loss levelled off.",
    is_diagnosis=True,
    is_reported=lambda settings: settings.usl_epochs >= 5 and settings.layerwise == "none",
)
WATCHED_IMAGES = 1024
"""Most images on which a trial watches its embedding during pretraining."""
WATCHED = {
    "pretrain/embedding_std": Metric(
        f"Mean standard deviation of the embedding's dimensions, on {WATCHED_IMAGES:,} fixed images.",
        lowest=0.0,
        is_reported=is_watched,
    ),
    "pretrain/rankme": Metric(
        f"RankMe: effective rank of the embeddings of {WATCHED_IMAGES:,} fixed images (Garrido et al. 2023).",
        lowest=0.0,
        is_reported=is_watched,
    ),
    "pretrain/images_per_s": Metric("Training images per second.", better="max", lowest=0.0, is_reported=is_pretrained),
    "online/knn_val_accuracy": Metric(
        "kNN accuracy during pretraining, on fixed subsets: neighbours from the fit split, queries from validation.",
        better="max",
        lowest=0.0,
        highest=1.0,
        is_reported=lambda settings: is_watched(settings) and settings.val_fraction > 0 and settings.probe_labels,
    ),
}


@cache
def metrics_by_name() -> dict[str, Metric]:
    """Return every metric, in the order of the tables' columns, including parts that are declared later."""
    from_methods, from_schedules, from_probes = (
        {name: metric for part in table.values() for name, metric in part.metrics.items()}
        for table in (parts.method, parts.schedule, parts.probe)
    )
    from_pretraining = {"pretrain/loss": LOSS, **from_methods, "pretrain/last_fall": LAST_FALL, **from_schedules}
    return {**from_pretraining, **WATCHED, **from_probes}


parts.watchers.append(metrics_by_name.cache_clear)


def outside_range(metrics: Mapping[str, float]) -> str | None:
    """Return in words which metric is not finite or not in its declared range; None if there is none."""
    known = metrics_by_name()
    for name, value in metrics.items():
        if name in known and not known[name].allows(value):
            return f"{name} is {value:.8g}, outside of its declared range {known[name].range_words()}"
    return None


class MetricTexts(Mapping[str, str]):
    """The description of every metric, by name."""

    def __getitem__(self, name: str) -> str:
        return metrics_by_name()[name].text

    def __iter__(self) -> Iterator[str]:
        return iter(metrics_by_name())

    def __len__(self) -> int:
        return len(metrics_by_name())


METRICS = MetricTexts()


def is_objective(name: str) -> bool:
    """Return whether the metric is the loss of pretraining, or one of its terms, which the methods declare."""
    return name == "pretrain/loss" or any(name in part.metrics for part in parts.method.values())


def changes_losses(name: str, settings: Settings) -> bool:
    """Return whether losses with different values of the setting `name` cannot be compared.

    These are the settings of the objective, and of the images of pretraining. A parameter of a dataset counts only if
    the trial pretrains on this dataset.
    """
    part = parts.dataset.get(settings.dataset)
    is_of_images = name in ("dataset", "image_size") or (part is not None and name in part.parameters)
    return is_of_images or about(name).objective


def default_metric(settings: Settings) -> str | None:
    """Return the metric that chooses the best point if `tune.metric` is not set; None if there is none.

    Without labels it is RankMe of the embedding; docs/evaluate.md says why.
    """
    if settings.probe_labels:
        return "linear/val_accuracy" if settings.val_fraction > 0 else None
    return RANKME if any(RANKME in part.metrics for part in parts.probes_in_use(settings)) else None


def choices() -> tuple[str, ...]:
    """Return the metrics by which a sweep may choose. A metric that reads test labels is not among them."""
    return tuple(name for name, metric in metrics_by_name().items() if not metric.uses_test and not metric.is_diagnosis)


def online_metrics() -> tuple[str, ...]:
    """Return the metrics that are reported during pretraining."""
    return tuple(name for name in choices() if name.startswith(("pretrain/", "online/")))


def has_metric(name: str, settings: Settings) -> bool:
    """Return whether an experiment with these settings reports the metric `name`."""
    for part in parts.in_use(settings):
        if name in part.metrics:
            is_reported = part.metrics[name].is_reported
            with explained(part):
                return is_reported is None or bool(is_reported(settings))
    metric = {"pretrain/loss": LOSS, "pretrain/last_fall": LAST_FALL, **WATCHED}.get(name)
    return metric is not None and metric.is_reported is not None and metric.is_reported(settings)


@dataclass(frozen=True)
class Collapse:
    """When to stop a trial because its embedding has collapsed."""

    evaluations: int
    """The number of evaluations in a row, ≥ 1, in which the embedding must be collapsed."""
    rankme: float
    """An embedding with a lower effective rank is collapsed."""
    std: float
    """An embedding with a lower mean standard deviation is collapsed."""

    def holds(self, metrics: Mapping[str, float]) -> bool:
        """Return whether an evaluation found the embedding collapsed."""
        return metrics["pretrain/rankme"] < self.rankme or metrics["pretrain/embedding_std"] < self.std

    def words(self, metrics: Mapping[str, float], epoch: int) -> str:
        """Return the reason why the trial was stopped."""
        rank, std = metrics["pretrain/rankme"], metrics["pretrain/embedding_std"]
        return (
            f"the embedding collapsed: RankMe {rank:.3g}, standard deviation {std:.3g} in pretraining epoch {epoch}, "
            f"under {self.rankme:g} or {self.std:g} in {self.evaluations} evaluation(s) in a row"
        )
