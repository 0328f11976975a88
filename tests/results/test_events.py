"""Event files, as TensorBoard's own reader reads them."""

import io
import json
import math
import re
import subprocess
import time
import warnings
from functools import partial
from urllib.parse import urlencode
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from raysweep.results import projector as projector_module
from raysweep.results.events import Events
from raysweep.results.pictures import image_grid
from raysweep.results.projector import principal_components, projector, sprite
from tests.support import PATIENCE, forked


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
    accumulator = read(tmp_path)  # the file is still open: a live reader must see what is written
    events.close()

    assert [(e.step, e.value) for e in accumulator.Scalars("pretrain/loss")] == [(1, 0.5), (2, 0.375)]
    assert [(e.step, e.value) for e in accumulator.Scalars("pretrain/rec_loss")] == [(1, 0.25)]
    image = accumulator.Images("images/x")[0]
    assert image.step == 2
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(image.encoded_image_string))), picture)
    tags = accumulator.summary_metadata
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


# ---- TensorBoard's projector -----------------------------------------------------------------------------------------


def projected(directory, count=20, width=60, size=8, channels=1, classes=("zero", "one\ttwo\nthree", "\udcff é")):
    """Write a trial's event and projector files; return the data they contain."""
    rng = np.random.default_rng(0)
    directory.mkdir(parents=True, exist_ok=True)
    # The variances fall, so that the components are distinguishable.
    features = (rng.normal(size=(count, width)) * 0.8 ** np.arange(width) + 3).astype(np.float32)
    labels = rng.integers(0, len(classes), count)
    images = rng.integers(0, 256, (count, channels, size, size), dtype=np.uint8)
    projector(directory, features, labels, classes, images)
    return features, labels, images


PROJECTED = "alpha=1e-05,seed=0"


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """Run a real TensorBoard on a trial with projector files and on trials with settings.

    Returns a function that fetches from a plugin, and what was projected.
    """
    logdir = tmp_path_factory.mktemp("board")
    expected = projected(logdir / PROJECTED, size=40, channels=3)
    events = Events(logdir / PROJECTED, 1, None)
    events.scalars({"x": 1.0}, 1)
    events.close()
    for name, varied in ROWS.items():
        (logdir / name).mkdir()
        events = Events(logdir / name, 1, None)
        events.hyperparameters(varied)
        events.end(finished=True)
        events.close()
    arguments = ["--logdir", logdir, "--host", "localhost", "--port", "0", "--load_fast", "false"]
    process = forked.start("-m", "tensorboard.main", *arguments, cwd=logdir, stdout=subprocess.DEVNULL)
    try:
        address = next(
            addresses[0] for line in process.stderr if (addresses := re.findall(r"http://localhost:\d+/", line))
        )

        def fetch(plugin, route, **query):
            url = f"{address}data/plugin/{plugin}/{route}?{urlencode(query)}"
            with urlopen(url, timeout=PATIENCE) as answer:
                return answer.read()

        yield fetch, expected
    finally:
        process.kill()
        process.communicate()


def once(what):
    """Wait until `what()` returns a true value, and return it. TensorBoard lists a run once it has read it."""
    end = time.monotonic() + PATIENCE
    while not (value := what()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return value


def test_a_real_tensorboard_serves_the_projector(board):
    fetch, (features, labels, images) = board
    asked = partial(fetch, "projector")
    assert once(lambda: json.loads(asked("runs"))) == [PROJECTED]
    embedding = json.loads(asked("info", run=PROJECTED))["embeddings"][0]
    name = embedding["tensorName"]
    assert name == "test features (20 principal components of 60)"
    assert embedding["tensorShape"] == [20, 20]
    assert embedding["sprite"]["singleImageDim"] == [40, 40]
    points = np.frombuffer(asked("tensor", run=PROJECTED, name=name), np.float32).reshape(20, 20)
    header, *rows = asked("metadata", run=PROJECTED, name=name).decode().splitlines()
    sheet = Image.open(io.BytesIO(asked("sprite_image", run=PROJECTED, name=name)))

    # With all components of 20 points, the distances between points equal those between features.
    assert np.allclose(distances(points), distances(features), rtol=1e-3, atol=1e-3)
    assert header == "label\tindex"
    assert rows == [f"{('zero', 'one two three', '? é')[label]}\t{index}" for index, label in enumerate(labels)]
    assert sheet.size == (200, 200)
    pixels = np.asarray(sheet)
    for index in range(20):
        top, left = index // 5 * 40, index % 5 * 40
        assert np.array_equal(pixels[top : top + 40, left : left + 40], images[index].transpose(1, 2, 0))


def distances(points):
    return np.linalg.norm(points[:, None] - points[None], axis=2)


def test_principal_components_equal_the_exact_reference():
    rng = np.random.default_rng(1)
    features = (rng.normal(size=(200, 300)) * 0.9 ** np.arange(300) + 2).astype(np.float32)
    components = principal_components(features, 50)
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    expected = (u * s)[:, :50]
    signs = np.sign((components * expected).sum(0))
    assert np.allclose(components[:, :30] * signs[:30], expected[:, :30], atol=1e-3 * s[0])
    assert (components**2).sum() == pytest.approx((expected**2).sum(), rel=1e-3), "the explained variance is the same"


@pytest.mark.parametrize("width", [3, 50])
def test_few_dimensions_are_written_as_they_are(tmp_path, width):
    features, *_ = projected(tmp_path, width=width)
    assert np.allclose(np.loadtxt(tmp_path / "projector" / "tensors.tsv"), features, rtol=1e-5)
    assert 'tensor_name: "test features"' in (tmp_path / "projector_config.pbtxt").read_text()


def test_the_projector_s_files_are_alike_when_written_again(tmp_path):
    names = ["projector/metadata.tsv", "projector/sprite.png", "projector/tensors.tsv", "projector_config.pbtxt"]
    contents = []
    for _ in range(2):
        projected(tmp_path)
        paths = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
        assert paths == names
        contents.append([(tmp_path / name).read_bytes() for name in names])
    assert contents[0] == contents[1]


@pytest.mark.parametrize(("count", "spread"), [(1, 1), (2, 1), (60, 0)])
def test_few_and_collapsed_points_are_projected_without_a_warning(tmp_path, count, spread):
    features = np.random.default_rng(0).normal(size=(count, 64)).astype(np.float32) * spread
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        projector(tmp_path, features, np.zeros(count, np.int64), ("a",), np.zeros((count, 1, 8, 8), np.uint8))
    points = np.loadtxt(tmp_path / "projector" / "tensors.tsv", ndmin=2)
    assert points.shape == (count, min(count, 50))
    assert np.isfinite(points).all()


@pytest.mark.parametrize(("size", "count", "side"), [(8, 5, 32), (28, 4, 28), (40, 9, 40), (96, 3, 64), (8, 300, 28)])
def test_thumbnails_are_of_a_size_to_see_and_fit_the_sheet(size, count, side, monkeypatch):
    assert projector_module.SPRITE == 8192
    monkeypatch.setattr(projector_module, "SPRITE", 512)
    images = np.broadcast_to(np.arange(size, dtype=np.uint8)[:, None] * 2, (count, 3, size, size))
    sheet, found_side = sprite(images)
    assert found_side == side
    columns = math.ceil(math.sqrt(count))
    assert sheet.size == (columns * side,) * 2
    assert max(sheet.size) <= 512
    first = np.asarray(sheet)[:side, :side, 0]
    if side % size == 0:
        assert np.array_equal(first, images[0, 0].repeat(side // size, 0).repeat(side // size, 1))
    else:
        assert abs(float(first.mean()) - images[0, 0].mean()) < 1.5


# ---- TensorBoard's HParams -------------------------------------------------------------------------------------------

ROWS = {
    "a": {
        "image_size": 32,
        "denoising": True,
        "probe_grid": "{lr: [0.0001, 0.001]}",
        "dataset": "folder:/a\udcff",
        "alpha": 0.1,
    },
    "b": {"image_size": None, "denoising": False, "probe_grid": None, "dataset": "digits", "alpha": float("nan")},
    "c": {
        "image_size": 8,
        "denoising": None,
        "probe_grid": "{lr: [0.001]}",
        "probe_dataset": None,
        "alpha": float("inf"),
    },
}
"""The settings that vary, for each trial."""


def test_a_real_tensorboard_sorts_by_every_setting_and_none_is_absent(board):
    fetch, _ = board

    def rows(**column):
        request = {"colParams": [column] if column else [], "sliceSize": 10, "startIndex": 0}
        request["allowedStatuses"] = ["STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING", "STATUS_UNKNOWN"]
        answer = json.loads(fetch("hparams", "session_groups", request=json.dumps(request)))
        return {row["name"]: row["hparams"] for row in answer.get("sessionGroups", [])}

    once(lambda: len(rows()) == len(ROWS))
    assert rows() == {
        "a": {
            "image_size": 32,
            "denoising": True,
            "probe_grid": "{lr: [0.0001, 0.001]}",
            "dataset": "folder:/a\\udcff",
            "alpha": 0.1,
        },
        "b": {"denoising": False, "dataset": "digits"},
        "c": {"image_size": 8, "probe_grid": "{lr: [0.001]}"},
    }
    first = {"image_size": "c", "denoising": "b", "probe_grid": "a", "dataset": "b", "alpha": "a"}
    for name, trial in first.items():
        assert next(iter(rows(hparam=name, order="ORDER_ASC"))) == trial  # a failed request raises HTTPError
        assert len(rows(hparam=name, order="ORDER_DESC", missingValuesFirst=True)) == len(ROWS)
    names = {info["name"] for info in json.loads(fetch("hparams", "experiment", request="{}"))["hparamInfos"]}
    assert names == first.keys()
