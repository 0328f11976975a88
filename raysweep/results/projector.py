"""Writing the files of TensorBoard's projector, which shows features of a trial as points."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from numpy.typing import NDArray
from PIL import Image
from tensorboard.plugins.projector.metadata import PROJECTOR_FILENAME
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from raysweep.system.files import write_atomically

COMPONENTS = 50
"""Number of principal components shown in the projector.

8,192 columns of text would take 50 MB for 500 images, and the projector page computes a PCA anyway.
"""
SPRITE = 8192  # the projector's limit on the side of the thumbnail sheet, in pixels
THUMBNAIL = (32, 64)  # range of a thumbnail's side in pixels: smaller images are enlarged, larger ones reduced


def projector(
    directory: Path,
    features: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    class_names: Sequence[str],
    images: NDArray[np.uint8],
) -> None:
    """Write the files of TensorBoard's projector for a trial: points with labels and thumbnails.

    `projector_config.pbtxt` goes into the trial's directory. The files that it names go into `projector/` there:
    `tensors.tsv`, `metadata.tsv` (label, index) and `sprite.png`. Each file is written atomically, the configuration
    last. The same input gives the same files.

    Args:
        directory: The trial's directory, which holds its event files.
        features: (N, D), N ≥ 1, finite. If D > 50, the first 50 principal components are written.
        labels: (N,), indices into `class_names`.
        class_names: Names of the classes; each run of white space in them becomes a single space.
        images: (N, C, H, H), C = 1 or 3.
    """
    count = len(features)
    assert count
    assert len(labels) == len(images) == count
    name = "test features"
    if features.shape[1] > COMPONENTS:
        points = principal_components(features, COMPONENTS)
        name += f" ({points.shape[1]} principal components of {features.shape[1]})"
    else:
        points = features
    rows = ["label\tindex"]
    rows += [f"{' '.join(class_names[label].split())}\t{index}" for index, label in enumerate(labels)]
    sheet, side = sprite(images)
    picture = io.BytesIO()
    sheet.save(picture, "PNG")

    config = ProjectorConfig()
    embedding = config.embeddings.add(
        tensor_name=name,
        tensor_shape=points.shape,
        tensor_path="projector/tensors.tsv",
        metadata_path="projector/metadata.tsv",
    )
    embedding.sprite.image_path = "projector/sprite.png"
    embedding.sprite.single_image_dim.extend([side, side])

    (directory / "projector").mkdir(exist_ok=True)
    table = "".join("\t".join(f"{value:.6g}" for value in row) + "\n" for row in points.tolist())
    write_atomically(directory / embedding.tensor_path, table.encode())
    # A class name can be a folder's name, which need not be valid text.
    write_atomically(directory / embedding.metadata_path, ("\n".join(rows) + "\n").encode(errors="replace"))
    write_atomically(directory / embedding.sprite.image_path, picture.getvalue())
    write_atomically(directory / PROJECTOR_FILENAME, text_format.MessageToString(config).encode())


def principal_components(features: NDArray[np.floating[Any]], count: int) -> NDArray[np.floating[Any]]:
    """Return the first principal components of features (N, D): (N, min(count, N, D)), deterministic."""
    from sklearn.decomposition import PCA  # the import takes a second, which the first training step need not wait for

    # Randomised SVD (Halko et al. 2011, doi 10.1137/090771806): the exact one of 10,000 × 8,192 takes minutes.
    pca = PCA(min(count, *features.shape), svd_solver="randomized", random_state=0)
    with np.errstate(divide="ignore", invalid="ignore"):  # explained variance ratios (unused) if all variance is zero
        points: NDArray[np.floating[Any]] = pca.fit_transform(features)
    return points


def sprite(images: NDArray[np.uint8]) -> tuple[Image.Image, int]:
    """Return a square sheet of RGB thumbnails of images (N, C, H, H), row by row, and a thumbnail's side in pixels."""
    size, columns = images.shape[2], math.ceil(math.sqrt(len(images)))
    smallest, largest = THUMBNAIL
    side = min(size * max(1, smallest // size), largest, SPRITE // columns)
    sheet = Image.new("RGB", (columns * side, columns * side))
    enlarged = side % size == 0
    for index, image in enumerate(images):
        thumbnail = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).convert("RGB")
        resample = Image.Resampling.NEAREST if enlarged else Image.Resampling.BILINEAR
        position = (index % columns * side, index // columns * side)
        sheet.paste(thumbnail.resize((side, side), resample), position)
    return sheet, side
