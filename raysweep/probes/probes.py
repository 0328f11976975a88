"""The table of probes that evaluate every trial. `optional.py` has the probes that a setting turns on.

To add a probe, add a function that evaluates a frozen encoder. A probe reads an `Evaluation`: `features(layer)` gives
the features (N, D) of each split, `labels(split)` the labels, and `classes` the number of classes. It also has
`settings` and `device`. A probe yields pairs of a metric's name and its value.

A probe that trains (`trains=True`) returns a `TrainedProbe` instead, so that an interrupted trial resumes in the middle
of the probe's training.

The code of the probes is imported inside the functions, because commands import this module just to print their help.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from pydantic import BeforeValidator, Field

from raysweep import parts
from raysweep.errors import InputError
from raysweep.parts import Condition, FeatureLayer, Metric, Remark, probe

if TYPE_CHECKING:
    from raysweep.config import Settings
    from raysweep.data.dataset import Labels
    from raysweep.probes.evaluation import Evaluation


class TrainedProbe(Protocol):
    """A probe in training. If it has an attribute `epochs`, the display of the progress shows this number of epochs."""

    progress: float
    """The fraction of its training that is done, in [0, 1]."""
    step: int
    """The number of the newest epoch, for TensorBoard."""

    def run(self) -> Iterator[Mapping[str, float]]:
        """Train to the end. Yield the metrics of each epoch. The state may be saved between two epochs."""

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values from which training resumes bit for bit."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the result of `state_dict`, before `run`."""


def accuracy(text: str, uses_test: bool = False) -> Metric:
    """Return a metric that is an accuracy."""
    is_reported = None if uses_test else lambda settings: settings.val_fraction > 0
    return Metric(text, better="max", lowest=0.0, highest=1.0, uses_test=uses_test, is_reported=is_reported)


def split_accuracies(prefix: str, words: str, is_reported: Callable[[str, Any], bool]) -> dict[str, Metric]:
    """Return the accuracies of a classifier on the validation and the test split, by name.

    Args:
        prefix: The start of the names, such as `linear/layer1/`.
        words: What the classifier is.
        is_reported: A function that returns whether a trial with these settings reports the accuracy on a split.
    """
    return {
        f"{prefix}{split}_accuracy": Metric(
            f"{words}: accuracy on the {name}.",
            better="max",
            lowest=0.0,
            highest=1.0,
            uses_test=split == "test",
            is_reported=partial(is_reported, split),
        )
        for split, name in (("val", "validation split"), ("test", "test split"))
    }


def one_grid(value: Any) -> Any:
    """Return the grid of linear probes as text. It may be given as text or as a mapping."""
    from raysweep.probes.grid import ProbeGrid

    return None if value is None else ProbeGrid.read(value).text()


def is_listed(name: str, settings: Settings) -> bool:
    """Return whether `probe_grid` lists values of `name`, so that the setting of one probe is not read."""
    from raysweep.probes.grid import ProbeGrid

    grid = getattr(settings, "probe_grid")  # noqa: B009  # a part declares it
    return grid is not None and bool(getattr(ProbeGrid.read(grid), name))


def has_mlp(settings: Settings) -> bool:
    """Return whether the MLP evaluates a trial, so that it reads settings of the linear probe."""
    return bool(getattr(settings, "mlp_probe"))  # noqa: B009  # a part declares it


def candidate_layers(settings: Settings) -> tuple[str, ...]:
    """Return the layers that the candidates for the linear score read."""
    return tuple(spec.layer for spec in candidate_specs(settings))


def candidate_specs(settings: Any) -> tuple[Any, ...]:
    """Return the candidates for the linear score. The best one on the validation images gives it."""
    from raysweep.probes.grid import probe_specs

    return probe_specs(settings.probe_grid, settings.probe_layer, settings.le_lr, settings.le_weight_decay)


def check_grid(settings: Any) -> None:
    """Raise ValueError if the encoder lacks a layer of the grid, or if validation images are missing."""
    from raysweep.config import check_layer

    specs = candidate_specs(settings)
    for spec in specs:
        check_layer(settings, "probe_grid", spec.layer)
    if len(specs) > 1 and settings.val_fraction == 0:
        raise ValueError("probe_grid: the best probe is chosen on validation images; set val_fraction above 0")


def check_drawn_labels(settings: Any, labels: Labels, classes: Sequence[str]) -> None:
    """Raise InputError if a class of the fit split has fewer images than `labels_per_class`."""
    from raysweep.data.splits import draw_labels

    if settings.labels_per_class is not None:
        draw_labels(labels, settings.labels_per_class, settings.seed, classes)


def check_neighbours(settings: Any, labels: Labels, classes: Sequence[str]) -> None:
    """Raise InputError if the fit split has fewer images than `knn_k`."""
    check_enough("knn_k", settings.knn_k, settings, labels)


def check_enough(name: str, k: int, settings: Any, labels: Labels) -> None:
    """Raise InputError if the fit split has fewer images than `k`, a value of the setting `name`."""
    if k > len(labels):
        raise InputError(
            f"{name}: {k} is more than the {len(labels)} images of {settings.evaluated_dataset}'s fit split"
        )


def linear_metrics() -> dict[str, Metric]:
    """Return the metrics of the linear probe, including the metrics for every block that an encoder can have."""
    metrics = {
        "linear/train_accuracy": Metric(
            "Linear probe: accuracy on its training images during the epoch.", better="max", lowest=0.0, highest=1.0
        ),
        "linear/val_accuracy": accuracy("Linear probe: accuracy on the validation split."),
        "linear/test_accuracy": accuracy(
            "Linear probe: accuracy on the test split, after the last epoch.", uses_test=True
        ),
    }
    for block in range(1, parts.most_blocks() + 1):
        metrics |= split_accuracies(
            f"linear/layer{block}/", f"Linear probe on block {block}", partial(reports_block, block)
        )
    return metrics


def reports_block(block: int, split: str, settings: Any) -> bool:
    """Return whether a trial reports the accuracy on a block, counted from 1."""
    has_block = block <= parts.encoder[settings.encoder].traits["blocks"]
    return settings.per_layer and has_block and (split == "test" or settings.val_fraction > 0)


Layer = Annotated[
    str,
    FeatureLayer(),
    "Features that the probes read. `trunk`: the flattened output of the encoder. `embedding`: the embedding z. "
    "`layer1` and so on: the output of one block of Conv6 (1 to 5) or of a ResNet of timm (1 to 4), pooled as for "
    "`per_layer`.",
]
Epochs = Annotated[int, Field(ge=1), "Epochs of the linear probe and of the MLP."]
LearningRate = Annotated[
    float,
    Field(gt=0),
    "Adam's learning rate for the linear probe and for the MLP.",
    Condition(
        "`per_layer`, `mlp_probe`, or no `lr` in `probe_grid`",
        lambda s: s.per_layer or has_mlp(s) or not is_listed("lr", s),
    ),
]
BatchSize = Annotated[int, Field(ge=1), "Batch size of the linear probe and of the MLP."]
WeightDecay = Annotated[
    float,
    Field(ge=0),
    "Weight decay (an L2 penalty, as in Adam) of the linear probe and of the MLP.",
    Condition(
        "`per_layer`, `mlp_probe`, or no `weight_decay` in `probe_grid`",
        lambda s: s.per_layer or has_mlp(s) or not is_listed("weight_decay", s),
    ),
]
Standardize = Annotated[
    bool,
    "Scale the features of the linear probe, the MLP and logistic regression to mean 0 and variance 1 over the fit "
    "split (train without validation). Fine-tuning computes this scale once, before it changes the encoder.",
]
LabelsPerClass = Annotated[
    int | None,
    Field(ge=1),
    "Train the linear probe, the MLP, logistic regression and fine-tuning on this many labelled images per class, "
    "drawn by `seed`. None means all.",
]


@probe(trains=True, check=check_grid, check_fit=check_drawn_labels, reads=candidate_layers, metrics=linear_metrics)
def linear(
    evaluation: Evaluation,
    *,
    le_epochs: Epochs = 300,
    le_lr: LearningRate = 1e-3,
    le_batch_size: BatchSize = 250,
    le_weight_decay: WeightDecay = 0.0,
    probe_grid: Annotated[
        str | None,
        BeforeValidator(one_grid),
        "Train a linear probe for every combination of the listed values; the best one on the validation images gives "
        "the score: `{lr: [1e-4, 1e-3], weight_decay: [0, 1e-4], layer: [trunk, embedding]}`. `le_lr`, "
        "`le_weight_decay` or `probe_layer` replaces a list that is left out. None means one probe.",
        Remark(structured=True),
    ] = None,
    per_layer: Annotated[
        bool,
        "Also train a linear probe on the output of every block, average-pooled by 2×2 until it is not wider than the "
        "output of the encoder. The default is true in a sweep with layer-wise trials.",
        Condition("an encoder made of blocks", lambda s: parts.encoder[s.encoder].traits["blocks"] > 0),
        Remark(searchable=False),
    ] = False,
    standardize: Standardize = True,
    labels_per_class: LabelsPerClass = None,
    probe_layer: Layer = "trunk",
) -> TrainedProbe:
    """Linear classifiers on the frozen features (N, D) of the layer, trained by Adam with cross-entropy."""
    from raysweep.probes.linear_evaluation import LinearEvaluation

    return LinearEvaluation(
        evaluation,
        specs=candidate_specs(evaluation.settings),
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
            "k-means on the test features: accuracy under the best one-to-one assignment of clusters to classes.",
            better="max",
            lowest=0.0,
            highest=1.0,
            uses_test=True,
        ),
        "kmeans/nmi": Metric(
            "k-means: normalised mutual information.", better="max", lowest=0.0, highest=1.0, uses_test=True
        ),
        "kmeans/ari": Metric("k-means: adjusted Rand index.", better="max", lowest=-1.0, highest=1.0, uses_test=True),
    }
)
def kmeans(evaluation: Evaluation, *, probe_layer: Layer = "trunk") -> Iterator[tuple[str, float]]:
    """k-means clustering of the test features, compared with the labels. There are as many clusters as classes."""
    from raysweep.probes.kmeans import kmeans_scores

    features, labels = evaluation.features(probe_layer)["test"], evaluation.labels("test")
    scores = kmeans_scores(features.cpu().numpy(), labels.cpu().numpy(), evaluation.classes, evaluation.settings.seed)
    yield from scores.items()


Temperature = Annotated[
    float, Field(gt=0), "Temperature τ of kNN: a neighbour's vote has the weight exp(similarity / τ)."
]


@probe(
    check_fit=check_neighbours,
    metrics={
        "knn/val_accuracy": accuracy("Weighted kNN, neighbours from the fit split: accuracy on the validation split."),
        "knn/test_accuracy": accuracy(
            "Weighted kNN, neighbours from the fit split: accuracy on the test split.", uses_test=True
        ),
    },
)
def knn(
    evaluation: Evaluation,
    *,
    probe_layer: Layer = "trunk",
    knn_k: Annotated[int, Field(ge=1), "Number of neighbours in kNN."] = 20,
    knn_temperature: Temperature = 0.07,
) -> Iterator[tuple[str, float]]:
    """Weighted k-nearest neighbours, by cosine similarity (Wu et al. 2018, arXiv 1805.01978)."""
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
