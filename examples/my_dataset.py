"""A dataset of one's own: stripes with noise, from NumPy arrays.

Sweep the noise:

    raysweep sweep --plugin examples/my_dataset.py --dataset stripes --set 'noise=[50,200]' --set 'seed=[0,1,2]'

`Dataset.from_torch(train, test)` takes torch datasets of (image, label), and `Dataset.from_huggingface(splits)` a
`DatasetDict`.
"""

from typing import Annotated, Any

import numpy as np
from pydantic import Field

import raysweep


# `size` is the side of the images in pixels, which is needed before the dataset is read. `channels` and `images` may be
# left out: with them, a dataset that does not fit into memory is refused before it is read.
@raysweep.dataset(size=8, channels=1, images=500)
def stripes(
    request: Any,
    *,
    noise: Annotated[float, Field(ge=0), "Standard deviation of the noise, of 255 gray values."] = 100.0,
) -> raysweep.Dataset:
    """Horizontal, vertical and diagonal stripes with noise, 8×8."""
    draws = np.random.RandomState(0)  # the same images in every trial
    labels = np.arange(500) % 3
    rows, columns = np.indices((8, 8))
    patterns = np.stack([rows % 2, columns % 2, (rows + columns) % 2]) * 200.0
    images = np.clip(patterns[labels] + draws.normal(0, noise, (500, 8, 8)), 0, 255).astype(np.uint8)
    return raysweep.Dataset.from_numpy(
        images[:400], labels[:400], images[400:], labels[400:], classes=("rows", "columns", "diagonals")
    )
