"""The table of probes that are off by default. Each has a setting that turns it on, the `switch` of its declaration.

See `probes.py` for how a probe is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from raysweep import parts
from raysweep.parts import Metric, Remark, probe
from raysweep.probes.lists import number_list, numbers_in
from raysweep.probes.probes import (
    BatchSize,
    Epochs,
    LabelsPerClass,
    Layer,
    LearningRate,
    Standardize,
    Temperature,
    TrainedProbe,
    WeightDecay,
    accuracy,
    check_enough,
    split_accuracies,
)

if TYPE_CHECKING:
    from raysweep.data.dataset import Labels
    from raysweep.probes.evaluation import Evaluation


NEIGHBOURS = (1, 2, 5, 10, 20, 50, 100, 200)
"""The numbers of neighbours that `knn_grid` may list. Each has its metrics, which are declared before any setting."""


LABELS = (1, 2, 4, 5, 8, 10, 16, 20, 25, 50, 100)
"""The numbers of labelled images of each class that `few_shot` may list."""


def reports(name: str, number: int, settings: Any) -> bool:
    """Return whether the list `name` contains a number, so that a trial reports the metric of this number."""
    return number in numbers_in(getattr(settings, name))


def knn_grid_metrics() -> dict[str, Metric]:
    """Return the metrics of kNN for every number of neighbours."""
    metrics: dict[str, Metric] = {}
    for k in NEIGHBOURS:
        words = f"Weighted kNN with {k} neighbour{'s' if k > 1 else ''}"
        metrics |= split_accuracies(f"knn/k{k}_", words, partial(reports_neighbours, k))
    return metrics


def reports_neighbours(k: int, split: str, settings: Any) -> bool:
    """Return whether a trial reports the accuracy of kNN with `k` neighbours on a split."""
    return reports("knn_grid", k, settings) and (split == "test" or settings.val_fraction > 0)


def check_most_neighbours(settings: Any, labels: Labels, classes: Sequence[str]) -> None:
    """Raise InputError if the fit split has fewer images than the greatest number in `knn_grid`."""
    check_enough("knn_grid", max(numbers_in(settings.knn_grid)), settings, labels)


@probe(switch="knn_grid", check_fit=check_most_neighbours, metrics=knn_grid_metrics)
def knn_grid(
    evaluation: Evaluation,
    *,
    knn_grid: Annotated[
        str | None,
        BeforeValidator(partial(number_list, allowed=NEIGHBOURS)),
        f"Also evaluate by kNN with each of these numbers of neighbours, among {', '.join(map(str, NEIGHBOURS))}. None "
        "means no further number.",
        Remark(structured=True, searchable=False),
    ] = None,
    knn_temperature: Temperature = 0.07,
    probe_layer: Layer = "trunk",
) -> Iterator[tuple[str, float]]:
    """Weighted k-nearest neighbours for several k, from one computation of the similarities."""
    from raysweep.probes.knn import knn_accuracies

    features, ks = evaluation.features(probe_layer), numbers_in(knn_grid)
    for split in ("val", "test"):
        if len(features[split]):
            accuracies = knn_accuracies(
                features["fit"],
                evaluation.labels("fit"),
                features[split],
                evaluation.labels(split),
                classes=evaluation.classes,
                ks=ks,
                temperature=knn_temperature,
            )
            yield from ((f"knn/k{k}_{split}_accuracy", value) for k, value in zip(ks, accuracies, strict=True))


def check_strengths(settings: Any) -> None:
    """Raise ValueError if a strength must be chosen, but validation images are missing."""
    if len(numbers_in(settings.logistic_c)) > 1 and settings.val_fraction == 0:
        raise ValueError(
            "logistic_c: the best C is chosen on validation images; set val_fraction above 0, or give one value"
        )


@probe(
    switch="logistic",
    check=check_strengths,
    metrics={
        "logistic/val_accuracy": accuracy("Logistic regression with the best C: accuracy on the validation split."),
        "logistic/test_accuracy": accuracy(
            "Logistic regression with the best C: accuracy on the test split.", uses_test=True
        ),
        "logistic/c": Metric(
            "Logistic regression: the C that was best on the validation split.", lowest=0.0, is_diagnosis=True
        ),
    },
)
def logistic(
    evaluation: Evaluation,
    *,
    logistic: Annotated[
        bool,
        "Also evaluate by logistic regression, which is trained to convergence by L-BFGS. It has no learning rate and "
        "no number of epochs.",
        Remark(searchable=False),
    ] = False,
    logistic_c: Annotated[
        str,
        BeforeValidator(number_list),
        "Values of C, the inverse of the strength of the L2 penalty in logistic regression. The best one on the "
        "validation images gives the score.",
        Remark(structured=True),
    ] = "[0.01, 0.1, 1.0, 10.0, 100.0]",
    standardize: Standardize = True,
    labels_per_class: LabelsPerClass = None,
    probe_layer: Layer = "trunk",
) -> Iterator[tuple[str, float]]:
    """Logistic regression by L-BFGS on the frozen features."""
    from raysweep.probes.features import standard_scale
    from raysweep.probes.logistic import logistic_scores

    features = evaluation.features(probe_layer)
    labels = {split: evaluation.labels(split).cpu().numpy() for split in features}
    if standardize:
        mean, scale = standard_scale(features["fit"])
        features = {split: (each - mean) * scale for split, each in features.items()}
    index = evaluation.drawn(labels_per_class)
    if index is not None:
        features["fit"], labels["fit"] = features["fit"][index], labels["fit"][index.cpu().numpy()]
    arrays = {split: each.cpu().numpy() for split, each in features.items()}
    yield from logistic_scores(arrays, labels, numbers_in(logistic_c)).items()


def few_shot_metrics() -> dict[str, Metric]:
    """Return the metrics of few-shot classification for every number of labels."""
    metrics = {}
    for labels in LABELS:
        words = f"Nearest class mean of {labels} labelled image{'s' if labels > 1 else ''} of each class"
        metrics[f"few_shot/{labels}_test_accuracy"] = Metric(
            f"{words}: accuracy on the test split, mean over draws.",
            better="max",
            lowest=0.0,
            highest=1.0,
            uses_test=True,
            is_reported=partial(reports, "few_shot", labels),
        )
        metrics[f"few_shot/{labels}_std"] = Metric(
            f"{words}: standard deviation of the accuracy over draws.",
            lowest=0.0,
            uses_test=True,
            is_diagnosis=True,
            is_reported=partial(reports_spread, labels),
        )
    return metrics


def reports_spread(labels: int, settings: Any) -> bool:
    """Return whether a trial reports the spread over draws, which needs two draws."""
    return reports("few_shot", labels, settings) and settings.few_shot_draws > 1


def check_most_labels(settings: Any, labels: Labels, classes: Sequence[str]) -> None:
    """Raise InputError if a class of the fit split has fewer images than the greatest number in `few_shot`."""
    from raysweep.data.splits import draw_labels

    draw_labels(labels, max(numbers_in(settings.few_shot)), settings.seed, classes, setting="few_shot")


@probe(switch="few_shot", check_fit=check_most_labels, metrics=few_shot_metrics)
def few_shot(
    evaluation: Evaluation,
    *,
    few_shot: Annotated[
        str | None,
        BeforeValidator(partial(number_list, allowed=LABELS)),
        "Also evaluate, for each of these numbers n, a classifier that chooses the nearest class mean of n labelled "
        f"images of each class. The numbers are among {', '.join(map(str, LABELS))}. None means no such classifier.",
        Remark(structured=True, searchable=False),
    ] = None,
    few_shot_draws: Annotated[
        int,
        Field(ge=1, le=1000),
        "Number of draws of labelled images in few-shot classification. They are drawn by `seed`.",
    ] = 10,
    probe_layer: Layer = "trunk",
) -> Iterator[tuple[str, float]]:
    """Nearest class mean of a few labelled images, averaged over draws of these images."""
    import numpy as np
    import torch

    from raysweep.data.splits import draw_labels
    from raysweep.probes.few_shot import few_shot_accuracies

    features = evaluation.features(probe_layer)
    labels, seed = evaluation.labels("fit").cpu().numpy(), evaluation.settings.seed
    for count in numbers_in(few_shot):
        draws = [draw_labels(labels, count, seed, draw=draw) for draw in range(few_shot_draws)]
        accuracies = few_shot_accuracies(
            features["fit"],
            evaluation.labels("fit"),
            features["test"],
            evaluation.labels("test"),
            classes=evaluation.classes,
            draws=[torch.from_numpy(index).to(evaluation.device) for index in draws],
        )
        yield f"few_shot/{count}_test_accuracy", float(np.mean(accuracies))
        if few_shot_draws > 1:
            yield f"few_shot/{count}_std", float(np.std(accuracies, ddof=1))


@probe(
    trains=True,
    keeps_features=True,
    switch="mlp_probe",
    metrics={
        "mlp/val_accuracy": accuracy("MLP with one hidden layer: accuracy on the validation split."),
        "mlp/test_accuracy": accuracy(
            "MLP with one hidden layer: accuracy on the test split, after the last epoch.", uses_test=True
        ),
    },
)
def mlp(
    evaluation: Evaluation,
    *,
    mlp_probe: Annotated[
        bool,
        "Also evaluate by a classifier with one hidden layer, which is trained as the linear probe is.",
        Remark(searchable=False),
    ] = False,
    mlp_width: Annotated[int, Field(ge=1), "Number of hidden units of the MLP."] = 512,
    le_epochs: Epochs = 300,
    le_lr: LearningRate = 1e-3,
    le_batch_size: BatchSize = 250,
    le_weight_decay: WeightDecay = 0.0,
    standardize: Standardize = True,
    labels_per_class: LabelsPerClass = None,
    probe_layer: Layer = "trunk",
) -> TrainedProbe:
    """A classifier with one hidden layer on the frozen features."""
    from raysweep.probes.mlp import MLPEvaluation

    return MLPEvaluation(
        evaluation,
        layer=probe_layer,
        width=mlp_width,
        epochs=le_epochs,
        batch_size=le_batch_size,
        lr=le_lr,
        weight_decay=le_weight_decay,
        standardize=standardize,
        labels_per_class=labels_per_class,
    )


def reports_fine_tuning(split: str, settings: Any) -> bool:
    """Return whether a trial reports the accuracy of fine-tuning on a split. The pixels have nothing to tune."""
    return parts.trains(settings) and (split == "test" or settings.val_fraction > 0)


@probe(
    trains=True,
    keeps_features=True,
    switch="finetune",
    metrics=lambda: split_accuracies("finetune/", "Fine-tuned encoder", reports_fine_tuning),
)
def finetune(
    evaluation: Evaluation,
    *,
    finetune: Annotated[
        bool,
        "Also evaluate by fine-tuning: a copy of the whole encoder, with a linear classifier on its trunk, is trained "
        "with labels. It takes as long as pretraining with labels for `finetune_epochs`.",
        Remark(searchable=False),
    ] = False,
    finetune_epochs: Annotated[int, Field(ge=1), "Epochs of fine-tuning."] = 30,
    finetune_lr: Annotated[float, Field(gt=0), "AdamW's learning rate in fine-tuning. It stays constant."] = 3e-4,
    finetune_batch_size: Annotated[int, Field(ge=2), "Batch size of fine-tuning."] = 250,
    finetune_weight_decay: Annotated[float, Field(ge=0), "Decoupled weight decay (AdamW) in fine-tuning."] = 0.0,
    finetune_augment: Annotated[
        Literal["none", "crop", "crop_mirror"],
        "Augmentation in fine-tuning. `crop`: each image is shifted by up to 1/8 of its side. `crop_mirror`: the image "
        "is also mirrored with probability 1/2, as He et al. 2016 train on CIFAR-10. Do not mirror digits and letters.",
    ] = "none",
    standardize: Standardize = True,
    labels_per_class: LabelsPerClass = None,
) -> TrainedProbe:
    """The whole encoder, trained with labels from its pretrained weights."""
    from raysweep.probes.finetune import FineTuning

    return FineTuning(
        evaluation,
        epochs=finetune_epochs,
        batch_size=finetune_batch_size,
        lr=finetune_lr,
        weight_decay=finetune_weight_decay,
        augment=finetune_augment,
        standardize=standardize,
        labels_per_class=labels_per_class,
    )


def label_free_metrics() -> dict[str, Metric]:
    """Return the measures without labels, of the embedding and of the trunk."""
    metrics = {}
    for layer in ("embedding", "trunk"):
        metrics[f"label_free/{layer}_rankme"] = Metric(
            f"RankMe of the {layer}: effective rank of 1,024 fixed images (Garrido et al. 2023).",
            better="max",
            lowest=0.0,
        )
        metrics[f"label_free/{layer}_alpha_req"] = Metric(
            f"α-ReQ of the {layer}: decay of the covariance's eigenvalues, best near 1 (Agrawal et al. 2022).",
            is_diagnosis=True,
        )
        metrics[f"label_free/{layer}_lidar"] = Metric(
            f"LiDAR of the {layer}: rank of a discriminant analysis of 10 views of 1,000 images (Thilak et al. 2024).",
            better="max",
            lowest=0.0,
            is_reported=lambda settings: settings.strength > 0,
        )
    return metrics


@probe(
    switch="label_free",
    needs_labels=False,
    reads=lambda settings: ("embedding", "trunk"),
    samples=True,
    metrics=label_free_metrics,
)
def label_free(
    evaluation: Evaluation,
    *,
    label_free: Annotated[
        bool,
        "Also report measures that need no labels: RankMe, α-ReQ and LiDAR of the embedding and of the trunk, on "
        "training images of the evaluated dataset. LiDAR computes the features of 10 augmented views of 1,000 images.",
        Remark(searchable=False, protocol=False),
    ] = False,
) -> Iterator[tuple[str, float]]:
    """Measures of the features that need no labels."""
    from raysweep.probes.label_free import label_free_scores

    yield from label_free_scores(evaluation)
