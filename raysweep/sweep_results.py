"""The results of one or several sweeps, for Python: tables, sentences, figures and encoders."""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.config import METRICS, suggest
from raysweep.errors import InputError, printable
from raysweep.results.credentials import join
from raysweep.results.encoders import source_file
from raysweep.results.mirror import fetch_encoder
from raysweep.results.store import Store, open_sweeps, shown_place
from raysweep.space import Sweep, Trial

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure
    from torch import nn

    from raysweep.report.contents import Report


class Results:
    """The results of a sweep, or of several that are compared. `raysweep.run` and `raysweep.open` return them.

    They are read anew at every call, so the results of a running sweep grow. Reading takes no lock and writes nothing,
    except copies of files that lie in a bucket.

    Args:
        places: The results directories, or their URIs.

    Example:
        >>> results = raysweep.open("runs/alpha")
        >>> results.frame().groupby("alpha")["linear/test_accuracy"].mean()
    """

    def __init__(self, places: Sequence[str]) -> None:
        self.places = list(places)
        """The results directories, or their URIs."""

    def check(self) -> None:
        """Raise InputError if there is no sweep, or if the sweeps were not evaluated alike."""
        self._report()

    @property
    def directory(self) -> Path:
        """The results directory; for a sweep in a bucket, its copy on this machine.

        Raises:
            RaysweepError: There are several sweeps; `places` has the directory of each.
        """
        if len(self.places) > 1:
            raise InputError("directory: these are the results of several sweeps; `places` has the directory of each")
        return Store(self.places[0], copies="reports").root

    @property
    def trials(self) -> list[str]:
        """The names of all trials, in the order of the sweep; of several sweeps, as `SWEEP/TRIAL`."""
        return list(self._trials())

    @property
    def failed(self) -> dict[str, str]:
        """For each trial that failed, the reason in one line."""
        return {
            f"{member.label}/{result.trial}" if member.label else result.trial: str(result.error)
            for member in self._report().members
            for result in member.results
            if result.status == "failed"
        }

    def frame(self) -> pandas.DataFrame:
        """Return one row per trial: settings, metrics, status, time.

        Values are exact. Integers are `Int64` and truth values `boolean`, so that they keep their type where a value is
        missing. A setting is missing in a trial in which it has no effect, and a metric in a trial that lacks it.

        Example:
            >>> results.frame()[["trial", "alpha", "seed", "linear/test_accuracy"]]
        """
        from raysweep.report.frames import trial_frame

        return trial_frame(self._report())

    def curves(self, metric: str) -> pandas.DataFrame:
        """Return the values of one metric by trial and step: columns `trial`, `step` and `value` (in single precision).

        They come from the TensorBoard files of the trials, also while the trials run. A step is an epoch.

        Raises:
            RaysweepError: No trial has reported this metric.

        Example:
            >>> results.curves("online/knn_val_accuracy").pivot(index="step", columns="trial", values="value").plot()
        """
        from raysweep.report.frames import curve_frame

        check_text(metric, "curves: give the name of a metric")
        curves = self._curves(metric)
        rows = [
            {"sweep": sweep, "trial": trial.name, "step": step, "value": value}
            for (sweep, trial), values in curves
            for step, value in sorted(values.items())
        ]
        return curve_frame(rows, len(self.places) > 1)

    def summary(self) -> pandas.DataFrame:
        """Return one row per point: the number of seeds, and mean, std and 95 % interval of each metric over the seeds.

        The differences from the controls compare equal seeds, and are adjusted for seeds that one of the two lacks.
        Their adjusted intervals hold for all points together.
        `docs/search-space.md` describes the controls.

        Example:
            >>> results.summary()[["point", "n", "linear/test_accuracy mean"]]
        """
        from raysweep.report.frames import point_frame

        return point_frame(self._report())

    def conclusions(self) -> list[str]:
        """Return the conclusions as sentences, followed by the notes of `summary.md`.

        With several evaluation protocols, a heading stands before the sentences of each, and `Note:` before the notes.

        Example:
            >>> for sentence in results.conclusions():
            ...     print(sentence)
        """
        from raysweep.report.summary import notes

        report = self._report()
        remarks = notes(report)
        heading = ["Note:"] if remarks and len(report.groups) > 1 else []
        return [*report.in_words(), *heading, *remarks]

    def figure(self, name: str) -> Figure:
        """Return a figure of the report, or the curves of a metric.

        Args:
            name: A searched setting (`alpha`: the scores against it), `alpha_minus_random`, `layers`, the two settings
                of a heat map (`alpha_x_strength`), `comparison` (several sweeps, or a setting without order),
                `parallel_coordinates` and `importance` (drawn values), or the name of a metric.

        Raises:
            RaysweepError: There is no such figure, or there is nothing to draw in it yet.

        Example:
            >>> results.figure("alpha").savefig("alpha.pdf")
            >>> results.figure("pretrain/loss")
        """
        check_text(name, "figure: give the name of a figure or of a metric")
        from raysweep.report.building import drawings_of, needs_of

        report = self._report()
        drawings = drawings_of(report)
        if name in drawings:
            figure = drawings[name]()
            if figure is None:
                raise InputError(f"figure {name!r}: there is nothing to draw; it needs {needs_of(name)}")
            return figure
        if name not in METRICS and "/" not in name:
            hint = suggest(name, [*drawings, *METRICS], f"; valid: {', '.join(drawings)}, or a metric")
            raise InputError(f"figure: unknown name {name!r}{hint}")
        from raysweep.report.curves import draw_curves

        curves = {
            (f"{sweep}/{trial.point}" if sweep else trial.point, f"{sweep}/{trial.name}"): values
            for (sweep, trial), values in self._curves(name)
            if values
        }
        return draw_curves(report.name, name, curves)

    def encoder(self, trial: str) -> nn.Module:
        """Return the trained encoder of a trial on the CPU, in evaluation mode.

        In an evaluation it is the encoder that the trial evaluates.

        It maps float32 images (B, C, H, W) in [0, 1], of the size on which it was trained, to features (B, D).

        Args:
            trial: The name of the trial; of several sweeps, `SWEEP/TRIAL`.

        Raises:
            RaysweepError: There is no such trial, or it has no encoder yet.

        Example:
            >>> encoder = results.encoder("alpha=0.1,seed=0")
            >>> features = encoder(torch.rand(8, 1, 8, 8))
        """
        check_text(trial, "encoder: give the name of a trial")
        trials = self._trials()
        if trial not in trials:
            raise InputError(f"{trial}: no such trial{suggest(trial, trials)}")
        from raysweep.portable import load

        store, chosen = trials[trial]
        if len(self.places) > 1:  # another sweep may have a part of the same name with other code
            Store.open(store.place, copies="reports")
        if chosen.source is not None:
            file = source_file(store, chosen)
            if file is None:
                raise InputError(f"{trial}: this control was built from its seed, and no file has it")
            return load(file)  # type: ignore[no-any-return]
        if store.bucket is not None:
            return load(fetch_encoder(join(store.place, chosen.name)))  # type: ignore[no-any-return]
        return load(store.trial(chosen.name))  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        parts = []
        for member in self._report().members:
            ended = [result.status for result in member.results]
            counts = {"failed": ended.count("failed"), "stopped early": ended.count("stopped")}
            more = "".join(f", {count} {words}" for words, count in counts.items() if count)
            parts.append(
                f"{printable(shown_place(member.store))}: {ended.count('finished')} of {member.sweep.total} trials "
                f"finished{more}"
            )
        return f"<Results {'; '.join(parts)}>"

    def _repr_html_(self) -> str:
        from raysweep.report.frames import point_frame
        from raysweep.report.sentences import digits_of

        report = self._report()
        table, scores = point_frame(report), report.columns
        columns = {f"{score} {part}": score for score in scores for part in ("mean", "std")}
        shown = table[[name for name in ("sweep", "point", "n", *columns) if name in table]].to_html(
            index=False,
            na_rep="",
            formatters={name: partial(digits_of, metric=score) for name, score in columns.items()},
        )
        return f"<p>{html.escape(repr(self)[1:-1])}</p>" + (shown if len(table) else "")

    def _report(self) -> Report:
        """Read the results."""
        from raysweep.report.building import read, read_several

        opened = open_sweeps(self.places)
        return read(*opened[0]) if len(opened) == 1 else read_several(opened)

    def _sweeps(self) -> list[tuple[str, Store, Sweep]]:
        """Return the sweeps, each with its name, which is empty if there is only one sweep."""
        from raysweep.report.contents import labels

        opened = open_sweeps(self.places)
        names = labels([store.root for store, _ in opened]) if len(opened) > 1 else [""]
        return [(name, store, sweep) for name, (store, sweep) in zip(names, opened, strict=True)]

    def _trials(self) -> dict[str, tuple[Store, Trial]]:
        """Return all trials by the names that `trials` lists."""
        return {
            f"{name}/{trial.name}" if name else trial.name: (store, trial)
            for name, store, sweep in self._sweeps()
            for trial in sweep.trials
        }

    def _curves(self, metric: str) -> list[tuple[tuple[str, Trial], dict[int, float]]]:
        """Return the metric by step, for each trial and the name of its sweep; raise InputError if no trial has it."""
        from raysweep.results.events import read_scalar

        curves: list[tuple[tuple[str, Trial], dict[int, float]]] = []
        for name, store, sweep in self._sweeps():
            store.pull_events()
            curves += [((name, trial), read_scalar(store.trial(trial.name), metric, 1)) for trial in sweep.trials]
        if not any(values for _, values in curves):
            raise InputError(f"curves: no trial has reported {metric!r}{suggest(metric, METRICS, '')}")
        return curves


def check_text(value: object, request: str) -> None:
    """Raise InputError, which begins with the request, if a value is not text."""
    if not isinstance(value, str):
        raise InputError(f"{request}, not {value!r}")
