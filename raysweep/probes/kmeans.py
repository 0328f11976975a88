"""k-means clustering of the features, compared with the labels."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score, confusion_matrix, normalized_mutual_info_score


def kmeans_scores(
    features: NDArray[np.float32], labels: NDArray[np.int64], classes: int, seed: int
) -> dict[str, float]:
    """Cluster features (N, D) into `classes` clusters (scikit-learn, k-means++, the best of 10 starts).

    Returns:
        `kmeans/accuracy`: accuracy under the best one-to-one assignment of clusters to classes (Hungarian method).
        `kmeans/nmi`: mutual information, divided by the arithmetic mean of the entropies.
        `kmeans/ari`: adjusted Rand index.
    """
    largest = np.abs(features).max()
    if 0 < largest < 1e-10:  # the squares of such features, and so all distances, would be 0
        features = features / largest
    with warnings.catch_warnings():
        # A trial has a warning of its own if the features are the same for all images.
        warnings.filterwarnings("ignore", r"Number of distinct clusters \(1\)", ConvergenceWarning)
        clusters = KMeans(classes, n_init=10, random_state=seed).fit_predict(features)
    counts = confusion_matrix(labels, clusters, labels=np.arange(classes))
    rows, columns = linear_sum_assignment(counts, maximize=True)
    return {
        "kmeans/accuracy": float(counts[rows, columns].sum() / len(labels)),
        "kmeans/nmi": float(normalized_mutual_info_score(labels, clusters)),
        "kmeans/ari": float(adjusted_rand_score(labels, clusters)),
    }
