"""Metrics, images and hyperparameters of a trial, written for TensorBoard."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Mapping, Sequence
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
"""Of the projector's points: 8,192 columns of text would be 50 MB for 500 images, and the page does a PCA anyway."""
SPRITE = 8192  # pixels a side that the projector allows its thumbnails' sheet
THUMBNAIL = (32, 64)  # pixels a side: smaller images are enlarged, larger ones reduced
PATTERN = "events.out.tfevents.{:04}.raysweep"


class Events:
    """The event files of one trial, one per attempt.

    When a trial resumes from a checkpoint, the files are cut to their sizes at that checkpoint (`sizes`), so that no
    step is ever in them twice. Each attempt writes a new file, because a TensorBoard that is reading the old one would
    find itself in the middle of a record.

    Args:
        directory: the trial's.
        attempt: number of this attempt, from 1.
        sizes: `positions()` at the checkpoint, None where the trial starts anew.
    """

    def __init__(self, directory: Path, attempt: int, sizes: Mapping[str, int] | None) -> None:
        for path in directory.glob("events.out.tfevents.*"):
            size = (sizes or {}).get(path.name)
            if size is None:
                path.unlink()
            else:
                with open(path, "r+b") as file:
                    file.truncate(min(size, path.stat().st_size))  # growing would fill up with zeros
        self._directory = directory
        self._file = open(directory / PATTERN.format(attempt), "wb")  # noqa: SIM115 - closed by close()
        self._writer = RecordWriter(self._file)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def positions(self) -> dict[str, int]:
        """The size of every event file of the trial at this moment."""
        return {path.name: path.stat().st_size for path in self._directory.glob("events.out.tfevents.*")}

    def scalars(self, metrics: Mapping[str, float], step: int) -> None:
        """One point of every metric."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def images(self, tag: str, grid: NDArray[np.uint8], step: int) -> None:
        """A picture (H, W, C) of uint8, C = 1 or 3."""
        buffer = io.BytesIO()
        Image.fromarray(grid.squeeze(2) if grid.shape[2] == 1 else grid).save(buffer, "PNG")
        image = Summary.Image(
            height=grid.shape[0], width=grid.shape[1], colorspace=grid.shape[2], encoded_image_string=buffer.getvalue()
        )
        self._write(
            Event(wall_time=time.time(), step=step, summary=Summary(value=[Summary.Value(tag=tag, image=image)]))
        )

    def hyperparameters(self, varied: Mapping[str, Any]) -> None:
        """The HParams row of the trial, at its start.

        A setting that is None, or a number that is not finite, is left out: TensorBoard cannot sort a column that has
        text beside numbers, and its JSON has no number for these.
        """
        start = SessionStartInfo(start_time_secs=time.time())
        for name, value in varied.items():
            if isinstance(value, bool):
                start.hparams[name].bool_value = value
            elif isinstance(value, (int, float)):
                if math.isfinite(value):
                    start.hparams[name].number_value = value
            elif value is not None:
                # A path whose bytes are no text holds surrogates, which a message of TensorBoard's cannot.
                start.hparams[name].string_value = str(value).encode(errors="backslashreplace").decode()
        self._write(session(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start)))

    def end(self, finished: bool) -> None:
        """The trial's state in HParams."""
        self._write(session_end("STATUS_SUCCESS" if finished else "STATUS_FAILURE"))

    def close(self) -> None:
        """Close the file; every event was handed to the system when it was written."""
        self._file.close()

    def _write(self, event: Event) -> None:
        self._writer.write(event.SerializeToString())
        self._file.flush()


def session(tag: str, data: HParamsPluginData) -> Event:
    """The event that starts or ends a trial in HParams."""
    # Built from the messages, because TensorBoard's own functions for them import TensorFlow.
    value = Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(data))
    return Event(wall_time=time.time(), summary=Summary(value=[value]))


def session_end(status: str) -> Event:
    """The event that says how a trial ended."""
    end = SessionEndInfo(status=api_pb2.Status.Value(status), end_time_secs=time.time())
    return session(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end))


def end_stopped(directory: Path, attempt: int) -> None:
    """The HParams state of a trial that was stopped from outside in this attempt: nothing failed.

    It goes into a file of its own, which a reader takes up after the attempt's: the trial's process still holds that.
    """
    with replacing(directory / f"{PATTERN.format(attempt)}.stopped") as file:
        writer = RecordWriter(file)
        for event in (Event(wall_time=time.time(), file_version="brain.Event:2"), session_end("STATUS_SUCCESS")):
            writer.write(event.SerializeToString())


def read_scalar(directory: Path, tag: str, every: int) -> dict[int, float]:
    """Read one metric of a trial back from its event files.

    TensorBoard's own reader computes the checksum of every picture in Python, at 2 MB/s. This one skips the records
    that do not name the metric. It reads a file that was cut off, or is damaged, up to that record.

    Args:
        directory: the trial's.
        tag: the metric's name.
        every: only steps that are a multiple of this number are read.

    Returns:
        The metric, in single precision, by step.

    Raises:
        OSError: a file cannot be read.
    """
    points: dict[int, float] = {}
    for path in sorted(directory.glob("events.out.tfevents.*")):
        with open(path, "rb") as file:
            # A record is the content's size in 8 bytes, their checksum in 4, the content, and its checksum in 4.
            while checked(size := file.read(8), file.read(4)):
                content, checksum = file.read(int.from_bytes(size, "little")), file.read(4)
                if tag.encode() in content:
                    if not checked(content, checksum):
                        break
                    event = Event.FromString(content)
                    for value in event.summary.value:
                        if value.tag == tag and event.step % every == 0:
                            points[event.step] = value.simple_value
    return points


def checked(content: bytes, checksum: bytes) -> bool:
    """Whether the checksum is the one that `RecordWriter` writes after this content."""
    expected: bytes = masked_crc32c(content).to_bytes(4, "little")
    return checksum == expected


def image_grid(rows: Sequence[NDArray[np.float32]], scale: int) -> NDArray[np.uint8]:
    """Images (N, C, H, W) in [0, 1], one group a row, N a column -> one picture (H', W', C) with a gap of two pixels.

    Values outside [0, 1] (a reconstruction's) are clamped; each pixel becomes `scale` × `scale`.
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
    """Write what TensorBoard's projector shows for a trial: points with their label and thumbnail.

    `projector_config.pbtxt` goes into the trial's directory and what it names into `projector/` in it: `tensors.tsv`,
    `metadata.tsv` (label, index) and `sprite.png`. Each file is written atomically, the configuration last; the same
    input gives the same files.

    Args:
        directory: the trial's, where its event files are.
        features: (N, D), N ≥ 1, finite; of more than 50 dimensions the first 50 principal components are written.
        labels: (N,), indices into `class_names`.
        class_names: white space in them becomes single blanks.
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
    # A folder's name, and so a class's, need not be valid text.
    write_atomically(directory / embedding.metadata_path, ("\n".join(rows) + "\n").encode(errors="replace"))
    write_atomically(directory / embedding.sprite.image_path, picture.getvalue())
    write_atomically(directory / PROJECTOR_FILENAME, text_format.MessageToString(config).encode())


def principal_components(features: NDArray[np.floating[Any]], count: int) -> NDArray[np.floating[Any]]:
    """The first principal components of features (N, D): (N, min(count, N, D)), the same for the same input."""
    # Randomised (Halko et al. 2011, doi 10.1137/090771806): the exact one of 10,000 × 8,192 takes minutes.
    pca = PCA(min(count, *features.shape), svd_solver="randomized", random_state=0)
    with np.errstate(divide="ignore", invalid="ignore"):  # of shares of a variance that is zero, not asked for
        points: NDArray[np.floating[Any]] = pca.fit_transform(features)
    return points


def sprite(images: NDArray[np.uint8]) -> tuple[Image.Image, int]:
    """Images (N, C, H, H) -> a square sheet of RGB thumbnails, row by row, and a thumbnail's side in pixels."""
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
