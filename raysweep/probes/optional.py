"""The table of probes that are off by default. Each has a setting that turns it on, the `switch` of its declaration.

See `probes.py` for how a probe is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator

from raysweep.parts import Metric, Remark, probe
from raysweep.probes.lists import number_list, numbers_in
from raysweep.probes.probes import LabelsPerClass, Layer, Standardize, accuracy

if TYPE_CHECKING:
    from raysweep.probes.evaluation import Evaluation


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
        "logistic/c": Metric("Logistic regression: the C that was best on the validation split.", is_diagnosis=True),
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
