"""Pictures for TensorBoard: groups of images, and a confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

MATRIX_SIDE = 320
"""Side in pixels of a confusion matrix without its labels, unless there are more classes than pixels."""
MOST_LABELLED = 20
"""Most classes whose names and percentages are written into a confusion matrix. Smaller cells have no room for text."""
LONGEST_LABEL = 12
"""Most characters of a class name in a confusion matrix."""
DARKEST = np.array([8, 48, 107])
"""The colour (red, green, blue) of a cell that has all images of its class. An empty cell is white."""


def image_grid(rows: Sequence[NDArray[np.float32]], scale: int) -> NDArray[np.uint8]:
    """Arrange groups of images in one picture (H', W', C), one group per row, with gaps of two pixels.

    Each group is (N, C, H, W) with values in [0, 1], and its N images are the columns. Values outside [0, 1] (of a
    reconstruction) are clamped. Each pixel becomes `scale` × `scale` pixels.
    """
    pixels = [np.clip(row * 255 + 0.5, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1) for row in rows]
    pixels = [row.repeat(scale, 1).repeat(scale, 2) for row in pixels]
    padded = [np.pad(row, ((0, 0), (0, 2), (0, 2), (0, 0)), constant_values=255) for row in pixels]
    return np.concatenate([np.concatenate(list(row), axis=1) for row in padded])


def confusion_picture(matrix: NDArray[np.integer], class_names: Sequence[str]) -> NDArray[np.uint8]:
    """Draw a confusion matrix as a picture (H, W, 3), one row per true class.

    A dark cell means that many images of the row's class were predicted as the column's class. With up to 20 classes,
    the names of the classes stand beside the rows, and cells show percentages of their row.

    Args:
        matrix: (C, C), the number of images by true class (row) and predicted class (column).
        class_names: C names.
    """
    count = len(matrix)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    cell = max(1, MATRIX_SIDE // count)
    pixels = 255 - share[:, :, None] * (255 - DARKEST)
    cells: NDArray[np.uint8] = pixels.round().astype(np.uint8).repeat(cell, 0).repeat(cell, 1)
    if count > MOST_LABELLED:
        return cells
    font = ImageFont.load_default(12)
    labels = [label(name) for name in class_names]
    left = 10 + max(int(font.getlength(text)) for text in labels)
    top = 40
    picture = Image.new("RGB", (left + len(cells) + 4, top + len(cells) + 4), "white")
    picture.paste(Image.fromarray(cells), (left, top))
    draw = ImageDraw.Draw(picture)
    draw.text((left, 2), "columns: predicted, rows: true, in % of the row", "black", font)
    for row, text in enumerate(labels):
        middle = (row + 0.5) * cell
        draw.text((left - 5, top + middle), text, "black", font, anchor="rm")
        if max(map(len, labels)) <= 2:
            draw.text((left + middle, top - 3), text, "black", font, anchor="mb")
        for column in range(count):
            percent = round(100 * share[row, column])
            if percent:
                at = left + (column + 0.5) * cell, top + middle
                draw.text(at, str(percent), "white" if percent > 50 else "black", font, anchor="mm")
    draw.rectangle((left - 1, top - 1, left + len(cells), top + len(cells)), outline="gray")
    return np.asarray(picture)


def label(name: str) -> str:
    """Return a class name as a short label that the font can draw."""
    text = " ".join(name.encode("ascii", "replace").decode().split())
    return text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1] + "."
