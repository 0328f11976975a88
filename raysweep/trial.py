"""One trial from its settings to its result: pretraining, then evaluation, in a directory of its own."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from raysweep.config import PROTOCOL_VERSION, Collapse, Settings, has_effect
from raysweep.data.selection import Datasets, TrialData, data_of, select_data
from raysweep.errors import Diverged, InputError
from raysweep.methods.precision import precision_of
from raysweep.probes.evaluation import Evaluation
from raysweep.probes.features import fixed_subset
from raysweep.probes.online import GRID_IMAGES, draw_views, online_measures, project, write_confusion, write_embedding
from raysweep.results.attempts import begin_attempt
from raysweep.results.checkpoints import load_checkpoint, remove_checkpoints, save_checkpoint
from raysweep.results.curves import write_curves
from raysweep.results.encoders import evaluated_encoder, keep_encoder
from raysweep.results.events import Events
from raysweep.results.final_state import continued_state, keep_final_state
from raysweep.results.result import (
    Result,
    check_settings,
    make_result,
    note_traceback,
    read_result,
    set_result_aside,
    write_result,
)
from raysweep.space import Trial
from raysweep.system.memory import kept_memory
from raysweep.training.compute import device_of, fixed_threads, resident
from raysweep.training.distributed import SINGLE_PROCESS, DistributedContext
from raysweep.training.loop import last_fall, pretrain
from raysweep.training.state import broadcast_state, fresh_state, frozen_state
from raysweep.trial_progress import End, Progress, Report, Saved, Stop

CHECKPOINT_SECONDS = 30.0
CHECKPOINT_COST = 50  # a checkpoint takes at most 2 % of the time
WATCHED_IMAGES = 1024


def run_trial(
    trial: Trial,
    datasets: Datasets,
    directory: Path,
    *,
    threads: int,
    gpu: bool,
    checkpoint_seconds: float | None = None,
    collapse: Collapse | None = None,
    report: Report = lambda progress: None,
    stop: Stop = lambda: False,
    saved: Saved = lambda: None,
    context: DistributedContext = SINGLE_PROCESS,
    encoder: Path | None = None,
    shorter: Path | None = None,
) -> Result | None:
    """Run a trial, or resume it from its newest checkpoint, and write its `curves.csv` and `result.json`.

    On a CPU a trial that was interrupted, anywhere and any number of times, gives bit for bit the result of a trial
    that was not. In several processes only the last bits of `pretrain/loss` may differ, because it may be summed in
    another order. A loss that becomes NaN or infinite is a result too, with status `failed`: the same settings would
    only repeat it.

    Args:
        trial: what to run.
        datasets: the datasets that `data_of` needs.
        directory: the directory of the trial; absolute.
        threads: the number of threads of this process.
        gpu: whether to use CUDA where it is visible.
        checkpoint_seconds: the least time between two checkpoints. None: `CHECKPOINT_SECONDS`, or `CHECKPOINT_COST`
            times what the last checkpoint took, if that is more.
        collapse: when an embedding counts as collapsed, which stops the trial; None: never.
        report: called with the progress.
        stop: see `Stop`. A trial that stops returns None, and resumes from its checkpoint when it is run again.
        saved: see `Saved`.
        context: the processes of a data-parallel trial. This one is the main process; the others run `follow_trial`.
        encoder: the file of the encoder that a trial of an evaluation reads; None if it has none.
        shorter: the directory of the shorter trial from whose final state this one continues; None if it starts from
            the beginning.
    """
    assert context.is_main
    set_result_aside(directory, trial.name)
    earlier = read_result(directory)
    if earlier is not None and earlier.status != "failed":  # the worker died between the result and the last report
        remove_checkpoints(directory)
        saved()
        return earlier
    attempt = begin_attempt(directory, trial.settings)
    saved()
    with fixed_threads(threads), kept_memory(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", UserWarning)  # among them the warning of k-means on a collapsed embedding
        warnings.simplefilter("default", RuntimeWarning)
        try:
            data = data_of(trial, datasets)
            run = TrialRun(trial, data, directory, attempt, gpu, caught, context, encoder, shorter)
            end = run.run(checkpoint_seconds, None if trial.baseline else collapse, report, stop, saved)
        except Exception:
            note_traceback(directory)
            raise
    if end is None:
        return None
    result = make_result(
        trial,
        data.probe.digest,
        directory,
        status=end.status,
        error=end.reason,
        linear_probe=run.evaluation.best_linear_probe,
        metrics=run.metrics,
        wall_s=run.seconds(),
        device=str(run.device),
        precision=precision_of(trial.settings, run.device.type) if run.trains else "",
        continues=run.continues,
        warnings=run.warnings(),
    )
    write_curves(directory)
    write_result(directory, result)
    saved()  # in a bucket the result is written before the checkpoints are removed
    if end.status != "failed":
        remove_checkpoints(directory)
    saved()
    return result


def follow_trial(
    settings: Settings, datasets: Datasets, context: DistributedContext, *, threads: int, gpu: bool
) -> None:
    """Training loop for ranks above 0. Only rank 0, which runs `run_trial`, evaluates and writes results.

    Args:
        settings: the settings of the trial.
        datasets: see `run_trial`.
        context: the processes of the trial, of which this one is not the main process.
        threads: the number of threads of this process.
        gpu: see `run_trial`.
    """
    assert not context.is_main
    if not context.meet():
        return
    with fixed_threads(threads), kept_memory(), suppress(Diverged):  # the main process reports it
        data = select_data(settings, datasets)
        device = device_of(gpu)
        channels, size = data.pretrain.shape[1:3]
        state = fresh_state(settings, channels, size, device, data.classes)
        broadcast_state(state, context)
        labels = resident(data.labels, device) if data.labels is not None else None
        for _ in pretrain(settings, state, resident(data.pretrain, device), context=context, labels=labels):
            pass


class TrialRun:
    """A trial that runs in this process.

    Args:
        trial: what to run.
        data: its arrays.
        directory: its directory.
        attempt: the number of this attempt.
        gpu: whether to use CUDA where it is visible.
        caught: the list into which warnings are recorded.
        context: the processes of a data-parallel trial, of which this one is the main process.
        encoder: the file of the encoder that a trial of an evaluation reads; None if it has none.
        shorter: see `run_trial`.
    """

    def __init__(
        self,
        trial: Trial,
        data: TrialData,
        directory: Path,
        attempt: int,
        gpu: bool,
        caught: list[warnings.WarningMessage],
        context: DistributedContext = SINGLE_PROCESS,
        encoder: Path | None = None,
        shorter: Path | None = None,
    ) -> None:
        self.started = self.last_save = time.perf_counter()
        self.save_cost = 0.0
        self.context = context
        self.settings, self.directory, self.caught = trial.settings, directory, caught
        self.is_evaluation = trial.source is not None
        self.trains = has_effect("precision", trial.settings) and not self.is_evaluation
        self.device = device_of(gpu)
        if gpu and self.device.type == "cpu":
            warnings.warn("resources.gpu gives the trial a GPU, but PyTorch sees none: it ran on the CPU", stacklevel=2)
        self.images = resident(data.pretrain, self.device)
        channels, size = data.pretrain.shape[1:3]
        self.labels = resident(data.labels, self.device) if data.labels is not None else None
        if self.is_evaluation:
            self.state = frozen_state(trial.settings, evaluated_encoder(trial, encoder), self.device)
        else:
            self.state = fresh_state(trial.settings, channels, size, self.device, data.classes)
        self.evaluation = Evaluation(
            trial.settings, self.state.encoder, data.probe, (data.pretrain, self.images), self.device
        )
        self.watched = fixed_subset(len(self.images), WATCHED_IMAGES).to(self.device)
        self.metrics: dict[str, float] = {}
        self.losses: list[float] = []
        """The loss of every pretraining epoch so far."""
        self.collapsed = 0
        """Number of evaluations in a row in which the embedding was collapsed."""
        self.seconds_before = 0.0
        self.earlier_warnings: list[str] = []
        self.data, self.continues = data.digest, ""
        saved = load_checkpoint(directory)
        now = precision_of(trial.settings, self.device.type)
        begun = continued_state(shorter, trial, self.data, now) if saved is None else None
        self.unlogged: list[dict[str, float]] = begun["epoch_metrics"] if begun is not None else []
        """The metrics of the last epoch of the trial that this one continues, until they are written."""
        if saved is not None or begun is not None:
            self._load(saved or begun or {})
        elif hasattr(self.state.encoder, "fit") and not self.is_evaluation:
            self.state.encoder.fit(self.images)
        self.events = Events(directory, attempt, saved["events"] if saved is not None else None)
        if saved is None:
            self.events.hyperparameters(trial.varied)
        if begun is not None:
            self.events.append(begun["events"])
        context.meet()
        broadcast_state(self.state, context)

    def seconds(self) -> float:
        """Wall time spent so far, over all attempts."""
        return self.seconds_before + time.perf_counter() - self.started

    def warnings(self) -> list[str]:
        """Each warning once, over all attempts."""
        now = [str(warning.message).partition("\n")[0] for warning in self.caught]
        return list(dict.fromkeys([*self.earlier_warnings, *now]))

    def run(
        self, checkpoint_seconds: float | None, collapse: Collapse | None, report: Report, stop: Stop, saved: Saved
    ) -> End | None:
        """Pretrain and evaluate. Return how the trial ended, or None if it stopped to resume later."""

        def due() -> bool:
            least = checkpoint_seconds
            if least is None:
                least = max(CHECKPOINT_SECONDS, CHECKPOINT_COST * self.save_cost)
            return time.perf_counter() - self.last_save >= least

        try:
            end = End("finished")
            with closing(self.steps(collapse, lambda: stop() or due())) as steps:
                for moment in steps:
                    if isinstance(moment, End):
                        end = moment
                        break
                    leaving = stop()
                    # The report comes before the checkpoint. If the process died between the two in the other order,
                    # the trial would resume after an evaluation of which no scheduler has heard.
                    if moment is not None and not leaving:
                        report(moment)
                    if leaving or due():
                        save_start = time.perf_counter()
                        self.save(self.directory)
                        saved()  # into a bucket it takes longer than to write it
                        self.last_save = time.perf_counter()
                        self.save_cost = self.last_save - save_start
                    if leaving:  # nothing may delay the checkpoint of a trial that leaves
                        if moment is not None and moment.evaluated:
                            report(moment)
                        return None
            self.events.end(finished=True)  # a trial that was stopped has not failed
            return end
        except Diverged as fault:
            self.events.end(finished=False)
            where = "" if "epoch" in str(fault) else f" after pretraining epoch {self.state.epoch}"
            return End("failed", f"{fault}{where}")
        finally:
            self.events.close()

    def steps(self, collapse: Collapse | None, pause: Callable[[], bool]) -> Generator[Progress | End | None]:
        """The rest of the trial. It may be saved wherever this yields. None is in the middle of an epoch."""
        settings, state = self.settings, self.state
        total = settings.pretrain_epochs + 1  # the evaluation counts as one epoch
        if settings.pretrain_epochs and settings.probe_every and state.epoch == state.step == 0:
            self._measure_untrained()
        with closing(pretrain(settings, state, self.images, pause, self.context, self.labels)) as epochs:
            for metrics in chain(self.unlogged, epochs):
                if metrics is None:
                    yield None
                    continue
                last = state.epoch == settings.pretrain_epochs
                if last and settings.keep == "final_state":
                    keep_final_state(self.directory, self.content(), metrics, self.events, self.data, collapse)
                self.losses.append(metrics["pretrain/loss"])
                if last and settings.layerwise == "none":  # the loss of layerwise training restarts with each block
                    metrics |= last_fall(self.losses)
                self._log(metrics, state.epoch)
                evaluated = bool(settings.probe_every) and (state.epoch % settings.probe_every == 0 or last)
                if evaluated and last:  # the evaluation reads these features too
                    self.evaluation.extract()
                if evaluated:
                    measures, z = self._measure()
                    self._log(measures, state.epoch)
                    if last:
                        write_embedding(self.events, z, state.epoch)
                if settings.images_every and (state.epoch % settings.images_every == 0 or last):
                    tag, picture = draw_views(settings, state, self.images[self.watched[:GRID_IMAGES]])
                    self.events.images(tag, picture, state.epoch)
                if evaluated and collapse is not None:
                    self.collapsed = self.collapsed + 1 if collapse.holds(self.metrics) else 0
                    if self.collapsed >= collapse.evaluations:
                        yield End("stopped", collapse.words(self.metrics, state.epoch))
                phase = (self.evaluation.first_phase, (0, 0)) if last else ("pretraining", (state.epoch, total - 1))
                yield Progress(state.epoch / total, state.epoch, evaluated, self.metrics, self.seconds(), *phase)
        yield from self._evaluate()

    def _evaluate(self) -> Iterator[Progress]:
        """Let the probes evaluate the frozen encoder; then keep its weights."""
        trained = self.settings.pretrain_epochs
        before = 0 if self.is_evaluation else trained
        for scores in self.evaluation.run(trained):
            self._log(dict(scores.metrics), scores.step)
            for values, step in self.evaluation.extra_scalars:
                self.events.scalars(values, step)
            self.evaluation.extra_scalars.clear()
            write_confusion(self.events, self.evaluation, scores.step)
            if scores.may_pause:
                share = (before + scores.progress) / (before + 1)
                yield Progress(share, trained, False, self.metrics, self.seconds(), scores.phase, scores.phase_epochs)
            else:
                project(self.directory, self.settings, self.evaluation)
        if not self.is_evaluation:
            keep_encoder(self.directory, self.state.encoder, self.settings)

    def _log(self, metrics: dict[str, float], step: int) -> None:
        """Keep the newest value of each metric, and write it to TensorBoard."""
        self.metrics.update(metrics)
        self.events.scalars(metrics, step)

    def _measure(self) -> tuple[dict[str, float], torch.Tensor]:
        """Return the online measures, and the embeddings that they were computed from."""
        return online_measures(self.settings, self.state, self.images, self.watched, self.evaluation)

    def _measure_untrained(self) -> None:
        """Write the online measures of the untrained encoder at step 0.

        They are not among the trial's metrics: a trial that diverges before its first evaluation has no score.
        """
        # The first steps may be what makes the features of an encoder finite, so this alone fails no trial.
        with suppress(Diverged):
            self.events.scalars(self._measure()[0], 0)

    def save(self, directory: Path) -> None:
        """Write a checkpoint."""
        save_checkpoint(directory, self.content())

    def content(self) -> dict[str, Any]:
        """Return everything that a resumed trial needs."""
        return {
            "version": PROTOCOL_VERSION,
            "settings": self.settings.model_dump(),
            "state": self.state.state_dict(),
            "collapsed": self.collapsed,
            "losses": self.losses,
            "evaluation": self.evaluation.state_dict(),
            "events": self.events.positions(),
            "metrics": self.metrics,
            "warnings": self.warnings(),
            "wall_s": self.seconds(),
            "precision": precision_of(self.settings, self.device.type),
            "continues": self.continues,
        }

    def _load(self, saved: dict[str, Any]) -> None:
        """Load what `save` wrote, except the positions of the event files."""
        check_settings(saved["settings"], self.settings, f"the checkpoint in {self.directory}")
        if saved.get("version") != PROTOCOL_VERSION:
            raise InputError(
                f"the checkpoint in {self.directory} was written by another version of raysweep, whose numbers differ; "
                "start a new sweep"
            )
        self.state.load_state_dict(saved["state"])
        self.collapsed, self.losses = saved["collapsed"], saved["losses"]
        self.evaluation.load_state_dict(saved["evaluation"])
        self.metrics, self.seconds_before = saved["metrics"], saved["wall_s"]
        self.earlier_warnings, self.continues = saved["warnings"], saved.get("continues", "")
        was, now = saved["precision"], precision_of(self.settings, self.device.type)
        if was not in (None, now) and self.state.epoch < self.settings.pretrain_epochs:
            done = f"{self.state.epoch} of its pretraining epochs"
            warnings.warn(
                f"{done} used {was}, the others {now}, because the trial resumed on another machine", stacklevel=2
            )
