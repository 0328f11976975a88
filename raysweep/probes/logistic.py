"""Logistic regression by L-BFGS, with the strength of its penalty chosen on the validation split."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from raysweep.errors import Diverged

ITERATIONS = 1000
"""Most iterations of L-BFGS, as in CLIP (Radford et al. 2021, arXiv 2103.00020, appendix A.3)."""


def logistic_scores(
    features: Mapping[str, NDArray[np.float32]], labels: Mapping[str, NDArray[np.int64]], strengths: Sequence[float]
) -> dict[str, float]:
    """Fit logistic regression to the fit split for each strength; evaluate the best one on the validation split.

    The protocol follows Kornblith et al. 2019 (arXiv 1805.08974), but the validation images are not used to train
    again. If two strengths are equally good, the one that is listed first counts. Nothing is drawn at random.

    Args:
        features: (N, D) for the splits `fit`, `val` and `test`; `val` may be empty if there is one strength.
        labels: (N,) for the same splits.
        strengths: values of C, the inverse of the strength of the L2 penalty.

    Returns:
        `logistic/val_accuracy` (if there are validation images) and `logistic/test_accuracy`, both in [0, 1], and the
        chosen `logistic/c`.

    Raises:
        Diverged: the weights are not finite.

    Example:
        >>> x, y = np.eye(2, dtype=np.float32), np.arange(2)
        >>> splits = ("fit", "val", "test")
        >>> logistic_scores(dict.fromkeys(splits, x), dict.fromkeys(splits, y), [1.0])["logistic/test_accuracy"]
        1.0
    """
    models = {strength: fitted(features["fit"], labels["fit"], strength) for strength in strengths}
    scores: dict[str, float] = {}
    best = strengths[0]
    if len(labels["val"]):
        accuracies = {strength: split_accuracy(model, features, labels, "val") for strength, model in models.items()}
        best = max(accuracies, key=lambda strength: accuracies[strength])
        scores["logistic/val_accuracy"] = accuracies[best]
    scores["logistic/test_accuracy"] = split_accuracy(models[best], features, labels, "test")
    scores["logistic/c"] = float(best)
    return scores


def fitted(features: NDArray[np.float32], labels: NDArray[np.int64], strength: float) -> LogisticRegression:
    """Fit logistic regression with an L2 penalty to features (N, D) and labels (N,)."""
    model = LogisticRegression(C=strength, max_iter=ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # its text has several lines
        model.fit(features, labels)
    if not np.isfinite(model.coef_).all():
        raise Diverged(f"logistic regression with C = {strength:g} has weights that are not finite")
    if model.n_iter_.max() >= ITERATIONS:
        warnings.warn(
            f"logistic regression with C = {strength:g} did not converge in {ITERATIONS} iterations", stacklevel=2
        )
    return model


def split_accuracy(
    model: LogisticRegression,
    features: Mapping[str, NDArray[np.float32]],
    labels: Mapping[str, NDArray[np.int64]],
    split: str,
) -> float:
    """Return the accuracy of a fitted model on a split."""
    return float(np.mean(model.predict(features[split]) == labels[split]))
