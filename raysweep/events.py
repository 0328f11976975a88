"""Metrics, images and hyperparameters of a trial, written for TensorBoard."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from tensorboard.summary.writer.record_writer import RecordWriter

PATTERN = "events.out.tfevents.{:04}.raysweep"


class Events:
    """The event files of one trial, one per attempt.

    When a trial goes on from a checkpoint, the files go back to what they held at that checkpoint (`sizes`), so that no
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
        """The HParams row of the trial, at its start."""
        start = SessionStartInfo(start_time_secs=time.time())
        for name, value in varied.items():
            if isinstance(value, bool):
                start.hparams[name].bool_value = value
            elif isinstance(value, (int, float)):
                start.hparams[name].number_value = value
            else:
                start.hparams[name].string_value = str(value)
        self._session(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start))

    def end(self, finished: bool) -> None:
        """The trial's state in HParams."""
        status = api_pb2.Status.Value("STATUS_SUCCESS" if finished else "STATUS_FAILURE")
        end = SessionEndInfo(status=status, end_time_secs=time.time())
        self._session(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end))

    def _session(self, tag: str, data: HParamsPluginData) -> None:
        # From the messages themselves: TensorBoard's own writers of them import TensorFlow.
        value = Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(data))
        self._write(Event(wall_time=time.time(), summary=Summary(value=[value])))

    def close(self) -> None:
        """Close the file; every event was handed to the system when it was written."""
        self._file.close()

    def _write(self, event: Event) -> None:
        self._writer.write(event.SerializeToString())
        self._file.flush()


def image_grid(rows: Sequence[NDArray[np.float32]], scale: int) -> NDArray[np.uint8]:
    """Images (N, C, H, W) in [0, 1], one group a row, N a column -> one picture (H', W', C) with a gap of two pixels.

    Values outside [0, 1] (a reconstruction's) are clamped; each pixel becomes `scale` × `scale`.
    """
    pixels = [np.clip(row * 255 + 0.5, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1) for row in rows]
    pixels = [row.repeat(scale, 1).repeat(scale, 2) for row in pixels]
    padded = [np.pad(row, ((0, 0), (0, 2), (0, 2), (0, 0)), constant_values=255) for row in pixels]
    return np.concatenate([np.concatenate(list(row), axis=1) for row in padded])
