"""Copying the TensorBoard records of a pretraining from the trial that pretrained to the trials that share it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.metadata import PLUGIN_NAME

from raysweep.results.events import PNG, checksum
from raysweep.system.files import read_regular

FRAME_BYTES = 16
"""Bytes of a record besides its content: the size (8), the size's checksum (4) and the content's checksum (4)."""


def records_of(directory: Path) -> bytes:
    """Return what a trial has written for TensorBoard so far, without what belongs to this trial alone.

    The versions of the files and the hyperparameters are left out. The other records are returned as they are, one
    after the other.

    Args:
        directory: The directory of the trial, whose event files are complete.

    Raises:
        OSError: A file cannot be read.
    """
    kept = []
    for path in sorted(directory.glob("events.out.tfevents.*")):
        for record in split(read_regular(path)):
            event = event_in(record)
            if event is None or not (event.HasField("file_version") or is_hyperparameter_event(event)):
                kept.append(record)
    return b"".join(kept)


def with_scalar(records: bytes, tag: str, beside: str, values: Mapping[int, float | None]) -> bytes:
    """Replace one metric in records.

    Args:
        records: What `records_of` returned.
        tag: The name of the metric.
        beside: The name of a metric that is written together with it. The metric comes last in each such record.
        values: The value of the metric for each step; None if it has none.

    Returns:
        The records in which every record with the metric `beside` has the value of its step, or no value for None.
    """

    def replaced(event: Event) -> Event:
        kept = [value for value in event.summary.value if value.tag != tag]
        value = values[event.step]
        more = [] if value is None else [Summary.Value(tag=tag, simple_value=value)]
        return Event(wall_time=event.wall_time, step=event.step, summary=Summary(value=[*kept, *more]))

    return b"".join(changed(record, beside, replaced) for record in split(records))


def changed(record: bytes, tag: str, change: Callable[[Event], Event]) -> bytes:
    """Return a record, changed if it holds a value of the metric `tag`."""
    event = event_in(record)
    if event is None or all(value.tag != tag for value in event.summary.value):
        return record
    content = change(event).SerializeToString()
    size = len(content).to_bytes(8, "little")
    return b"".join((size, checksum(size), content, checksum(content)))


def split(records: bytes) -> Iterator[bytes]:
    """Yield each record. A truncated record at the end is left out."""
    start = 0
    while start + FRAME_BYTES <= len(records):
        end = start + FRAME_BYTES + int.from_bytes(records[start : start + 8], "little")
        if end > len(records):
            return
        yield records[start:end]
        start = end


def event_in(record: bytes) -> Event | None:
    """Return the event of a record; None for a picture, which is long and of no interest here."""
    content = record[FRAME_BYTES - 4 : -4]
    return None if PNG in content else Event.FromString(content)


def is_hyperparameter_event(event: Event) -> bool:
    """Return whether an event starts or ends the trial in HParams."""
    return any(value.metadata.plugin_data.plugin_name == PLUGIN_NAME for value in event.summary.value)
