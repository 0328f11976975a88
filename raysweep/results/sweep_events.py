"""Writing what TensorBoard shows for a whole sweep: the layout of its scalars, its HParams columns, and a text page."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.custom_scalar import metadata as custom_scalar
from tensorboard.plugins.custom_scalar.layout_pb2 import Category, Chart, Layout, MultilineChartContent
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.text.metadata import create_summary_metadata as text_metadata

from raysweep.config import METRICS, Settings, has_metric, is_objective
from raysweep.config.values import is_plain_number
from raysweep.results.events import message_text, write_event_file
from raysweep.results.sweep_file import history
from raysweep.space import Sweep, Trial

SWEEP_EVENTS = "events.out.tfevents.0000.raysweep"
"""The name of the sweep's event file, in the directory of the sweep. TensorBoard shows it as a run of its own."""
FIRST_METRICS = ("linear/test_accuracy", "linear/val_accuracy", "knn/test_accuracy", "kmeans/accuracy", "pretrain/loss")
"""The metrics of the first HParams columns. TensorBoard shows five at first."""
MOST_VALUES = 20
"""Most values of a setting that the text page lists."""


def write_sweep_events(root: Path, sweep: Sweep) -> None:
    """Write the event file of a sweep, from the sweep and its `sweep.yaml`. An older file is replaced.

    TensorBoard keeps the first description of HParams that it reads, so an extended sweep needs a new file.

    Args:
        root: The sweep's directory.
        sweep: The sweep.

    Raises:
        OSError: The file cannot be written.
    """
    groups = metrics_by_group(sweep.examples)
    columns = HParamsPluginData(experiment=experiment(sweep, metric_columns(groups, sweep)))
    described = hparams.create_summary_metadata(columns)
    values = [
        text_value(custom_scalar.CONFIG_SUMMARY_TAG, layout(groups).SerializeToString(), layout_metadata()),
        text_value("sweep", overview(root, sweep).encode(errors="replace"), text_metadata(None, None)),
        Summary.Value(tag=hparams.EXPERIMENT_TAG, metadata=described),
    ]
    write_event_file(root / SWEEP_EVENTS, Event(wall_time=time.time(), summary=Summary(value=values)))


def text_value(tag: str, content: bytes, described: SummaryMetadata) -> Summary.Value:
    """Return a value that is a single string."""
    described.data_class = DATA_CLASS_TENSOR
    tensor = TensorProto(dtype=DT_STRING, tensor_shape=TensorShapeProto(), string_val=[content])
    return Summary.Value(tag=tag, metadata=described, tensor=tensor)


def layout_metadata() -> SummaryMetadata:
    """Return the description of a layout of scalars."""
    described: SummaryMetadata = custom_scalar.create_summary_metadata()
    return described


# ---- the order of the scalars ----------------------------------------------------------------------------------------


def group_of(metric: str) -> str:
    """Return the title of the group in which TensorBoard's Custom Scalars show a metric."""
    if is_objective(metric):
        return "Loss"
    if metric in ("pretrain/rankme", "pretrain/embedding_std"):
        return "Rank and spread of the embedding"
    titles = {
        "online": "Online kNN",
        "linear": "Linear probe",
        "knn": "kNN",
        "kmeans": "k-means",
        "label_free": "Measures without labels",
        "logistic": "Logistic regression",
        "few_shot": "Few-shot",
        "mlp": "MLP probe",
        "finetune": "Fine-tuning",
    }
    first, *rest = metric.split("/")
    if first == "linear" and len(rest) > 1:
        return "Linear probes on blocks"
    return titles.get(first, "Other")


GROUPS = (
    "Loss",
    "Rank and spread of the embedding",
    "Online kNN",
    "Linear probe",
    "kNN",
    "k-means",
    "Logistic regression",
    "Few-shot",
    "MLP probe",
    "Fine-tuning",
    "Linear probes on blocks",
    "Measures without labels",
    "Other",
)
"""The titles of the groups, in their order."""
OPEN = frozenset(GROUPS[:4])
"""The groups that are open at first. Without a linear probe, all groups are open."""


def metrics_by_group(trials: Iterable[Trial]) -> dict[str, list[str]]:
    """Return the metrics that a trial reports, by group. Scores on test images come first in a group."""
    different = list(different_settings(trials))
    groups: dict[str, list[str]] = {title: [] for title in GROUPS}
    for name in METRICS:
        if any(has_metric(name, settings) for settings in different):
            groups[group_of(name)].append(name)
    for names in groups.values():
        names.sort(key=lambda name: "/test_" not in name)
    groups["Rank and spread of the embedding"].sort(key=lambda name: name != "pretrain/rankme")
    return {title: names for title, names in groups.items() if names}


def different_settings(trials: Iterable[Trial]) -> Iterator[Settings]:
    """Yield the settings of a few trials, which together have every value of every setting that varies.

    Real numbers differ only in whether they are 0. To ask all points for their metrics takes 2.5 ms for each.
    """
    seen: set[tuple[str, ...]] = set()
    for trial in trials:
        values = {name: bool(value) if isinstance(value, float) else value for name, value in trial.varied.items()}
        keys: set[tuple[str, ...]] = {
            (trial.control, name, str(value)) for name, value in values.items() if name != "seed"
        }
        keys.add((trial.control, *sorted(trial.varied)))
        if not keys <= seen:
            seen |= keys
            yield trial.settings


def layout(groups: Mapping[str, Iterable[str]]) -> Layout:
    """Return the layout of Custom Scalars: a category for each group, and in it a chart for each metric."""
    return Layout(
        category=[
            Category(
                title=title,
                chart=[Chart(title=name, multiline=MultilineChartContent(tag=[f"{name}$"])) for name in names],
                closed=title not in OPEN and "Linear probe" in groups,
            )
            for title, names in groups.items()
        ]
    )


# ---- the columns of HParams ------------------------------------------------------------------------------------------


def metric_columns(groups: Mapping[str, Iterable[str]], sweep: Sweep) -> list[str]:
    """Return the metrics in the order of their columns.

    The directory of an evaluation lies inside the directory of its sweep. TensorBoard takes the columns of either of
    them if it shows both, so the columns of an evaluation also have the metrics of the sweep.
    """
    reported = [name for names in groups.values() for name in names]
    others = [name for names in metrics_by_group(sweep.encoders).values() for name in names]
    return list(dict.fromkeys([*(name for name in FIRST_METRICS if name in reported), *reported, *others]))


def experiment(sweep: Sweep, metrics: Iterable[str]) -> api_pb2.Experiment:
    """Return the columns of HParams: the settings that vary, the seed, and the metrics in this order.

    A setting with numbers in some trials and None in others is a column of numbers, which TensorBoard can sort.
    """
    return api_pb2.Experiment(
        hparam_infos=[column(name, values) for name, values in values_by_setting(sweep).items()],
        metric_infos=[
            api_pb2.MetricInfo(name=api_pb2.MetricName(tag=name), description=METRICS[name]) for name in metrics
        ],
    )


def values_by_setting(sweep: Sweep) -> dict[str, list[Any]]:
    """Return the values that each searched setting, and the seed, has in the points of the sweep, without None.

    A bound of a random draw counts as a value, because TensorBoard filters by the range of a column.
    """
    values: dict[str, list[Any]] = {name: [] for name in (*sweep.searched, "seed")}
    for space in sweep.search:
        for name, spec in space.items():
            for given in spec.values():
                values.setdefault(name, []).extend(given if isinstance(given, (list, tuple)) else [given])
    for trial in sweep.trials:
        if not trial.baseline:
            for name, value in trial.varied.items():
                values[name].append(value)
    return {
        name: [value for value in dict.fromkeys(map(hashable, every)) if value is not None]
        for name, every in values.items()
    }


def hashable(value: Any) -> Any:
    """Return a value as it is, or as text if it is a list or a mapping."""
    return value if isinstance(value, (str, int, float)) or value is None else str(value)


def column(name: str, values: list[Any]) -> api_pb2.HParamInfo:
    """Return the HParams column of a setting with these values."""
    info = api_pb2.HParamInfo(name=name, differs=True)
    numbers = [value for value in values if is_plain_number(value)]
    if all(isinstance(value, bool) for value in values) and values:
        info.type = api_pb2.DATA_TYPE_BOOL
        info.domain_discrete.extend(values)
    elif len(numbers) == len(values) and values:
        info.type = api_pb2.DATA_TYPE_FLOAT64
        finite = [value for value in numbers if math.isfinite(value)] or [0.0]
        info.domain_interval.min_value, info.domain_interval.max_value = min(finite), max(finite)
    else:
        info.type = api_pb2.DATA_TYPE_STRING
        info.domain_discrete.extend([message_text(value) for value in values])
    return info


# ---- the text page ---------------------------------------------------------------------------------------------------


def overview(root: Path, sweep: Sweep) -> str:
    """Return the text page of the sweep in Markdown: the settings that vary, the commands, the versions."""
    made_by, *changes = history(root)
    controls = f" Controls: {', '.join(sweep.baseline)}." if sweep.baseline else ""
    lines = [f"# {cell(root.name)}", "", f"{sweep.total} trials.{controls}", ""]
    lines += table(("setting", "values"), described_settings(sweep))
    for title, record in (("Command", made_by), *(("Extended by", change) for change in changes)):
        if record.get("command"):
            lines += [f"## {title}", "", *command_lines(str(record["command"])), "", f"{record.get('started')}", ""]
    versions = {**(made_by.get("versions") or {}), "commit": made_by.get("commit")}
    lines += ["## Versions", ""]
    lines += table(("package", "version"), ((name, value) for name, value in versions.items() if value is not None))
    return "\n".join(lines)


def table(header: tuple[str, str], rows: Iterable[tuple[str, Any]]) -> list[str]:
    """Return the lines of a Markdown table with two columns, and an empty line."""
    lines = [f"| {name} | {value} |" for name, value in (header, ("---", "---"))]
    return [*lines, *(f"| {cell(name)} | {cell(value)} |" for name, value in rows), ""]


def command_lines(command: str) -> list[str]:
    """Return a command as lines of code, with a new line before each option, as a shell takes it too."""
    try:
        words = shlex.split(command)
    except ValueError:  # it was edited, and a quotation mark has no partner
        return [f"    {command}"]
    lines = [""]
    for word in words:
        if word.startswith("--"):
            lines.append("   ")
        lines[-1] += f" {shlex.quote(word)}"
    return [f"    {line[1:]}{end}" for line, end in zip(lines, [" \\"] * (len(lines) - 1) + [""], strict=True)]


def described_settings(sweep: Sweep) -> Iterator[tuple[str, str]]:
    """Yield each setting that varies, with its values or the distribution that they are drawn from."""
    values = values_by_setting(sweep)
    for name in values:
        specs = [space[name] for space in sweep.search if name in space]
        drawn = [f"{kind} {given}" for spec in specs for kind, given in spec.items() if kind != "grid"]
        if drawn:
            yield name, "; ".join(dict.fromkeys(drawn))
        else:
            shown = [str(value) for value in values[name][:MOST_VALUES]]
            yield name, ", ".join(shown) + (", …" if len(values[name]) > MOST_VALUES else "")


def cell(value: object) -> str:
    """Return a value as text for a cell of a Markdown table."""
    text = " ".join(str(value).split())
    return "".join(f"\\{letter}" if letter in "\\|`*_<>[]" else letter for letter in text)
