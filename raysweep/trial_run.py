"""The run of one trial in this process: pretraining, then evaluation, with checkpoints."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from raysweep.config import Collapse, has_effect, has_metric, outside_range, version_of
from raysweep.config.metrics import WATCHED, WATCHED_IMAGES, is_watched
from raysweep.data.selection import TrialData
from raysweep.errors import Diverged, InputError
from raysweep.methods.precision import precision_of
from raysweep.probes.evaluation import Evaluation
from raysweep.probes.online import GRID_IMAGES, draw_views, online_measures, project, write_confusion, write_embedding
from raysweep.randomness import fixed_subset
from raysweep.results.checkpoints import load_checkpoint, save_checkpoint
from raysweep.results.encoders import evaluated_encoder, keep_encoder
from raysweep.results.events import Events
from raysweep.results.feature_cache import cache_of
from raysweep.results.final_state import continued_state, keep_final_state
from raysweep.results.handout import Taken
from raysweep.results.result import check_settings
from raysweep.space import Trial
from raysweep.training.compute import device_of, resident
from raysweep.training.distributed import SINGLE_PROCESS, DistributedContext
from raysweep.training.loop import last_fall, pretrain
from raysweep.training.state import broadcast_state, fresh_state, frozen_state
from raysweep.trial_progress import End, MustStop, ProgressReport, Report, Saved
from raysweep.trial_sharing import ALONE, Sharing

CHECKPOINT_SECONDS = 30.0
CHECKPOINT_COST = 50  # a checkpoint takes at most 2 % of the time


class TrialRun:
    """A trial that runs in this process.

    Args:
        trial: what to run.
        data: its arrays.
        directory: its directory.
        attempt: the number of this attempt.
        gpu: whether to use CUDA where it is visible.
        caught: the list into which warnings are recorded.
        context: the processes of a data-parallel trial. This process is the main one.
        encoder: the file of the encoder that a trial of an evaluation reads; None if it has none.
        sharing, shorter: see `run_trial`.
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
        self.chosen = torch.from_numpy(data.chosen) if data.chosen is not None else None
        self.precision = precision_of(trial.settings, self.device.type)
        self.data, self.sharing = data.digest, sharing
        saved = load_checkpoint(directory)
        taken = (
            None if saved is not None else sharing.take() or continued_state(shorter, trial, self.data, self.precision)
        )
        if self.is_evaluation:
            self.state = frozen_state(trial.settings, evaluated_encoder(trial, encoder), self.device)
        else:
            fitted_to = self.images if saved is None and taken is None else None
            self.state = fresh_state(trial.settings, channels, size, self.device, data.classes, fitted_to)
        cache = cache_of(trial.settings) if self.is_evaluation else None  # a sweep reads an encoder's features once
        images = (data.pretrain, self.images)
        self.evaluation = Evaluation(trial.settings, self.state.encoder, data.probe, images, self.device, cache)
        self.evaluation.views = trial.settings.model_copy(update=trial.views)
        self.watched = fixed_subset(len(self.images), WATCHED_IMAGES).to(self.device)
        self.metrics: dict[str, float] = {}
        self.losses: list[float] = []
        """The loss of every pretraining epoch so far."""
        self.collapsed = 0
        """Number of evaluations in a row in which the embedding was collapsed."""
        self.seconds_before = 0.0
        self.earlier_warnings: list[str] = []
        self.pretrained_by = ""  # the trial whose pretraining this one took over
        self.continues = ""  # the shorter trial whose final state this one continued
        self.continued_s = 0.0  # the seconds that the shorter trial took
        self.unlogged: list[dict[str, float]] = []
        """The metrics of the last epoch of a state that was taken over, until they are written."""
        sharing.begin(self.state.encoder, data, self.images, self.device)
        if saved is not None:
            self._load(saved)
        elif taken is not None:
            self._take_over(taken)
        self.events = Events(directory, attempt, saved["events"] if saved is not None else None)
        if saved is None:
            self.events.hyperparameters(trial.varied)
        if taken is not None:
            self.events.append(taken.records)
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
        self, checkpoint_seconds: float | None, collapse: Collapse | None, report: Report, stop: MustStop, saved: Saved
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
                    # the trial would resume after an evaluation that no scheduler has seen.
                    if moment is not None and not leaving:
                        report(moment)
                    if leaving or due():
                        save_start = time.perf_counter()
                        self.save(self.directory)
                        saved()  # copying a checkpoint into a bucket takes longer than writing it
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

    def steps(self, collapse: Collapse | None, pause: Callable[[], bool]) -> Generator[ProgressReport | End | None]:
        """The rest of the trial. It may be saved wherever this yields. At None there is nothing to report."""
        settings, state = self.settings, self.state
        if settings.pretrain_epochs and settings.probe_every and state.epoch == state.step == 0:
            self._measure_untrained()
        training = pretrain(settings, state, self.images, pause, self.context, self.labels, self.chosen)
        with closing(training) as epochs:
            for metrics in chain(self.unlogged, epochs):
                if metrics is None:
                    yield None
                    continue
                if state.epoch == settings.pretrain_epochs and settings.keep == "final_state":
                    keep_final_state(self.directory, self.content(), metrics, self.data, collapse)
                self.sharing.hand_out(self.directory, state.epoch, metrics, self._content)
                yield from self._end_epoch(metrics, collapse)
        yield from self._evaluate()

    def _end_epoch(self, metrics: dict[str, float], collapse: Collapse | None) -> Iterator[ProgressReport | End]:
        """Log the metrics of an epoch of pretraining, and measure and draw what is due after it."""
        settings, state, total = self.settings, self.state, self.settings.pretrain_epochs + 1
        last = state.epoch == settings.pretrain_epochs
        self.losses.append(metrics["pretrain/loss"])
        if last and settings.layerwise == "none":  # the loss of layerwise training restarts with each block
            metrics = metrics | last_fall(self.losses)
        self._log(metrics, state.epoch)
        evaluated = bool(settings.probe_every) and (state.epoch % settings.probe_every == 0 or last)
        if evaluated and last:
            self._measure_last()
        elif evaluated:
            self._log(self._measure()[0], state.epoch)
            self.sharing.measure(state.epoch)
        if settings.images_every and (state.epoch % settings.images_every == 0 or last):
            tag, picture = draw_views(settings, state, self.images[self.watched[:GRID_IMAGES]])
            self.events.images(tag, picture, state.epoch)
        if evaluated and collapse is not None:
            self.collapsed = self.collapsed + 1 if collapse.holds(self.metrics) else 0
            if self.collapsed >= collapse.evaluations:
                yield End("stopped", collapse.words(self.metrics, state.epoch))
        phase = (self.evaluation.first_phase, (0, 0)) if last else ("pretraining", (state.epoch, total - 1))
        fraction = 0.0 if self.pretrained_by else state.epoch / total
        yield ProgressReport(fraction, state.epoch, evaluated, self.metrics, self.seconds(), *phase, self.precision)

    def _evaluate(self) -> Iterator[ProgressReport | None]:
        """Let the probes evaluate the frozen encoder; then keep its weights."""
        trained = self.settings.pretrain_epochs
        before = 0 if self.is_evaluation or self.pretrained_by else trained  # the evaluation counts as one epoch
        is_measured = "pretrain/rankme" in self.metrics  # not if a resume has turned on probe_every
        if is_watched(self.settings) and not self.is_evaluation and not is_measured:
            self._measure_last()
        for scores in self.evaluation.run(trained):
            self._log(dict(scores.metrics), scores.step)
            for values, step in self.evaluation.extra_scalars:
                self.events.scalars(values, step)
            self.evaluation.extra_scalars.clear()
            write_confusion(self.events, self.evaluation, scores.step)
            if scores.is_projected:
                project(self.directory, self.settings, self.evaluation)
            if scores.phase:
                fraction = (before + scores.progress) / (before + 1)
                yield ProgressReport(
                    fraction, trained, False, self.metrics, self.seconds(), scores.phase, scores.phase_epochs
                )
            else:
                yield None
        if not self.is_evaluation:
            keep_encoder(self.directory, self.state.encoder, self.settings)

    def _log(self, metrics: dict[str, float], step: int) -> None:
        """Keep the newest value of each metric, and write it to TensorBoard.

        Raises:
            Diverged: A metric is not finite, or outside of the range that its part declares.
        """
        fault = outside_range(metrics)
        if fault is not None:
            raise Diverged(fault)
        self.metrics.update(metrics)
        if metrics:
            self.events.scalars(metrics, step)

    def _measure(self) -> tuple[dict[str, float], torch.Tensor]:
        """Return the online measures, and the embeddings that they were computed from."""
        return online_measures(self.settings, self.state, self.images, self.watched, self.evaluation)

    def _measure_last(self) -> None:
        """Write the online measures after the last epoch of pretraining."""
        self.evaluation.extract()  # the evaluation reads these features too
        measures, z = self._measure()
        self._log(measures, self.state.epoch)
        write_embedding(self.events, z, self.state.epoch)

    def _measure_untrained(self) -> None:
        """Write the online measures of the untrained encoder at step 0.

        They are not among the trial's metrics: a trial that diverges before its first evaluation has no score.
        """
        # Features that are not finite now may become finite in the first steps, so the trial does not fail here.
        with suppress(Diverged):
            self.events.scalars(self._measure()[0], 0)
            self.sharing.measure(0)
            return
        # The other trials may have finite measures at step 0, which are missing here.
        self.sharing.load_state_dict({})

    def save(self, directory: Path) -> None:
        """Write a checkpoint."""
        save_checkpoint(directory, self.content())

    def content(self) -> dict[str, Any]:
        """Return everything that a resumed trial needs."""
        return {
            **self._content(),
            "version": version_of(self.settings),
            "settings": self.settings.model_dump(),
            "images": (self.state.encoder.channels, self.state.encoder.image_size),
            "evaluation": self.evaluation.state_dict(),
            "events": self.events.positions(),
            "wall_s": self.seconds(),
            "sharing": self.sharing.state_dict(),
            "pretrained_by": self.pretrained_by,
            "continues": self.continues,
            "continued_s": self.continued_s,
        }

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
        """Continue from a state that another trial has handed out or kept."""
        if taken.wall_s is not None:
            self.continues, self.continued_s, self.seconds_before = taken.trial, taken.wall_s, taken.wall_s
            self.sharing.load_state_dict({})  # the other trials have no measures of the epochs before
        else:
            self.pretrained_by, self.precision = taken.trial, taken.precision
        self.unlogged = [taken.last]
        self.state.load_state_dict(taken.state)
        self.collapsed, self.losses, self.metrics = taken.collapsed, taken.losses, taken.metrics
        self.earlier_warnings = taken.warnings

    def _load(self, saved: dict[str, Any]) -> None:
        """Load what `save` wrote, except the positions of the event files."""
        check_settings(saved["settings"], self.settings, f"the checkpoint in {self.directory}")
        if saved.get("version") != version_of(self.settings):
            raise InputError(
                f"the checkpoint in {self.directory} was written by another version of raysweep, whose numbers differ; "
                "start a new sweep"
            )
        self.state.load_state_dict(saved["state"])
        self.collapsed, self.losses = saved["collapsed"], saved["losses"]
        outdated = self.evaluation.load_state_dict(saved["evaluation"])
        outdated |= {name for name in WATCHED if not has_metric(name, self.settings)}  # probe_every may be 0 now
        self.metrics = {name: value for name, value in saved["metrics"].items() if name not in outdated}
        self.seconds_before = saved["wall_s"]
        self.earlier_warnings = saved["warnings"]
        self.pretrained_by, self.continues = saved.get("pretrained_by", ""), saved.get("continues", "")
        self.continued_s = saved.get("continued_s", 0.0)
        self.sharing.load_state_dict(saved.get("sharing", {}))
        was, now = saved["precision"], self.precision
        if self.pretrained_by:
            self.precision = was
        if was not in (None, now) and self.state.epoch < self.settings.pretrain_epochs:
            warnings.warn(
                f"the pretraining used {was} until epoch {self.state.epoch} and {now} afterwards, because the trial "
                "resumed on another machine",
                stacklevel=2,
            )
