"""The online measures of a trial, and the pictures that it writes for TensorBoard."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysweep import parts
from raysweep.augment.operations import only_view, to_float
from raysweep.augment.views import augment
from raysweep.probes.collapse import embedding_std, rankme
from raysweep.probes.features import compute
from raysweep.randomness import fixed_subset, generator
from raysweep.results.events import Events
from raysweep.results.pictures import confusion_picture, image_grid
from raysweep.results.projector import projector

if TYPE_CHECKING:
    from pathlib import Path

    from raysweep.config import Settings
    from raysweep.probes.evaluation import Evaluation
    from raysweep.training.state import State

GRID_IMAGES = 8
VISUAL = "visual"
"""The group of pictures and histograms in TensorBoard, which shows groups by name: this one follows all metrics."""


def online_measures(
    settings: Settings, state: State, images: Tensor, watched: Tensor, evaluation: Evaluation
) -> tuple[dict[str, float], Tensor]:
    """Measure whether the embedding collapses, and the present accuracy of kNN. Nothing is drawn at random.

    Args:
        settings: the experiment.
        state: the state, which stays as it is.
        images: (N, C, H, W) uint8, the images of pretraining.
        watched: (M,) int64, the positions of the images that are embedded.
        evaluation: the images for kNN, and their labels.

    Returns:
        The measures by metric, and the embeddings (M, D).

    Raises:
        Diverged: an embedding or a feature is not finite, or too large.
    """
    (z,) = compute(state.encoder, images, watched, lambda batch: [state.embed(settings, batch)])
    metrics = {"pretrain/embedding_std": embedding_std(z), "pretrain/rankme": rankme(z)}
    accuracy = evaluation.online_accuracy()
    if accuracy is not None:
        metrics["online/knn_val_accuracy"] = accuracy
    return metrics, z


def draw_views(settings: Settings, state: State, originals: Tensor) -> tuple[str, NDArray[np.uint8]]:
    """Draw originals (N, C, H, W), their views and their reconstructions, with random numbers of the picture's own.

    Returns:
        The tag of the picture, and the picture (H', W', C).
    """
    draws = generator(settings.seed, f"images {state.epoch}")
    rows = [to_float(originals)]
    for view in range(settings.views):
        rows.append(augment(originals, settings, draws, only_view(view, len(originals))))
    with torch.inference_mode():
        restored = state.reconstruct(settings, rows[1])
    tag = f"{VISUAL}/original_and_views"
    if restored is not None:
        tag = f"{VISUAL}/original_view_reconstruction"
        rows[2:] = [restored]
    return tag, image_grid([row.float().cpu().numpy() for row in rows], scale=max(1, 64 // originals.shape[-1]))


def write_embedding(events: Events, z: Tensor, step: int) -> None:
    """Write histograms of embeddings (N, D): of all values, and of the standard deviation of each dimension.

    Dimensions that have collapsed stand at 0 in the second one.
    """
    events.histogram(f"{VISUAL}/embedding_values", z.cpu().numpy(), step)
    events.histogram(f"{VISUAL}/embedding_std_by_dimension", z.std(0, correction=0).cpu().numpy(), step)


def write_confusion(events: Events, evaluation: Evaluation, step: int) -> None:
    """Write the confusion matrix of the linear probe on the test images as a picture, once it is known."""
    if evaluation.confusion is not None:
        picture = confusion_picture(evaluation.confusion.cpu().numpy(), evaluation.class_names)
        events.images(f"{VISUAL}/confusion_matrix", picture, step)
        evaluation.confusion = None


def project(directory: Path, settings: Settings, evaluation: Evaluation) -> None:
    """Write the features of some test images for TensorBoard's projector, with their labels."""
    if not settings.probe_labels:
        return
    split = evaluation.splits["test"]
    layer = parts.probe["knn"].arguments(settings)["probe_layer"]
    features = evaluation.features(layer)["test"]
    chosen = fixed_subset(len(features), settings.projector_images).to(features.device)
    if len(chosen):
        images = split.images[split.index[chosen]]
        arrays = (values.cpu().numpy() for values in (features[chosen], evaluation.labels("test")[chosen], images))
        chosen_features, labels, pictures = arrays
        projector(directory, chosen_features, labels, evaluation.class_names, pictures)
