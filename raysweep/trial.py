"""One trial from its settings to its result: pretraining, then evaluation, in a directory of its own."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import torch

from raysweep.config import PROTOCOL_VERSION, Collapse, has_effect
from raysweep.data.selection import Datasets, TrialData, data_of
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
from raysweep.results.feature_cache import cache_of
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
from raysweep.trial_sharing import ALONE, Sharing, Taken

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
    sharing: Sharing = ALONE,
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
        sharing: the trial's part in a pretraining that it shares with other trials.
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
            run = TrialRun(trial, data, directory, attempt, gpu, caught, context, encoder, sharing)
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
        precision=run.precision if run.trains else "",
        warnings=run.warnings(),
        pretrained_by=run.pretrained_by,
    )
    write_curves(directory)
    write_result(directory, result)
    saved()  # in a bucket the result is written before the checkpoints are removed
    if end.status != "failed":
        remove_checkpoints(directory)
    saved()
    return result


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
        sharing: see `run_trial`.
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
        sharing: Sharing = ALONE,
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
        cache = cache_of(trial.settings) if self.is_evaluation else None  # a sweep reads an encoder's features once
        self.evaluation = Evaluation(
            trial.settings, self.state.encoder, data.probe, (data.pretrain, self.images), self.device, cache
        )
        self.watched = fixed_subset(len(self.images), WATCHED_IMAGES).to(self.device)
        self.metrics: dict[str, float] = {}
        self.losses: list[float] = []
        """The loss of every pretraining epoch so far."""
        self.collapsed = 0
        """Number of evaluations in a row in which the embedding was collapsed."""
        self.seconds_before = 0.0
        self.earlier_warnings: list[str] = []
        self.precision = precision_of(trial.settings, self.device.type)
        self.pretrained_by = ""  # the trial whose pretraining this one took over
        self.sharing = sharing
        self.taken: Taken | None = None
        sharing.begin(self.state.encoder, data, self.images, self.device)
        saved = load_checkpoint(directory)
        if saved is not None:
            self._load(saved)
        elif (taken := sharing.take()) is not None:
            self._take_over(taken)
        elif hasattr(self.state.encoder, "fit") and not self.is_evaluation:
            self.state.encoder.fit(self.images)
        self.events = Events(directory, attempt, saved["events"] if saved is not None else None)
        if saved is None:
            self.events.hyperparameters(trial.varied)
        if self.taken is not None:
            self.events.copy(self.taken.records)
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
        if self.taken is not None:
            yield from self._end_epoch(self.taken.last, collapse)
            self.taken = None
        elif settings.pretrain_epochs and settings.probe_every and state.epoch == state.step == 0:
            self._measure_untrained()
        with closing(pretrain(settings, state, self.images, pause, self.context, self.labels)) as epochs:
            for metrics in epochs:
                if metrics is None:
                    yield None
                    continue
                self.sharing.hand_out(self.directory, state.epoch, metrics, self._content)
                yield from self._end_epoch(metrics, collapse)
        yield from self._evaluate()

    def _end_epoch(self, metrics: dict[str, float], collapse: Collapse | None) -> Iterator[Progress | End]:
        """Log the metrics of an epoch of pretraining, and measure and draw what is due after it."""
        settings, state, total = self.settings, self.state, self.settings.pretrain_epochs + 1
        last = state.epoch == settings.pretrain_epochs
        self.losses.append(metrics["pretrain/loss"])
        if last and settings.layerwise == "none":  # the loss of layerwise training restarts with each block
            metrics = metrics | last_fall(self.losses)
        self._log(metrics, state.epoch)
        evaluated = bool(settings.probe_every) and (state.epoch % settings.probe_every == 0 or last)
        if evaluated and last:  # the evaluation reads these features too
            self.evaluation.extract()
        if evaluated:
            measures, z = self._measure()
            self._log(measures, state.epoch)
            if last:
                write_embedding(self.events, z, state.epoch)
            else:
                self.sharing.measure(state.epoch)
        if settings.images_every and (state.epoch % settings.images_every == 0 or last):
            tag, picture = draw_views(settings, state, self.images[self.watched[:GRID_IMAGES]])
            self.events.images(tag, picture, state.epoch)
        if evaluated and collapse is not None:
            self.collapsed = self.collapsed + 1 if collapse.holds(self.metrics) else 0
            if self.collapsed >= collapse.evaluations:
                yield End("stopped", collapse.words(self.metrics, state.epoch))
        phase = (self.evaluation.first_phase, (0, 0)) if last else ("pretraining", (state.epoch, total - 1))
        share = 0.0 if self.pretrained_by else state.epoch / total
        yield Progress(share, state.epoch, evaluated, self.metrics, self.seconds(), *phase)

    def _evaluate(self) -> Iterator[Progress]:
        """Let the probes evaluate the frozen encoder; then keep its weights."""
        trained = self.settings.pretrain_epochs
        before = 0 if self.is_evaluation or self.pretrained_by else trained  # the evaluation counts as one epoch
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
        if metrics:
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
            self.sharing.measure(0)
            return
        self.sharing.load_state_dict({})  # the measures of the other trials may not diverge

    def save(self, directory: Path) -> None:
        """Write a checkpoint of everything that a resumed trial needs."""
        content = {
            **self._content(),
            "version": PROTOCOL_VERSION,
            "settings": self.settings.model_dump(),
            "evaluation": self.evaluation.state_dict(),
            "events": self.events.positions(),
            "wall_s": self.seconds(),
            "sharing": self.sharing.state_dict(),
            "pretrained_by": self.pretrained_by,
        }
        save_checkpoint(directory, content)

    def _content(self) -> dict[str, Any]:
        """Return what a checkpoint and a state that is handed out have in common."""
        return {
            "state": self.state.state_dict(),
            "collapsed": self.collapsed,
            "losses": self.losses,
            "metrics": self.metrics,
            "warnings": self.warnings(),
            "precision": self.precision,
        }

    def _take_over(self, taken: Taken) -> None:
        """Continue from the state of a pretraining that another trial has handed out."""
        self.taken, self.pretrained_by, self.precision = taken, taken.trial, taken.precision
        self.state.load_state_dict(taken.state)
        self.collapsed, self.losses, self.metrics = taken.collapsed, taken.losses, taken.metrics
        self.earlier_warnings = taken.warnings

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
        self.earlier_warnings = saved["warnings"]
        self.pretrained_by = saved.get("pretrained_by", "")
        self.sharing.load_state_dict(saved.get("sharing", {}))
        was, now = saved["precision"], self.precision
        if self.pretrained_by:
            self.precision = was
        if was not in (None, now) and self.state.epoch < self.settings.pretrain_epochs:
            done = f"{self.state.epoch} of its pretraining epochs"
            warnings.warn(
                f"{done} used {was}, the others {now}, because the trial resumed on another machine", stacklevel=2
            )
