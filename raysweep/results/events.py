"""Writing a trial's metrics, images and hyperparameters for TensorBoard."""

from __future__ import annotations

import io
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_DOUBLE
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.plugins.histogram.metadata import create_summary_metadata as histogram_metadata
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from tensorboard.summary.writer.record_writer import RecordWriter

from raysweep.system.files import Irregular, open_regular, replacing

PNG = b"\x89PNG\r\n\x1a\n"  # how every picture begins
PATTERN = "events.out.tfevents.{:04}.raysweep"
SESSION = (metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG)
BINS = 30
"""Number of bins of a histogram, as many as in TensorBoard's own summaries."""


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
        self._write(first_event())

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

    def histogram(self, tag: str, values: NDArray[np.floating[Any]], step: int) -> None:
        """Write a histogram of finite values of any shape."""
        counts, edges = np.histogram(values, BINS)
        rows = np.stack((edges[:-1], edges[1:], counts), axis=1)
        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in rows.shape])
        tensor = TensorProto(dtype=DT_DOUBLE, tensor_shape=shape, tensor_content=rows.astype("<f8").tobytes())
        described: SummaryMetadata = histogram_metadata(display_name=None, description=None)
        described.data_class = DATA_CLASS_TENSOR
        value = Summary.Value(tag=tag, metadata=described, tensor=tensor)
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=[value])))

    def hyperparameters(self, varied: Mapping[str, Any]) -> None:
        """Write the trial's HParams row, when the trial starts. `write_sweep_events` declares the columns.

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
                start.hparams[name].string_value = message_text(value)
        self._write(session(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start)))

    def append(self, records: bytes) -> None:
        """Write records of another trial, as `raysweep.results.event_records.records_of` returns them."""
        self._file.write(records)
        self._file.flush()

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
    write_event_file(directory / f"{PATTERN.format(attempt)}.stopped", session_end("STATUS_SUCCESS"))


def write_event_file(path: Path, event: Event) -> None:
    """Write a file with a single event. An older file is replaced."""
    with replacing(path) as file:
        writer = RecordWriter(file)
        for each in (first_event(), event):
            writer.write(each.SerializeToString())


def first_event() -> Event:
    """Return the event with which every file begins."""
    return Event(wall_time=time.time(), file_version="brain.Event:2")


def message_text(value: Any) -> str:
    """Return a value as text that a TensorBoard message can hold: a path that is not valid text has surrogates."""
    return str(value).encode(errors="backslashreplace").decode()


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
    records without it. It reads a truncated or damaged file up to the first bad record. A directory, a named pipe or a
    broken link in place of a file is left out with a warning.

    Raises:
        OSError: A file cannot be read.
    """
    for path in sorted(directory.glob("events.out.tfevents.*")):
        try:
            file = open_regular(path)
        except Irregular as fault:
            warnings.warn(f"{path} {fault}, so its metrics and pictures are left out", stacklevel=1)
            continue
        with file:
            # A record is the content's size (8 bytes), the size's checksum (4), the content, and its checksum (4).
            while checksum(size := file.read(8)) == file.read(4):
                content, written = file.read(int.from_bytes(size, "little")), file.read(4)
                if wanted(content):
                    if checksum(content) != written:
                        break
                    try:
                        event = Event.FromString(content)
                    except DecodeError:
                        break
                    yield event


def checksum(content: bytes) -> bytes:
    """Return the checksum that `RecordWriter` writes after the content."""
    code: int = masked_crc32c(content)
    return code.to_bytes(4, "little")
