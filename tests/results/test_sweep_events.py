"""What TensorBoard shows for a whole sweep, as its own plugins read it."""

import csv
import json

import numpy as np
import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
from tensorboard.plugins.hparams import api_pb2, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context

from raysweep import space
from raysweep.config import METRICS
from raysweep.results.events import Events
from raysweep.results.pictures import confusion_picture
from raysweep.results.store import Store
from raysweep.results.sweep_events import command_lines, overview, write_sweep_events
from raysweep.results.sweep_file import write_sweep
from tests.support.commands import QUICK, here

SMALL = [*QUICK, "--batch_size", "500", "--usl_type", "simclr", "--local", "--name", "x"]


@pytest.fixture(scope="module")
def sweep(no_figures, tmp_path_factory):
    """The directory of a sweep of one small trial and the random encoder, which was extended by another strength."""
    folder = tmp_path_factory.mktemp("sweep")
    one = here("run_sweep.py", *SMALL, "--set", "strength=[0.5]", "--set", "baseline=random", cwd=folder)
    assert one.returncode == 0, one.stderr
    two = here("run_sweep.py", "--resume", "runs/x", "--set", "strength=[0.5, 1]", "--local", cwd=folder)
    assert two.returncode == 0, two.stderr
    return folder / "runs" / "x"


def plugin_context(directory):
    """Return what TensorBoard gives its plugins for a directory."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(directory)).Reload()
    return base_plugin.TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(directory)))


def columns(directory):
    """Return the HParams columns that TensorBoard shows: the settings with their types, and the metrics in order."""
    context = Context(plugin_context(directory))
    tags = context.hparams_metadata(RequestContext(), "")
    experiment = context.experiment_from_metadata(RequestContext(), "", True, tags, [])
    types = {info.name: api_pb2.DataType.Name(info.type) for info in experiment.hparam_infos}
    return types, [info.name.tag for info in experiment.metric_infos]


def rows(directory, **column):
    """Return the HParams rows that TensorBoard shows, sorted by a column: the settings of each trial."""
    request = api_pb2.ListSessionGroupsRequest(
        slice_size=100, allowed_statuses=api_pb2.Status.values(), col_params=[column] if column else []
    )
    handler = list_session_groups.Handler(RequestContext(), Context(plugin_context(directory)), "", request)
    return {group.name: dict(group.hparams) for group in handler.run().session_groups}


def layout(directory):
    """Return the categories of Custom Scalars, as TensorBoard's plugin merges them from all runs."""
    plugin = CustomScalarsPlugin(plugin_context(directory))
    return json.loads(plugin.layout_impl(RequestContext(), ""))["category"]


def test_the_scalars_have_one_layout_in_the_order_of_reading(sweep):
    categories = layout(sweep)
    titles = [category["title"] for category in categories]
    assert titles[:4] == ["Loss", "Rank and spread of the embedding", "Online kNN", "Linear probe"]
    assert titles[4:] == ["kNN", "k-means", "Other"]
    assert [category.get("closed", False) for category in categories] == [False] * 4 + [True] * 3
    shown = [chart["title"] for category in categories for chart in category["chart"]]
    assert shown[0] == "pretrain/loss"
    events = EventAccumulator(str(sweep / "strength=1.0,seed=0")).Reload()
    assert sorted(shown) == sorted(events.Tags()["scalars"]), "each metric has one chart"
    patterns = [tag for category in categories for chart in category["chart"] for tag in chart["multiline"]["tag"]]
    assert patterns == [f"{name}$" for name in shown]


def test_the_text_page_has_the_settings_the_commands_and_the_versions(sweep):
    events = EventAccumulator(str(sweep)).Reload()
    assert [event.step for event in events.Tensors("sweep")] == [0], "an extended sweep has one page"
    text = events.Tensors("sweep")[0].tensor_proto.string_val[0].decode()
    assert "| strength | 0.5, 1.0 |" in text
    assert "Controls: random." in text
    assert "--usl\\_epochs" not in text, "a command is code, not Markdown"
    for words in ("## Command", "--usl_type simclr", "## Extended by", "--resume runs/x", "| torch | 2.", "| numpy |"):
        assert words in text
    assert not events.Tags()["scalars"]


def test_hparams_begin_with_what_varies_and_the_test_score(sweep):
    types, metrics = columns(sweep)
    assert types == {"strength": "DATA_TYPE_FLOAT64", "seed": "DATA_TYPE_FLOAT64"}
    assert metrics[:2] == ["linear/test_accuracy", "linear/val_accuracy"]
    assert set(metrics) <= set(METRICS)
    settings = rows(sweep)
    assert set(settings) == {"random,seed=0", "strength=0.5,seed=0", "strength=1.0,seed=0"}
    assert set(settings["random,seed=0"]) == {"seed"}, "a control has no column of its own"


def test_a_setting_that_is_none_in_some_trials_stays_a_column_of_numbers(tmp_path):
    search = {"labels_per_class": [1, None, 10], "dataset": ["digits"], "usl_type": ["simclr", "ae_single"]}
    planned = space.build({"search": search, "baseline": ["random", "pixels"]}, {}, "test")
    write_sweep(tmp_path, planned, {"made_by": {"command": "x", "started": "now", "versions": {}}})
    write_sweep_events(tmp_path, planned)
    for trial in planned.trials:
        (tmp_path / trial.name).mkdir()
        events = Events(tmp_path / trial.name, 1, None)
        events.hyperparameters(trial.varied)
        events.close()
    types, _ = columns(tmp_path)
    assert types["labels_per_class"] == "DATA_TYPE_FLOAT64"
    assert types["usl_type"] == "DATA_TYPE_STRING"
    assert set(types) == {"labels_per_class", "dataset", "usl_type", "seed"}
    ordered = list(rows(tmp_path, hparam="labels_per_class", order=api_pb2.ORDER_ASC).values())
    numbers = [row["labels_per_class"].number_value for row in ordered if "labels_per_class" in row]
    assert numbers == sorted(numbers)
    assert set(numbers) == {1, 10}
    assert len(ordered) == len(planned.trials), "a row where the setting is None stays"


def test_a_random_draw_has_a_column_with_its_bounds_before_any_point_is_proposed(tmp_path):
    search = {"alpha": {"loguniform": [0.001, 10]}}
    planned = space.build({"base": {"usl_type": "ae_parallel"}, "search": search, "tune": {"num_samples": 2}}, {}, "t")
    write_sweep(tmp_path, planned, {"made_by": {"command": "x", "started": "now", "versions": {}}})
    write_sweep_events(tmp_path, planned)
    context = Context(plugin_context(tmp_path))
    experiment = context.experiment_from_metadata(
        RequestContext(), "", True, context.hparams_metadata(RequestContext(), ""), []
    )
    alpha = next(info for info in experiment.hparam_infos if info.name == "alpha")
    assert (alpha.domain_interval.min_value, alpha.domain_interval.max_value) == (0.001, 10)
    assert "| alpha | loguniform \\[0.001, 10" in overview(tmp_path, planned)


def test_the_untrained_encoder_is_at_step_0_of_every_online_measure(sweep):
    trial = sweep / "strength=0.5,seed=0"
    with open(trial / "curves.csv") as file:
        first, *others = csv.DictReader(file)
    online = {"pretrain/embedding_std", "pretrain/rankme", "online/knn_val_accuracy"}
    assert first["step"] == "0"
    assert {name for name, value in first.items() if value} == {"step", *online}
    assert all(other["step"] != "0" for other in others)
    events = EventAccumulator(str(trial)).Reload()
    for name in online:
        assert [event.step for event in events.Scalars(name)] == [0, 1, 2]
        assert np.float32(first[name]) == np.float32(events.Scalars(name)[0].value)
    assert not EventAccumulator(str(sweep / "random,seed=0")).Reload().Scalars("knn/test_accuracy")[0].step


def test_pictures_and_histograms_are_one_group_that_follows_the_metrics(sweep):
    events = EventAccumulator(str(sweep / "strength=0.5,seed=0")).Reload()
    pictures = events.Tags()["images"]
    assert sorted(pictures) == ["visual/confusion_matrix", "visual/original_and_views"]
    assert all(tag < picture for tag in events.Tags()["scalars"] for picture in pictures)
    (values,) = events.Tensors("visual/embedding_values")
    (spread,) = events.Tensors("visual/embedding_std_by_dimension")
    result = Store.open(sweep)[0].result("strength=0.5,seed=0")
    for event in (values, spread):
        assert event.step == 2
    left, right, counts = np.frombuffer(spread.tensor_proto.tensor_content, "<f8").reshape(30, 3).T
    mean = (counts * (left + right)).sum() / counts.sum() / 2
    half_bin = (right - left).max() / 2
    assert mean == pytest.approx(result.metrics["pretrain/embedding_std"], abs=half_bin)
    assert counts.sum() * 1024 == np.frombuffer(values.tensor_proto.tensor_content, "<f8").reshape(30, 3)[:, 2].sum()


def test_a_confusion_matrix_is_drawn_darker_where_more_images_are():
    matrix = np.array([[8, 2], [0, 0]])
    picture = confusion_picture(matrix, ("cat", "\udcff" * 30))
    assert picture.dtype == np.uint8
    cells = confusion_picture(np.pad(matrix, (0, 28)), [str(number) for number in range(30)])  # without any text
    assert cells.shape == (300, 300, 3)
    assert cells[0, 0].sum() < cells[0, 10].sum() < 3 * 255
    assert (cells[10:] == 255).all(), "a class without images is white"
    assert confusion_picture(np.zeros((1000, 1000)), [""] * 1000).shape == (1000, 1000, 3)


def test_a_command_of_several_lines_is_the_same_command():
    lines = command_lines("run.py 'a b.yaml' --set 'x=[1, 2]' --note 'some --words'")
    assert lines == ["    run.py 'a b.yaml' \\", "       --set 'x=[1, 2]' \\", "       --note 'some --words'"]
