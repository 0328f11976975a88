"""From the trials' results to tables and figures. Reads the store only, so it can be rebuilt at any time."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table
from scipy import stats

from raysweep.config import METRICS, SETTINGS, has_effect
from raysweep.errors import InputError
from raysweep.space import Sweep, Trial, make_baseline
from raysweep.store import Result, Store, attempts, write_atomically

CONFIDENCE = 0.95
SCORES = ("linear/test_accuracy", "knn/test_accuracy", "kmeans/accuracy")
COLUMNS = ("linear/val_accuracy", *SCORES)
SATURATED = (
    "digits is nearly saturated: a random encoder with a linear probe on all labels already reaches 0.97 to 0.98, so "
    "differences in linear accuracy are small here, and none says anything about natural images."
)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds."""

    n: int
    mean: float
    std: float | None
    """Over seeds, with n − 1 degrees of freedom; None for one seed."""
    low: float | None
    high: float | None
    """The Student-t interval of the mean at `CONFIDENCE`; None for one seed."""


@dataclass(frozen=True)
class Point:
    """The trials of one point, which differ in their seed only."""

    name: str
    baseline: bool
    varied: Mapping[str, Any]
    by_seed: Mapping[int, Result]
    random_by_seed: Mapping[int, Result]
    """The random encoder's results under the same evaluation; empty without baseline."""

    def values(self, metric: str) -> list[float]:
        """The metric of every seed that has it."""
        return [result.metrics[metric] for result in self.by_seed.values() if metric in result.metrics]

    def differences(self, metric: str) -> list[float]:
        """This point minus the random encoder, seed by seed."""
        return [
            result.metrics[metric] - random.metrics[metric]
            for seed, result in self.by_seed.items()
            if (random := self.random_by_seed.get(seed)) and metric in result.metrics and metric in random.metrics
        ]


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean, spread and interval of independent values; None of none."""
    n = len(values)
    if n == 0:
        return None
    mean = float(np.mean(values))
    if n == 1:
        return Estimate(1, mean, None, None, None)
    std = float(np.std(values, ddof=1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * std / math.sqrt(n)
    return Estimate(n, mean, std, mean - half, mean + half)


def check_comparable(sweep: Sweep, results: Sequence[Result]) -> None:
    """Raises InputError where results were not evaluated alike, in anything that the sweep does not itself vary."""
    varied = set(sweep.searched)
    if varied & {"dataset", "probe_dataset", "image_size"}:
        varied |= {"probe_dataset", "probe_data", "image_size"}
    for result in results[1:]:
        for key, value in results[0].protocol.items():
            if key not in varied and result.protocol.get(key) != value:
                raise InputError(
                    f"{results[0].trial} and {result.trial} were not evaluated alike and cannot be compared: "
                    f"{key} is {value!r} in one, {result.protocol.get(key)!r} in the other"
                )


def gather(sweep: Sweep, results: Sequence[Result]) -> list[Point]:
    """The finished results by point, in the order of the sweep; points without any are left out."""
    finished = {result.trial: result for result in results if result.status == "finished"}
    trials: dict[str, list[Trial]] = {}
    for trial in sweep.trials:
        if trial.name in finished:
            trials.setdefault(trial.point, []).append(trial)
    points = []
    for name, of in trials.items():
        randoms = {} if of[0].baseline else {trial.settings.seed: make_baseline(trial).name for trial in of}
        points.append(
            Point(
                name=name,
                baseline=of[0].baseline,
                varied={key: value for key, value in of[0].varied.items() if key != "seed"},
                by_seed={trial.settings.seed: finished[trial.name] for trial in of},
                random_by_seed={seed: finished[random] for seed, random in randoms.items() if random in finished},
            )
        )
    return points


def build(store: Store, sweep: Sweep) -> list[Point]:
    """Write `results.csv`, `summary.csv`, `summary.md` and `figures/` from what results there are.

    Raises:
        InputError: the results were not all evaluated alike.
    """
    results = store.results(sweep)
    write_atomically(store.root / "results.csv", results_csv(store, sweep, results).encode())
    check_comparable(sweep, results)
    points = gather(sweep, results)
    write_atomically(store.root / "summary.csv", summary_csv(sweep, points).encode())
    write_atomically(store.root / "summary.md", summary_md(sweep, results, points).encode())
    (store.root / "figures").mkdir(exist_ok=True)
    for name in sweep.searched:
        figure = draw(sweep, points, name)
        if figure is not None:
            buffer = io.BytesIO()
            figure.savefig(buffer, dpi=150)
            write_atomically(store.root / "figures" / f"{name}.png", buffer.getvalue())
    return points


def to_csv(header: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV; floats as `repr` writes them, exactly; what a row lacks stays empty."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def results_csv(store: Store, sweep: Sweep, results: Sequence[Result]) -> str:
    """One row per trial of the sweep, in its order; a setting without effect in a trial stays empty."""
    by_name = {result.trial: result for result in results}
    metrics = [name for name in METRICS if any(name in result.metrics for result in results)]
    header = ["trial", "point", "status", *SETTINGS, *metrics, "fingerprint", "wall_s", "attempts", "device", "error"]
    rows = []
    for trial in sweep.trials:
        row: dict[str, Any] = {"trial": trial.name, "point": trial.point}
        row |= {name: getattr(trial.settings, name) for name in SETTINGS if has_effect(name, trial.settings)}
        row["probe_dataset"] = trial.settings.probes
        result = by_name.get(trial.name)
        if result is None:
            row["status"] = "unfinished" if attempts(store.trial(trial.name)) else "waiting"
        else:
            row |= result.metrics
            row |= {key: getattr(result, key) for key in ("status", "fingerprint", "attempts", "device", "error")}
            row["wall_s"] = round(result.wall_s, 3)
        rows.append(row)
    return to_csv(header, rows)


def summary_csv(sweep: Sweep, points: Sequence[Point]) -> str:
    """One row per point: n, and for each metric mean, std and interval, and the paired difference from random."""
    metrics = [name for name in METRICS if any(point.values(name) for point in points)]
    header = ["point", *sweep.searched, "n"]
    header += [f"{metric} {part}" for metric in metrics for part in ("mean", "std", "ci95_low", "ci95_high")]
    compared = [name for name in COLUMNS if name in metrics] if any(point.random_by_seed for point in points) else []
    header += [f"{metric} minus random {part}" for metric in compared for part in ("mean", "ci95_low", "ci95_high")]
    rows = []
    for point in points:
        row: dict[str, Any] = {"point": point.name, "n": len(point.by_seed), **point.varied}
        for metric in metrics:
            of = estimate(point.values(metric))
            if of is not None:
                parts = {"mean": of.mean, "std": of.std, "ci95_low": of.low, "ci95_high": of.high}
                row |= {f"{metric} {part}": value for part, value in parts.items()}
        for metric in compared:
            of = estimate(point.differences(metric))
            if of is not None:
                parts = {"mean": of.mean, "ci95_low": of.low, "ci95_high": of.high}
                row |= {f"{metric} minus random {part}": value for part, value in parts.items()}
        rows.append({key: value for key, value in row.items() if key in header})
    return to_csv(header, rows)


def cell(of: Estimate | None, signed: bool = False) -> str:
    """`0.9821 ± 0.0043`: the mean and half the interval; the mean alone for one seed."""
    if of is None:
        return "–"
    mean = f"{of.mean:+.4f}" if signed else f"{of.mean:.4f}"
    return mean if of.high is None else f"{mean} ± {of.high - of.mean:.4f}"


def difference_cell(of: Estimate | None) -> str:
    """`+0.0123 [+0.0040, +0.0206]`."""
    if of is None:
        return "–"
    return f"{of.mean:+.4f}" if of.low is None else f"{of.mean:+.4f} [{of.low:+.4f}, {of.high:+.4f}]"


def verdict(of: Estimate | None) -> str:
    """What an interval of a difference says."""
    if of is None or of.low is None or of.high is None:
        return "one seed: no interval"
    if of.low > 0:
        return "above random"
    return "below random" if of.high < 0 else "no difference shown"


def best_points(sweep: Sweep, points: Sequence[Point]) -> list[Point]:
    """The point, baseline aside, with the best mean of the sweep's metric: one for each protocol, in order.

    Scores of different protocols are not comparable, so a sweep that varies the evaluation has several best points.
    """
    metric = sweep.metric
    groups: dict[str, list[Point]] = {}
    for point in points:
        if metric and not point.baseline and point.values(metric):
            groups.setdefault(next(iter(point.by_seed.values())).fingerprint, []).append(point)
    choose = max if sweep.tune.mode == "max" else min
    return [choose(group, key=lambda point: float(np.mean(point.values(str(metric))))) for group in groups.values()]


def shown_columns(points: Sequence[Point]) -> list[str]:
    """The metrics of the summary's table that there are."""
    return [name for name in COLUMNS if any(point.values(name) for point in points)]


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(item).replace("|", "\\|") for item in line) + " |" for line in lines)


def summary_md(sweep: Sweep, results: Sequence[Result], points: Sequence[Point]) -> str:
    """The summary in words and tables."""
    failed = [result for result in results if result.status == "failed"]
    columns = shown_columns(points)
    text = [
        f"# {sweep.name}",
        f"{len(results) - len(failed)} of {len(sweep.trials)} trials finished, {len(failed)} failed. Mean over seeds ± "
        f"half of the {CONFIDENCE:.0%} Student-t interval of the mean; one seed has no interval.",
        markdown(
            ["point", "n", *columns],
            [
                [point.name, len(point.by_seed), *(cell(estimate(point.values(name))) for name in columns)]
                for point in points
            ],
        ),
    ]
    best = best_points(sweep, points)
    if best:
        names = ", ".join(f"**{point.name}**" for point in best)
        each = " (one for each evaluation protocol: their scores are not comparable)" if len(best) > 1 else ""
        text.append(f"Best by mean {sweep.metric}{each}: {names}.")
    compared = [point for point in points if point.random_by_seed]
    if compared:
        scores = [name for name in SCORES if name in columns]
        text += [
            "## Difference from the random encoder",
            f"Paired by seed: mean difference [{CONFIDENCE:.0%} interval]. Each interval stands for itself; none is "
            "corrected for the number of comparisons in the table.",
            markdown(
                ["point", "n", *(part for name in scores for part in (name, ""))],
                [
                    [
                        point.name,
                        len(point.differences(scores[0])),
                        *(
                            part
                            for of in (estimate(point.differences(name)) for name in scores)
                            for part in (difference_cell(of), verdict(of))
                        ),
                    ]
                    for point in compared
                ],
            ),
        ]
    if failed:
        text += ["## Failed", *(f"- {result.trial}: {result.error}" for result in failed)]
    remarks = list(dict.fromkeys(f"{warning} ({result.trial})" for result in results for warning in result.warnings))
    if remarks:
        text += ["## Warnings", *(f"- {remark}" for remark in remarks)]
    if any(trial.settings.probes == "digits" for trial in sweep.trials):
        text.append(f"Note: {SATURATED}")
    return "\n\n".join(text) + "\n"


def summary_table(sweep: Sweep, points: Sequence[Point]) -> Table:
    """The summary for a terminal."""
    columns = shown_columns(points)
    compared = any(point.random_by_seed for point in points)
    best = best_points(sweep, points)
    table = Table(title=f"{sweep.name}: mean over seeds ± half of the {CONFIDENCE:.0%} interval")
    table.add_column("point", overflow="fold")
    table.add_column("n", justify="right")
    for name in columns:
        table.add_column(name.replace("_", " ").replace("/", "\n"), justify="right")
    if compared:
        table.add_column("linear test accuracy\nminus random, paired", justify="right")
    for point in points:
        row = [point.name, str(len(point.by_seed)), *(cell(estimate(point.values(name))) for name in columns)]
        if compared:
            row.append(difference_cell(estimate(point.differences("linear/test_accuracy"))))
        table.add_row(*row, style="bold" if point in best else None)
    return table


def draw(sweep: Sweep, points: Sequence[Point], name: str) -> Figure | None:
    """The scores against one setting: mean and interval over seeds, each seed a dot, the random encoder as a band.

    A line for each combination of the other searched settings. None where fewer than two values have results.
    """
    points = [point for point in points if point.baseline or name in point.varied]
    values = list(dict.fromkeys(point.varied[name] for point in points if not point.baseline))
    scores = [score for score in SCORES if any(point.values(score) for point in points)]
    if len(values) < 2 or not scores:
        return None
    numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    values = sorted(values) if numeric else values
    lines: dict[str, list[Point]] = {}
    for point in points:
        if not point.baseline:
            others = {key: value for key, value in point.varied.items() if key != name}
            lines.setdefault(", ".join(f"{key} = {value}" for key, value in others.items()), []).append(point)
    for line in lines.values():
        line.sort(key=lambda point: values.index(point.varied[name]))
    baselines = [point for point in points if point.baseline]
    figure = Figure(figsize=(4.2 * len(scores), 4.2), layout="constrained")
    for axes, score in zip(figure.subplots(1, len(scores), squeeze=False)[0], scores, strict=True):
        scale_axis(axes, name, values, numeric)
        for number, (label, line) in enumerate(lines.items()):
            positions = [point.varied[name] if numeric else values.index(point.varied[name]) for point in line]
            positions = dodge(positions, number - (len(lines) - 1) / 2, axes.get_xscale())
            draw_line(axes, positions, line, score, label or "mean over seeds", f"C{number % 10}")
        for point in baselines:
            of_line = next((n for n, line in enumerate(lines.values()) if belongs(point, line[0], name)), None)
            colour = "0.4" if len(lines) == 1 or of_line is None or not point.varied else f"C{of_line % 10}"
            if name not in point.varied:
                draw_baseline(axes, point, score, colour)
        own = [point for point in baselines if name in point.varied]
        for line in lines.values() if own else ():
            matching = [point for point in own if belongs(point, line[0], name)]
            matching.sort(key=lambda point: values.index(point.varied[name]))
            x = [point.varied[name] if numeric else values.index(point.varied[name]) for point in matching]
            y = [float(np.mean(point.values(score))) if point.values(score) else math.nan for point in matching]
            axes.plot(x, y, "s--", color="0.4", markersize=4, linewidth=1, label="random encoder")
        axes.set_title(score.replace("_", " ").replace("/", " "), fontsize=10)
        axes.set_ylabel("accuracy")
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -0.02), min(high, 1.02))  # an interval may reach where no accuracy can
        axes.grid(alpha=0.25)
    seeds = sorted({len(point.by_seed) for point in points})
    interval = f", bars: {CONFIDENCE:.0%} interval of the mean" if seeds[-1] > 1 else ""
    n = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]}–{seeds[-1]}"
    figure.suptitle(f"{sweep.name}: n = {n} seed{'s' if n != '1' else ''} (dots){interval}", fontsize=11)
    handles = {label: handle for handle, label in zip(*figure.axes[0].get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def belongs(baseline: Point, point: Point, name: str) -> bool:
    """Whether the baseline was evaluated as the point's line was, the setting `name` along the axis aside."""
    return all(point.varied.get(key) == value for key, value in baseline.varied.items() if key != name)


def dodge(positions: list[Any], step: float, scale: str) -> list[Any]:
    """Move a line's points a little aside, so that the intervals of several lines do not hide one another."""
    if step == 0:
        return positions
    if scale == "log":
        return [x * 1.08**step for x in positions]
    width = max(positions) - min(positions)
    return [x + 0.012 * step * width for x in positions]


def draw_line(axes: Axes, positions: list[Any], line: Sequence[Point], score: str, label: str, colour: str) -> None:
    """Mean and interval of every point of a line, and its seeds as dots."""
    estimates = [estimate(point.values(score)) for point in line]
    kept = [(x, of) for x, of in zip(positions, estimates, strict=True) if of is not None]
    means = [of.mean for _, of in kept]
    axes.plot([x for x, _ in kept], means, "-", color=colour, marker="D", markersize=4, label=label)
    for x, of in kept:
        if of.high is not None:
            axes.errorbar(x, of.mean, yerr=of.high - of.mean, color=colour, capsize=3, linewidth=1.2)
    for x, point in zip(positions, line, strict=True):
        seeds = point.values(score)
        if len(seeds) > 1:
            axes.plot([x] * len(seeds), seeds, linestyle="", zorder=3, gid="seeds", **dot_style(colour))


def dot_style(colour: str) -> dict[str, Any]:
    """How a seed is drawn: hollow, so that it is seen on its interval's line."""
    return {"marker": "o", "markersize": 5, "markerfacecolor": "white", "markeredgecolor": colour}


def draw_baseline(axes: Axes, point: Point, score: str, colour: str) -> None:
    """The random encoder: its mean as a line, its interval as a band."""
    of = estimate(point.values(score))
    if of is None:
        return
    axes.axhline(of.mean, color=colour, linestyle="--", linewidth=1, label=f"{point.name} encoder")
    if of.low is not None and of.high is not None:
        axes.axhspan(of.low, of.high, color=colour, alpha=0.15, linewidth=0, label=f"its {CONFIDENCE:.0%} interval")


def scale_axis(axes: Axes, name: str, values: Sequence[Any], numeric: bool) -> None:
    """Logarithmic where the values span a factor of 100 or more; with zero among them linear up to the smallest."""
    axes.set_xlabel("α" if name == "alpha" else name)
    if not numeric:
        axes.set_xticks(range(len(values)), [str(value) for value in values])
        return
    positive = [value for value in values if value > 0]
    if positive and max(positive) / min(positive) >= 100 and min(values) >= 0:
        if len(positive) == len(values):
            axes.set_xscale("log")
        else:
            axes.set_xscale("symlog", linthresh=min(positive))
