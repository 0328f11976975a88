"""Measures of a frozen encoder that need no labels: RankMe, α-ReQ and LiDAR."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raysweep.augment.operations import only_view
from raysweep.augment.views import augment
from raysweep.config.part_settings import network_parameters
from raysweep.errors import InputError
from raysweep.models.building import build_encoder
from raysweep.probes.collapse import rankme
from raysweep.probes.features import compute, read_layers
from raysweep.randomness import fixed_subset, generator

if TYPE_CHECKING:
    from raysweep.config import Settings
    from raysweep.probes.evaluation import Evaluation

IMAGES = 1024
"""Number of fixed training images for RankMe and α-ReQ, as for the online RankMe."""
LIDAR_IMAGES, LIDAR_VIEWS = 1000, 10
"""Number of images and of views of each. The paper uses 10 or 50 views, and more images than features."""
DELTA = 1e-4
"""The regularisation of the within-image covariance in LiDAR, as in the paper."""
LIDAR_WIDEST = 8192
"""LiDAR is left out for a wider layer. It needs two matrices of width² numbers: 1 GB at this width."""
RANKS = (4, 100)
"""The ranks of the eigenvalues to which α-ReQ fits its power law, as in the authors' code; the paper names no range."""
LAYERS = ("embedding", "trunk")


def check_lidar(metric: str, trials: Iterable[tuple[Settings, tuple[int, int]]]) -> None:
    """Raise InputError if `metric` is LiDAR of a layer that has more than `LIDAR_WIDEST` features in some trial.

    Args:
        metric: LiDAR of a layer.
        trials: For each trial its settings, and the channels and the side of its images.
    """
    layer = metric.removeprefix("label_free/").removesuffix("_lidar")
    checked = set()
    for settings, (channels, size) in trials:
        names = ("encoder", "head", "embedding_dim", *network_parameters(settings))
        network = (channels, size, *(getattr(settings, name) for name in names))
        if network in checked:
            continue
        checked.add(network)
        encoder = build_encoder(settings, channels, size)
        width = encoder.feature_dim if layer == "trunk" else getattr(encoder.head, "out_features", encoder.feature_dim)
        if width > LIDAR_WIDEST:
            raise InputError(
                f"tune.metric: {metric} needs at most {LIDAR_WIDEST:,} features, but the {layer} of "
                f"{settings.encoder} has {width:,} for images of {size}×{size} pixels; choose by "
                f"label_free/{layer}_rankme"
            )


def alpha_req(features: Tensor) -> float | None:
    """Return the decay α of the covariance's eigenvalues, which are fitted by rank^-α. A value near 1 is best.

    Agrawal et al. 2022, "α-ReQ: Assessing Representation Quality in Self-Supervised Learning by measuring eigenspectrum
    decay". The fit is a line through the logarithms of the eigenvalues and of their ranks, by least squares with
    weights 1/rank over `RANKS`, as in the authors' code and in Stringer et al. 2019.

    Example:
        >>> alpha_req(torch.randn(1000, 64) / torch.arange(1, 65) ** 0.5)  # about 1

    Args:
        features: (N, D), float.

    Returns:
        α; None if fewer than three eigenvalues of these ranks are greater than zero.
    """
    centred = features.double() - features.double().mean(0)
    values = torch.linalg.svdvals(centred).square()
    first, last = RANKS
    values = values[values > values.max() * 1e-12][:last]
    if len(values) < first + 2:
        return None
    ranks = torch.arange(1, len(values) + 1, dtype=torch.float64, device=values.device)[first - 1 :]
    logs, weights = values[first - 1 :].log(), 1 / ranks
    x = ranks.log()
    x_mean, y_mean = (weights * x).sum() / weights.sum(), (weights * logs).sum() / weights.sum()
    slope = (weights * (x - x_mean) * (logs - y_mean)).sum() / (weights * (x - x_mean).square()).sum()
    return -float(slope)


def lidar(views: Tensor) -> float | None:
    """Return LiDAR: the effective rank of the discriminant analysis that tells images apart by their views.

    Thilak et al. 2024, arXiv 2312.04000, equations 1 to 4: every image is a class, and its augmented views are the
    samples. λ are the eigenvalues of Σw^-1/2 Σb Σw^-1/2, where Σb is the covariance of the images' means, and Σw is the
    mean covariance of the views around their image's mean, plus `DELTA` on the diagonal.

    Args:
        views: (n, q, D), float: the features of q views of n images.

    Returns:
        exp of the entropy of λ / sum(λ), in [1, min(n - 1, D)]; 0 if all images have the same mean. None if Σw is not
        positive definite in float64. This happens for features of about 1e6, because `DELTA` then vanishes by rounding.

    Example:
        >>> lidar(torch.randn(100, 10, 8))  # near 8: no direction tells images apart better than another one
    """
    within = views.to(torch.float64, copy=True)  # the steps below change it in place, because it can take 1 GB
    images, count, width = within.shape
    means = within.mean(1)
    between = (means - means.mean(0)) / images**0.5
    within = within.sub_(means[:, None]).div_((images * count) ** 0.5).reshape(-1, width)
    covariance = within.T @ within
    del within
    covariance.diagonal().add_(DELTA)
    # The smaller matrix (L^-1 B)^T (L^-1 B), where Σw = L L^T and Σb = B B^T, has the same nonzero eigenvalues.
    root, failure = torch.linalg.cholesky_ex(covariance)
    if failure:
        return None
    factor = torch.linalg.solve_triangular(root, between.T, upper=False)
    values = torch.linalg.svdvals(factor).square()
    total = values.sum()
    if total == 0:
        return 0.0
    shares = values / total
    return float(torch.special.entr(shares).sum().exp())


def label_free_scores(evaluation: Evaluation) -> Iterator[tuple[str, float]]:
    """Yield each measure of the embedding and of the trunk, on training images of the evaluated dataset.

    LiDAR is left out at strength 0, for a layer that is wider than `LIDAR_WIDEST`, and if it cannot be computed.

    Raises:
        Diverged: A feature is not finite, or too large.
    """
    fit = evaluation.splits["fit"]
    chosen = fixed_subset(len(fit.index), IMAGES).to(evaluation.device)
    features = evaluation.features_of("fit", LAYERS, chosen)
    for layer in LAYERS:
        yield f"label_free/{layer}_rankme", rankme(features[layer])
        alpha = alpha_req(features[layer])
        if alpha is not None:
            yield f"label_free/{layer}_alpha_req", alpha
    if evaluation.views.strength > 0:
        layers = tuple(layer for layer in LAYERS if features[layer].shape[1] <= LIDAR_WIDEST)
        views = features_of_views(evaluation, layers)
        for layer in layers:
            value = lidar(views.pop(layer))
            if value is not None:
                yield f"label_free/{layer}_lidar", value


def features_of_views(evaluation: Evaluation, layers: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the features (n, q, D) of augmented views of fixed training images, for each of these layers.

    The views are drawn as in pretraining: first views and second views in turn, or first views alone if the method has
    one view.

    Raises:
        Diverged: A feature is not finite, or too large.
    """
    fit, settings = evaluation.splits["fit"], evaluation.views
    chosen = fit.index.index_select(0, fixed_subset(len(fit.index), LIDAR_IMAGES).to(evaluation.device))
    draws = generator(settings.seed, "views without labels")
    views: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    for view in range(LIDAR_VIEWS):

        def read(images: Tensor, number: int = view % settings.views) -> list[Tensor]:
            seen = augment(images, settings, draws, only_view(number, len(images)))
            return read_layers(evaluation.encoder, seen, layers)

        for layer, features in zip(layers, compute(evaluation.encoder, fit.images, chosen, read), strict=True):
            views[layer].append(features)
    return {layer: torch.stack(views.pop(layer), 1) for layer in layers}
