"""The pictures of `report.html`: views and reconstructions of a few trials, and the figures of the report."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from raysweep.report.contents import Report
from raysweep.report.figure_words import figure_words
from raysweep.report.page_curves import spread
from raysweep.results.result import describe_error
from raysweep.space import Trial

MOST_PICTURES = 12
LARGEST = 100_000
"""Bytes of a PNG above which it is made smaller. A sweep on photographs would add 3 MB for each picture."""
WIDEST = 800
"""Width in pixels of a picture that is made smaller."""


@dataclass(frozen=True)
class Picture:
    """A picture of the page."""

    caption: str
    uri: str
    """The picture as a data URI."""
    alt: str = ""
    """What the picture shows, for readers who cannot see it; empty if the caption says it."""


def data_uri(content: bytes, kind: str = "png") -> str:
    """Return a picture as a data URI; `kind` is `png` or `jpeg`."""
    return f"data:image/{kind};base64,{b64encode(content).decode()}"


def figures_in(directory: Path, report: Report) -> list[Picture]:
    """Return the figures of the report in `directory`, in the order of their names."""
    words = figure_words(report)
    return [
        Picture(path.stem, data_uri(path.read_bytes()), what_it_shows(path.stem, words))
        for path in sorted((directory / "figures").glob("*.png"))
        if path.is_file()
    ]


def what_it_shows(name: str, words: Mapping[str, str]) -> str:
    """Return in words what a figure shows, which `figure_words` tells. A picture of the user has only its name."""
    return f"Figure: {words[name]}. The tables have the numbers." if name in words else name


def pictures_of(report: Report) -> tuple[list[Picture], list[str]]:
    """Return pictures of the first trial of some points, from the TensorBoard files.

    With more than `MOST_PICTURES` points, they are spread evenly over the points. With fewer points, each trial has
    several pictures, from its first one to its last one.

    Returns:
        The pictures, and a line for each trial whose pictures are left out because they are damaged or cannot be read.
    """
    trials, left_out = with_pictures(report)
    chosen = spread(trials, MOST_PICTURES)
    pictures = []
    for name, directory, count in chosen:
        places = spread(range(count), max(1, MOST_PICTURES // len(chosen)))
        try:
            for step, tag, content in read_pictures(directory, places):
                pictures.append(Picture(f"{name}, epoch {step} ({tag})", smaller(content)))
        except Exception as fault:  # which exceptions Pillow raises for a damaged picture is not documented
            left_out.append(without_pictures(name, fault))
    return pictures, left_out


def without_pictures(name: str, fault: Exception) -> str:
    """Return the line that says why the pictures of a trial are left out."""
    return f"pictures of the trial {name} are left out of the page: {describe_error(fault)}"


def with_pictures(report: Report) -> tuple[list[tuple[str, Path, int]], list[str]]:
    """Return the first trial of each point that has pictures: its name, its directory, and the number of pictures.

    The second part is a line for each trial whose files cannot be read.
    """
    trials: list[tuple[str, Path, int]] = []
    left_out = []
    for member in report.members:
        points: dict[str, list[Trial]] = {}
        for trial in member.sweep.trials:
            if not trial.baseline:
                points.setdefault(trial.point, []).append(trial)
        for first, *_ in spread(list(points.values()), MOST_PICTURES):
            directory = member.store.trial(first.name)
            name = f"{member.label}/{first.name}" if report.several else first.name
            try:
                count = count_pictures(directory)
            except OSError as fault:
                left_out.append(without_pictures(name, fault))
                continue
            if count:
                trials.append((name, directory, count))
    return trials, left_out


def count_pictures(directory: Path) -> int:
    """Return the number of pictures in the event files of a trial."""
    if not any(directory.glob("events.out.tfevents.*")):
        return 0
    from raysweep.results.events import PNG, read_events  # TensorBoard and scikit-learn take a second to import

    count = 0

    def note(content: bytes) -> bool:
        nonlocal count
        count += PNG in content
        return False

    for _ in read_events(directory, note):  # it yields nothing, because `note` wants no record
        pass
    return count


def read_pictures(directory: Path, places: Sequence[int]) -> list[tuple[int, str, bytes]]:
    """Return pictures of a trial: step, tag and PNG. `places` are their numbers, counted from 0.

    Only these records are read in full, because the checksum of a picture takes a tenth of a second.
    """
    from raysweep.results.events import PNG, read_events

    seen = -1

    def wanted(content: bytes) -> bool:
        nonlocal seen
        if PNG not in content:
            return False
        seen += 1
        return seen in places

    return [
        (event.step, value.tag, value.image.encoded_image_string)
        for event in read_events(directory, wanted)
        for value in event.summary.value
    ]


def smaller(content: bytes) -> str:
    """Return a PNG as a data URI; a large one becomes a JPEG of at most `WIDEST` pixels in width."""
    if len(content) <= LARGEST:
        return data_uri(content)
    with Image.open(io.BytesIO(content)) as picture:
        reduced = picture.convert("RGB")
        reduced.thumbnail((WIDEST, 4 * WIDEST))
        buffer = io.BytesIO()
        reduced.save(buffer, "JPEG", quality=85)
    return data_uri(buffer.getvalue(), "jpeg")
