"""The images that an experiment reads: their name, side and channels, found from its settings without loading them."""

from __future__ import annotations

from raysweep import parts
from raysweep.config.settings import FOLDER, Settings

FOLDER_SIZE = 32
"""The side in pixels of the images of a folder if no `image_size` is set."""
FOLDER_CHANNELS = 3


def native_size(spec: str) -> int:
    """Return the side of the images in pixels if no `image_size` is set."""
    return FOLDER_SIZE if spec.startswith(FOLDER) else int(parts.dataset[spec].traits["size"])


def side_of(settings: Settings) -> int:
    """Return the side in pixels of all images of an experiment."""
    return settings.image_size or native_size(settings.dataset)


def labelled_name(spec: str, settings: Settings) -> str:
    """Return a dataset's name with the arguments that it declares, such as `stripes(noise=0.1)`."""
    parameters = parts.dataset[spec].arguments(settings) if spec in parts.dataset else {}
    words = ", ".join(f"{name}={value}" for name, value in parameters.items())
    return f"{spec}({words})" if words else spec


def dataset_name(name: str, size: int, channels: int | None) -> str:
    """Return the name under which a digest is recorded. `channels` is None if the images keep their own channels."""
    return f"{name} {size}×{size}" if channels is None else f"{name} {size}×{size}, {channels} channels"


def pretraining_images(settings: Settings) -> str:
    """Return the name under which the digest of the pretraining images is recorded."""
    return dataset_name(labelled_name(settings.dataset, settings), side_of(settings), None)


def evaluated_images(settings: Settings) -> tuple[str, int, int | str]:
    """Return the name, side and channels of the images of the evaluation, which identify them.

    The images have the channels of the pretraining images. A plugin's dataset may have other channels than it declares,
    so its name takes their place.
    """
    dataset = settings.dataset
    if dataset not in parts.dataset:
        channels: int | str = FOLDER_CHANNELS
    elif parts.dataset[dataset].plugin:
        channels = labelled_name(dataset, settings)
    else:
        channels = int(parts.dataset[dataset].traits["channels"])
    return labelled_name(settings.evaluated_dataset, settings), side_of(settings), channels
