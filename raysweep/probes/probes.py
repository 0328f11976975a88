"""The table of probes. A probe is added here, as a function that evaluates a frozen encoder.

A probe reads an `Evaluation`: `features(layer)` gives the features (N, D) of each split, `labels(split)` the labels,
`classes` their number, and `settings` and `device` what else it needs. It yields pairs of a metric's name and its
value. Every probe of the table evaluates every trial.

A probe that trains (`trains=True`) returns a `TrainedProbe` instead, so that a trial which was interrupted in the
middle of its training resumes there.

Probes are imported inside the functions, because this module is also read to print the help of a command.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from pydantic import BeforeValidator, Field

from raysweep import parts
from raysweep.parts import Condition, FeatureLayer, Metric, Remark, probe

if TYPE_CHECKING:
    from raysweep.config import Settings
    from raysweep.probes.evaluation import Evaluation


class TrainedProbe(Protocol):
    """A probe in training."""

    progress: float
    """The fraction of its training that is done, in [0, 1]."""
    step: int
    """The number of the newest epoch, for TensorBoard."""

    def run(self) -> Iterator[Mapping[str, float]]:
        """Train to the end; yield the metrics of each epoch. Between two epochs the state may be saved."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values from which training resumes bit for bit."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned, before `run`."""


def accuracy(text: str, uses_test: bool = False) -> Metric:
    """A metric that is an accuracy."""
    is_reported = None if uses_test else lambda settings: settings.val_fraction > 0
    return Metric(text, better="max", highest=1.0, uses_test=uses_test, is_reported=is_reported)


def one_grid(value: Any) -> Any:
    """The grid of linear probes as one text, whichever way it was given."""
    from raysweep.probes.grid import ProbeGrid

    return None if value is None else ProbeGrid.read(value).text()


def is_listed(name: str, settings: Settings) -> bool:
    """Whether `probe_grid` lists values of `name`, so that the one setting is not read."""
    from raysweep.probes.grid import ProbeGrid

    grid = getattr(settings, "probe_grid")  # noqa: B009  # a part declares it
    return grid is not None and bool(getattr(ProbeGrid.read(grid), name))


def counted_layers(settings: Settings) -> tuple[str, ...]:
    """The layers that the linear probes read among which the best one counts."""
    return tuple(spec.layer for spec in counted_specs(settings))


def counted_specs(settings: Any) -> tuple[Any, ...]:
    """The linear probes among which the best one counts."""
    from raysweep.probes.grid import probe_specs

    return probe_specs(settings.probe_grid, settings.probe_layer, settings.le_lr, settings.le_weight_decay)


def check_grid(settings: Any) -> None:
    """Raise ValueError if the encoder lacks a layer of the grid, or no validation images choose between its probes."""
    specs = counted_specs(settings)
    for spec in specs:
        settings.check_layer("probe_grid", spec.layer)
    if len(specs) > 1 and settings.val_fraction == 0:
        raise ValueError("probe_grid: its best probe is chosen on val images, and val_fraction is 0")


def linear_metrics() -> dict[str, Metric]:
    """The metrics of the linear probe, with one for each block that an encoder can have."""
    metrics = {
        "linear/train_accuracy": Metric(
            "Linear probe on its own training images, while they train it.", better="max", highest=1.0
        ),
        "linear/val_accuracy": accuracy("Linear probe, validation split."),
        "linear/test_accuracy": accuracy("Linear probe, test split; computed once, at the end.", uses_test=True),
    }
    for block in range(1, parts.most_blocks() + 1):
        for split, words in (("val", "validation split"), ("test", "test split")):
            metrics[f"linear/layer{block}/{split}_accuracy"] = Metric(
                f"Linear probe on block {block}, {words}.",
                better="max",
                highest=1.0,
                uses_test=split == "test",
                is_reported=partial(reports_block, block, split),
            )
    return metrics


def reports_block(block: int, split: str, settings: Any) -> bool:
    """Whether a trial reports the accuracy on a block, counted from 1."""
    has_block = block <= parts.encoder[settings.encoder].traits["blocks"]
    return settings.per_layer and has_block and (split == "test" or settings.val_fraction > 0)


Layer = Annotated[
    str,
    FeatureLayer(),
    "Features that the probes read: the flattened trunk (the encoder's output), the embedding z, or the output of one "
    "of Conv6's blocks, pooled as for `per_layer`.",
]


@probe(trains=True, check=check_grid, reads=counted_layers, metrics=linear_metrics)
def linear(
    evaluation: Evaluation,
    *,
    le_epochs: Annotated[int, Field(ge=1), "Epochs of the linear probe."] = 300,
    le_lr: Annotated[
        float,
        Field(gt=0),
        "Adam's learning rate in the linear probe.",
        Condition("no `lr` in `probe_grid`, or `per_layer`", lambda s: s.per_layer or not is_listed("lr", s)),
    ] = 1e-3,
    le_batch_size: Annotated[int, Field(ge=1), "Batch size of the linear probe."] = 250,
    le_weight_decay: Annotated[
        float,
        Field(ge=0),
        "Weight decay (an L2 penalty, as in Adam) of the linear probe.",
        Condition(
            "no `weight_decay` in `probe_grid`, or `per_layer`",
            lambda s: s.per_layer or not is_listed("weight_decay", s),
        ),
    ] = 0.0,
    probe_grid: Annotated[
        str | None,
        BeforeValidator(one_grid),
        "Linear probes that are trained together, every combination of the listed values; the best one on val counts: "
        "`{lr: [1e-4, 1e-3], weight_decay: [0, 1e-4], layer: [trunk, embedding]}`. A list that is left out has one "
        "value, that of `le_lr`, `le_weight_decay` or `probe_layer`. None means one probe.",
        Remark(structured=True),
    ] = None,
    per_layer: Annotated[
        bool,
        "Also train a linear probe on every block's output, average-pooled by 2 until it is no wider than the trunk's. "
        "A sweep with layer-wise trials has it unless told otherwise.",
        Condition("an encoder made of blocks", lambda s: parts.encoder[s.encoder].traits["blocks"] > 0),
        Remark(searchable=False),
    ] = False,
    standardize: Annotated[
        bool, "Scale the linear probe's features to mean 0 and variance 1 over the fit split."
    ] = True,
    labels_per_class: Annotated[
        int | None,
        Field(ge=1),
        "Train the linear probe on this many labelled images a class, drawn by `seed`; none means all.",
    ] = None,
    probe_layer: Layer = "trunk",
) -> TrainedProbe:
    """Linear classifiers on the frozen features."""
    from raysweep.probes.linear_evaluation import LinearEvaluation

    return LinearEvaluation(
        evaluation,
        specs=counted_specs(evaluation.settings),
        block_lr=le_lr,
        block_weight_decay=le_weight_decay,
        per_layer=per_layer,
        epochs=le_epochs,
        batch_size=le_batch_size,
        standardize=standardize,
        labels_per_class=labels_per_class,
    )


@probe(
    metrics={
        "kmeans/accuracy": Metric(
            "k-means on the test features: accuracy under the best one-to-one assignment.",
            better="max",
            highest=1.0,
            uses_test=True,
        ),
        "kmeans/nmi": Metric("k-means: normalised mutual information.", better="max", highest=1.0, uses_test=True),
        "kmeans/ari": Metric("k-means: adjusted Rand index.", better="max", lowest=-1.0, highest=1.0, uses_test=True),
    }
)
def kmeans(evaluation: Evaluation, *, probe_layer: Layer = "trunk") -> Iterator[tuple[str, float]]:
    """k-means clustering of the test features, compared with the labels."""
    from raysweep.probes.kmeans import kmeans_scores

    features, labels = evaluation.features(probe_layer)["test"], evaluation.labels("test")
    scores = kmeans_scores(features.cpu().numpy(), labels.cpu().numpy(), evaluation.classes, evaluation.settings.seed)
    yield from scores.items()


@probe(
    metrics={
        "knn/val_accuracy": accuracy("Weighted kNN, bank from the fit split, validation split."),
        "knn/test_accuracy": accuracy("Weighted kNN, bank from the fit split, test split.", uses_test=True),
    }
)
def knn(
    evaluation: Evaluation,
    *,
    probe_layer: Layer = "trunk",
    knn_k: Annotated[int, Field(ge=1), "Neighbours of the kNN probes."] = 20,
    knn_temperature: Annotated[float, Field(gt=0), "Temperature of the kNN votes' weights."] = 0.07,
) -> Iterator[tuple[str, float]]:
    """Weighted k-nearest neighbours, by cosine similarity."""
    from raysweep.probes.knn import knn_accuracy

    features = evaluation.features(probe_layer)
    for split in ("val", "test"):
        if len(features[split]):
            yield (
                f"knn/{split}_accuracy",
                knn_accuracy(
                    features["fit"],
                    evaluation.labels("fit"),
                    features[split],
                    evaluation.labels(split),
                    classes=evaluation.classes,
                    k=knn_k,
                    temperature=knn_temperature,
                ),
            )
