"""A probe of one's own: how well the class means of the features separate the test images.

A probe without `switch` evaluates every trial. Its metrics are in TensorBoard, results.csv and the summary. Sweep its
order:

    raysweep sweep --plugin examples/my_probe.py --set 'order=[1,2]' --set 'seed=[0,1,2]'
"""

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from pydantic import Field

import raysweep


# `uses_test` says that the metric is computed from the test split, so that no sweep may choose by it.
@raysweep.probe(
    metrics={
        "means/test_accuracy": raysweep.Metric(
            "Nearest class mean of the features, test split.", better="max", lowest=0.0, highest=1.0, uses_test=True
        )
    }
)
def means(
    evaluation: Any, *, order: Annotated[float, Field(ge=1), "Order of the norm that measures distances."] = 2.0
) -> Iterator[tuple[str, float]]:
    """The accuracy of the nearest class mean."""
    features = evaluation.features("trunk")  # by split, (N, D)
    labels = evaluation.labels("fit")
    centres = torch.stack([features["fit"][labels == label].mean(0) for label in range(evaluation.classes)])
    nearest = torch.cdist(features["test"], centres, p=order).argmin(1)
    yield "means/test_accuracy", float((nearest == evaluation.labels("test")).float().mean())
