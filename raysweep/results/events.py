"""Writing a trial's metrics, images and hyperparameters for TensorBoard."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from numpy.typing import NDArray
from PIL import Image
from sklearn.decomposition import PCA
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from tensorboard.plugins.projector.metadata import PROJECTOR_FILENAME
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from tensorboard.summary.writer.record_writer import RecordWriter

from raysweep.system.files import replacing, write_atomically

COMPONENTS = 50
"""Number of principal components shown in the projector.

8,192 columns of text would take 50 MB for 500 images, and the projector page computes a PCA anyway.
"""
SPRITE = 8192  # the projector's limit on the side of the thumbnail sheet, in pixels
THUMBNAIL = (32, 64)  # range of a thumbnail's side in pixels: smaller images are enlarged, larger ones reduced
PNG = b"\x89PNG\r\n\x1a\n"  # how every picture begins
PATTERN = "events.out.tfevents.{:04}.raysweep"


class Events:
    """The event files of one trial, one per attempt.

    When a trial resumes from a checkpoint, the files are truncated to their sizes at that checkpoint (`sizes`), so
    that no step appears twice. Each attempt writes a new file. If the old file were continued, a TensorBoard that is
    reading it would end up in the middle of a record.

    Args:
        directory: The trial's directory.
        attempt: The number of this attempt, from 1.
        sizes: `positions()` at the checkpoint; None if the trial starts from the beginning.
    """

    def __init__(self, directory: Path, attempt: int, sizes: Mapping[str, int] | None) -> None:
        for path in directory.glob("events.out.tfevents.*"):
            size = (sizes or {}).get(path.name)
            if size is None:
                path.unlink()
            else:
                with open(path, "r+b") as file:
                    file.truncate(min(size, path.stat().st_size))  # a larger size would append zeros
        self._directory = directory
        self._file = open(directory / PATTERN.format(attempt), "wb")  # noqa: SIM115 - closed by close()
        self._writer = RecordWriter(self._file)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def positions(self) -> dict[str, int]:
        """Return the current size of each of the trial's event files, in bytes."""
        return {path.name: path.stat().st_size for path in self._directory.glob("events.out.tfevents.*")}

    def scalars(self, metrics: Mapping[str, float], step: int) -> None:
        """Write the value of each metric at this step."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def images(self, tag: str, grid: NDArray[np.uint8], step: int) -> None:
        """Write a picture (H, W, C) of uint8, C = 1 or 3."""
        buffer = io.BytesIO()
        Image.fromarray(grid.squeeze(2) if grid.shape[2] == 1 else grid).save(buffer, "PNG")
        image = Summary.Image(
            height=grid.shape[0], width=grid.shape[1], colorspace=grid.shape[2], encoded_image_string=buffer.getvalue()
        )
        self._write(
            Event(wall_time=time.time(), step=step, summary=Summary(value=[Summary.Value(tag=tag, image=image)]))
        )

    def hyperparameters(self, varied: Mapping[str, Any]) -> None:
        """Write the trial's HParams row, when the trial starts.

        Settings that are None or not finite are left out. TensorBoard cannot sort a column that mixes text and numbers,
        and its JSON cannot represent non-finite numbers.
        """
        start = SessionStartInfo(start_time_secs=time.time())
        for name, value in varied.items():
            if isinstance(value, bool):
                start.hparams[name].bool_value = value
            elif isinstance(value, (int, float)):
                if math.isfinite(value):
                    start.hparams[name].number_value = value
            elif value is not None:
                # A path that is not valid text contains surrogates, which a TensorBoard message cannot hold.
                start.hparams[name].string_value = str(value).encode(errors="backslashreplace").decode()
        self._write(session(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start)))

    def end(self, finished: bool) -> None:
        """Write the trial's final state for HParams."""
        self._write(session_end("STATUS_SUCCESS" if finished else "STATUS_FAILURE"))

    def close(self) -> None:
        """Close the file. No event is lost without this, because each one is flushed when it is written."""
        self._file.close()

    def _write(self, event: Event) -> None:
        self._writer.write(event.SerializeToString())
        self._file.flush()


def session(tag: str, data: HParamsPluginData) -> Event:
    """Return the event that starts or ends a trial in HParams."""
    # Built from the messages, because TensorBoard's own functions for them import TensorFlow.
    value = Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(data))
    return Event(wall_time=time.time(), summary=Summary(value=[value]))


def session_end(status: str) -> Event:
    """Return the event that gives a trial's final state."""
    end = SessionEndInfo(status=api_pb2.Status.Value(status), end_time_secs=time.time())
    return session(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end))


def end_stopped(directory: Path, attempt: int) -> None:
    """Write the HParams state of a trial that was stopped from outside in this attempt; it counts as a success.

    The event goes into a separate file, because the trial's process still holds the attempt's file. Readers read this
    file after the attempt's file.
    """
    with replacing(directory / f"{PATTERN.format(attempt)}.stopped") as file:
        writer = RecordWriter(file)
        for event in (Event(wall_time=time.time(), file_version="brain.Event:2"), session_end("STATUS_SUCCESS")):
            writer.write(event.SerializeToString())


def read_scalar(directory: Path, tag: str, every: int) -> dict[int, float]:
    """Read one metric of a trial from its event files.

    Args:
        directory: The trial's directory.
        tag: The metric's name.
        every: Only steps that are a multiple of this number are read.

    Returns:
        The metric in single precision, by step.

    Raises:
        OSError: A file cannot be read.
    """
    points: dict[int, float] = {}
    for event in read_events(directory, lambda content: tag.encode() in content):
        for value in event.summary.value:
            if value.tag == tag and event.step % every == 0:
                points[event.step] = value.simple_value
    return points


def read_scalars(directory: Path) -> dict[int, dict[str, float]]:
    """Read all metrics of a trial from its event files.

    Returns:
        For each step in increasing order: the metrics in single precision, by name.

    Raises:
        OSError: A file cannot be read.
    """
    steps: dict[int, dict[str, float]] = {}
    for event in read_events(directory, lambda content: PNG not in content):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                steps.setdefault(event.step, {})[value.tag] = value.simple_value
    return dict(sorted(steps.items()))


def read_events(directory: Path, wanted: Callable[[bytes], bool]) -> Iterator[Event]:
    """Read the events of a trial for whose bytes `wanted` returns True, in the order in which they were written.

    TensorBoard's own reader computes the checksum of every picture in Python, at 2 MB/s. This reader skips unwanted
    records without it. It reads a truncated or damaged file up to the first bad record.

    Raises:
        OSError: A file cannot be read.
    """
    for path in sorted(directory.glob("events.out.tfevents.*")):
        with open(path, "rb") as file:
            # A record is the content's size (8 bytes), the size's checksum (4), the content, and its checksum (4).
            while checked(size := file.read(8), file.read(4)):
                content, checksum = file.read(int.from_bytes(size, "little")), file.read(4)
                if wanted(content):
                    if not checked(content, checksum):
                        break
                    yield Event.FromString(content)


def checked(content: bytes, checksum: bytes) -> bool:
    """Return whether `checksum` is what `RecordWriter` writes after `content`."""
    expected: bytes = masked_crc32c(content).to_bytes(4, "little")
    return checksum == expected


def image_grid(rows: Sequence[NDArray[np.float32]], scale: int) -> NDArray[np.uint8]:
    """Arrange groups of images in one picture (H', W', C), one group per row, with gaps of two pixels.

    Each group is (N, C, H, W) with values in [0, 1], and its N images are the columns. Values outside [0, 1] (of a
    reconstruction) are clamped. Each pixel becomes `scale` × `scale` pixels.
    """
    pixels = [np.clip(row * 255 + 0.5, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1) for row in rows]
    pixels = [row.repeat(scale, 1).repeat(scale, 2) for row in pixels]
    padded = [np.pad(row, ((0, 0), (0, 2), (0, 2), (0, 0)), constant_values=255) for row in pixels]
    return np.concatenate([np.concatenate(list(row), axis=1) for row in padded])


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
