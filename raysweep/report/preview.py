"""A picture of the views that a sweep would train on: a row for each strength, a block of rows for each policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raysweep import parts
from raysweep.augment.operations import BatchPart
from raysweep.augment.views import augment
from raysweep.config import Settings, default_of
from raysweep.data.dataset import Dataset, Images
from raysweep.errors import InputError
from raysweep.portable import new_file
from raysweep.randomness import generator
from raysweep.report import drawing
from raysweep.report.drawing import Figure, literal, own_style
from raysweep.results.result import describe_error
from raysweep.space import Sweep

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""The strengths in the picture, beside the strength of the trials, if the sweep does not search the strength."""
MAX_ROWS = 12
MAX_PANELS = 12

# All sizes are in pixels of the picture, which has `DPI` pixels per inch.
IMAGES, VIEWS = 6, 3
CELL, WIDTH = 72, 1500
LEFT, MARGIN, TITLE, HEADING, VIEW_GAP, IMAGE_GAP, ROW_GAP = 110, 24, 72, 40, 2, 14, 8
DPI = 100


@dataclass(frozen=True)
class Panel:
    """A block of rows: one policy on one dataset."""

    settings: Settings
    strengths: tuple[float, ...]
    left_out: int
    """The number of searched strengths for which there is no room."""

    def __str__(self) -> str:
        """Return text such as `policy simclr on digits, strengths 0, 0.5, 1`."""
        return f"{self.title}, strengths {', '.join(f'{strength:g}' for strength in self.strengths)}"

    @property
    def title(self) -> str:
        """The title, such as `policy simclr+noise on digits`."""
        changed = policy_arguments(self.settings)
        words = " and ".join(in_words(name, value) for name, value in changed)
        dataset = ", ".join([self.settings.dataset, *(in_words(*each) for each in dataset_arguments(self.settings))])
        return f"policy {self.settings.policy}{' with ' + words if words else ''} on {dataset}"


def in_words(name: str, value: object) -> str:
    """Return an argument in words, such as `blur`, `no flip` or `crop_strength 1.0`."""
    if isinstance(value, bool):
        return name if value else f"no {name}"
    return f"{name} {value}"


def policy_arguments(settings: Settings) -> tuple[tuple[str, Any], ...]:
    """Return the arguments of the policies in use that differ from their defaults, as pairs of name and value."""
    arguments: dict[str, Any] = {}
    for name in settings.policies:
        arguments.update(parts.policy[name].arguments(settings))
    return tuple((name, value) for name, value in arguments.items() if value != default_of(name))


def dataset_arguments(settings: Settings) -> tuple[tuple[str, Any], ...]:
    """Return the arguments of the dataset that differ from their defaults, as pairs of name and value."""
    name = settings.dataset
    arguments = parts.dataset[name].arguments(settings) if name in parts.dataset else {}
    return tuple((name, value) for name, value in arguments.items() if value != default_of(name))


def panels_of(sweep: Sweep) -> list[Panel]:
    """Return the panels of a sweep's picture: one for each dataset, image size and policy with its arguments.

    The rows are the strengths of the panel's trials, and also `STRENGTHS` if the trials do not sweep the strength. If
    there are more than `MAX_ROWS` strengths, evenly spaced ones are chosen.

    Raises:
        InputError: there are more than `MAX_PANELS` panels.
    """
    strengths: dict[tuple[Any, ...], set[float]] = {}
    settings: dict[tuple[Any, ...], Settings] = {}
    swept: dict[tuple[Any, ...], bool] = {}
    for trial in sweep.examples:
        chosen_settings = trial.settings
        if not trial.baseline:
            key = (
                chosen_settings.dataset,
                dataset_arguments(chosen_settings),
                chosen_settings.image_size,
                chosen_settings.policy,
                policy_arguments(chosen_settings),
            )
            settings.setdefault(key, chosen_settings)
            strengths.setdefault(key, set()).add(chosen_settings.strength)
            swept[key] = swept.get(key, False) or "strength" in trial.varied
    if len(settings) > MAX_PANELS:
        raise InputError(
            f"{sweep.name}: {len(settings)} combinations of dataset, policy and its settings are too many for one "
            f"picture; leave at most {MAX_PANELS}, for example by --set policy=simclr"
        )
    panels = []
    for key, chosen_settings in settings.items():
        available = sorted(strengths[key] | (set() if swept[key] else set(STRENGTHS)))
        chosen = [available[i] for i in spaced(len(available), MAX_ROWS)]
        panels.append(Panel(chosen_settings, tuple(chosen), len(available) - len(chosen)))
    return panels


def spaced(count: int, most: int) -> NDArray[np.int64]:
    """Return at most `most` evenly spaced indices below `count`, including the first and the last one."""
    indices: NDArray[np.int64] = np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)
    return indices


def choose_images(dataset: Dataset, count: int) -> Images:
    """Return up to `count` training images (N, C, H, W), of different classes if there are enough classes."""
    images, labels = dataset.train_images, dataset.train_labels
    order = np.arange(len(images)) if labels is None else np.argsort(labels, kind="stable")
    return images[order[spaced(len(images), count)]]


def draw_views(images: Images, settings: Settings, strength: float, count: int) -> NDArray[np.float32]:
    """Return `count` views of each image (N, C, H, W) in an array (N, count, C, H, W) of values in [0, 1].

    Every call draws the same random numbers, so that two rows of the picture differ only in strength and policy.
    """
    batch = torch.from_numpy(images).repeat_interleave(count, dim=0)
    draws = generator(settings.seed, "preview")
    part = BatchPart(len(batch), first=torch.arange(len(batch)) % count == 0)
    views = augment(batch, settings, draws, part, strength)
    shaped: NDArray[np.float32] = views.contiguous().numpy().reshape(len(images), count, *images.shape[1:])
    return shaped


def montage(views: NDArray[np.float32], scale: int) -> NDArray[np.float32]:
    """Return views (images, views, C, H, W) as one row of the picture, (height, width, 3), enlarged `scale` times.

    Views of one image stand side by side, with narrow white gaps. Wider white gaps separate the images.
    """
    views = np.broadcast_to(views, (*views.shape[:2], 3, *views.shape[3:]))
    large = views.transpose(0, 1, 3, 4, 2).repeat(scale, axis=2).repeat(scale, axis=3)
    strips: list[NDArray[np.float32]] = []
    for image in large:
        for number, view in enumerate(image):
            gap = VIEW_GAP if number else IMAGE_GAP if strips else 0
            strips += [np.ones((view.shape[0], gap, 3), dtype=np.float32), view]
    return np.concatenate(strips, axis=1)


def block(panel: Panel, dataset: Dataset) -> tuple[str, list[tuple[str, NDArray[np.float32]]]]:
    """Return a panel's title and its rows, each with label and montage. The first row has the original images."""
    _, channels, size, _ = dataset.train_images.shape
    scale = max(1, round(CELL / size))
    room = (WIDTH + IMAGE_GAP) // (VIEWS * (size * scale + VIEW_GAP) - VIEW_GAP + IMAGE_GAP)
    images = choose_images(dataset, min(IMAGES, max(1, room)))
    title = f"{panel.title}, {size}×{size} {'gray' if channels == 1 else 'RGB'}"
    if panel.left_out:
        title += f" ({len(panel.strengths)} of {len(panel.strengths) + panel.left_out} strengths)"
    rows = []
    for strength in sorted({0.0, *panel.strengths}):
        label = f"{strength:g}" if strength in panel.strengths else ""
        label = label if strength else f"{label}\noriginal".strip()
        rows.append((label, montage(draw_views(images, panel.settings, strength, VIEWS), scale)))
    return title, rows


@own_style()
def draw(sweep: Sweep, load: Callable[[Settings], Dataset]) -> Figure:
    """Draw the picture of a sweep's views.

    Args:
        sweep: the sweep.
        load: a function that returns the pretraining dataset of some settings.

    Raises:
        InputError: the sweep has more than `MAX_PANELS` panels, or `load` raises it.
    """
    panels = panels_of(sweep)
    datasets: dict[tuple[Any, ...], Dataset] = {}
    blocks: list[tuple[str, list[tuple[str, NDArray[np.float32]]]]] = []
    for panel in panels:
        key = (panel.settings.dataset, dataset_arguments(panel.settings), panel.settings.image_size)
        if key not in datasets:
            datasets[key] = load(panel.settings)
        blocks.append(block(panel, datasets[key]))

    # A pixel of a montage is a pixel of the picture: the axes have exactly the montage's size.
    alone = len(blocks) == 1
    heading_height = 0 if alone else HEADING
    width = LEFT + max(row.shape[1] for _, rows in blocks for _, row in rows) + MARGIN
    height = TITLE + sum(heading_height + sum(len(row) + ROW_GAP for _, row in rows) for _, rows in blocks) + MARGIN
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")

    def write(x: float, y: float, text: str, size: float, **style: Any) -> None:
        lines = [literal(line) for line in text.split("\n")]
        figure.text(x / width, 1 - y / height, "\n".join(lines), fontsize=size, **style)

    write(LEFT, 26, f"{sweep.name}: {blocks[0][0] if alone else 'augmented views'}", 14, va="center")
    words = f"rows: augmentation strength; {VIEWS} views of each image, from the same random numbers in every row"
    write(LEFT, 50, words, 9, va="center", color="0.4")
    top = TITLE
    for title, rows in blocks:
        if not alone:
            write(LEFT, top + HEADING - 10, title, 11, va="bottom")
        top += heading_height
        for label, row in rows:
            pixels, columns = row.shape[:2]
            place = (LEFT / width, 1 - (top + pixels) / height, columns / width, pixels / height)
            axes = figure.add_axes(place)
            axes.imshow(row, interpolation="none", aspect="auto")
            axes.set_axis_off()
            write(LEFT - 14, top + pixels / 2, label, 11, va="center", ha="right")
            top += pixels + ROW_GAP
    return figure


def save(figure: Figure, output: Path) -> None:
    """Write a figure to a new file, in the format that the ending of its name gives.

    Raises:
        InputError: the file exists, or the format cannot hold the figure, for example because it is too large. Then no
            file is written.
    """
    try:
        picture = drawing.save(figure, output.suffix[1:].lower(), DPI)
    except Exception as fault:
        raise InputError(f"{output}: the picture cannot be drawn: {describe_error(fault)}") from fault
    with new_file(output) as file:
        file.write(picture)
