"""The pictures of `report.html`: views and reconstructions of a few trials, and the figures of the report."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from raysweep.report.contents import Report
from raysweep.report.page_curves import spread
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


def data_uri(content: bytes, kind: str = "png") -> str:
    """Return a picture as a data URI; `kind` is `png` or `jpeg`."""
    return f"data:image/{kind};base64,{b64encode(content).decode()}"


def figures_in(directory: Path) -> list[Picture]:
    """Return the figures of the report in `directory`, in the order of their names."""
    return [
        Picture(path.stem, data_uri(path.read_bytes()))
        for path in sorted((directory / "figures").glob("*.png"))
        if path.is_file()
    ]


def pictures_of(report: Report) -> list[Picture]:
    """Return pictures of the first trial of some points, from the TensorBoard files.

    With more than `MOST_PICTURES` points, they are spread evenly over the points. With fewer points, each trial has
    several pictures, from its first one to its last one.

    Raises:
        OSError: A file cannot be read, or a picture is damaged.
    """
    chosen = spread(with_pictures(report), MOST_PICTURES)
    pictures = []
    for name, directory, count in chosen:
        places = spread(range(count), max(1, MOST_PICTURES // len(chosen)))
        for step, tag, content in read_pictures(directory, places):
            pictures.append(Picture(f"{name}, epoch {step} ({tag})", smaller(content)))
    return pictures


def with_pictures(report: Report) -> list[tuple[str, Path, int]]:
    """Return the first trial of each point that has pictures: its name, its directory, and the number of pictures."""
    trials: list[tuple[str, Path, int]] = []
    for member in report.members:
        points: dict[str, list[Trial]] = {}
        for trial in member.sweep.trials:
            if not trial.baseline:
                points.setdefault(trial.point, []).append(trial)
        for first, *_ in spread(list(points.values()), MOST_PICTURES):
            directory = member.store.trial(first.name)
            count = count_pictures(directory)
            if count:
                trials.append((f"{member.label}/{first.name}" if report.several else first.name, directory, count))
    return trials


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
