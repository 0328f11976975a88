"""Event files, read back with TensorBoard's own reader."""

import io

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from raysweep.events import Events, image_grid


def read(directory):
    accumulator = EventAccumulator(str(directory), size_guidance={"scalars": 0, "images": 0})
    return accumulator.Reload()


def test_scalars_images_and_hyperparameters_are_read_back(tmp_path):
    events = Events(tmp_path, 1, None)
    events.hyperparameters({"alpha": 1e-5, "denoising": True, "usl_type": "simclr", "seed": 0})
    events.scalars({"pretrain/loss": 0.5, "pretrain/rec_loss": 0.25}, 1)
    events.scalars({"pretrain/loss": 0.375}, 2)
    picture = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    events.images("images/x", picture, 2)
    events.end(finished=True)
    found = read(tmp_path)  # before the file is closed: what was written is there for a live reader
    events.close()

    assert [(e.step, e.value) for e in found.Scalars("pretrain/loss")] == [(1, 0.5), (2, 0.375)]
    assert [(e.step, e.value) for e in found.Scalars("pretrain/rec_loss")] == [(1, 0.25)]
    image = found.Images("images/x")[0]
    assert image.step == 2
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(image.encoded_image_string))), picture)
    tags = found.summary_metadata
    start = plugin_data_pb2.HParamsPluginData.FromString(tags["_hparams_/session_start_info"].plugin_data.content)
    values = start.session_start_info.hparams
    assert values["alpha"].number_value == 1e-5
    assert values["denoising"].bool_value is True
    assert values["usl_type"].string_value == "simclr"
    end = plugin_data_pb2.HParamsPluginData.FromString(tags["_hparams_/session_end_info"].plugin_data.content)
    assert end.session_end_info.status == 1


def test_going_on_from_a_checkpoint_leaves_every_step_once(tmp_path):
    def write(events, steps):
        for step in steps:
            events.scalars({"x": step / 2}, step)

    first = Events(tmp_path, 1, None)
    write(first, [1, 2])
    at_checkpoint = first.positions()
    write(first, [3, 4])
    first.close()
    second = Events(tmp_path, 2, at_checkpoint)
    write(second, [3, 4])
    later = second.positions()
    write(second, [5])
    second.close()
    third = Events(tmp_path, 3, later)
    write(third, [5, 6])
    third.close()
    assert [(e.step, e.value) for e in read(tmp_path).Scalars("x")] == [(s, s / 2) for s in range(1, 7)]


def test_starting_anew_leaves_nothing_of_an_attempt_without_checkpoint(tmp_path):
    for attempt in (1, 2):
        events = Events(tmp_path, attempt, None)
        events.scalars({"x": attempt}, 1)
        events.close()
    assert [e.value for e in read(tmp_path).Scalars("x")] == [2]


def test_image_grid_puts_groups_in_rows_and_clamps():
    rows = [np.zeros((2, 1, 3, 3), np.float32), np.full((2, 1, 3, 3), 1.5, np.float32)]
    grid = image_grid(rows, scale=2)
    assert grid.shape == (2 * 8, 2 * 8, 1)
    assert grid[:6, :6].max() == 0
    assert grid[8:14, :6].min() == 255
