"""One trial from its settings to its result: pretraining, then evaluation, in a directory of its own."""

from __future__ import annotations

import warnings
from pathlib import Path

from raysweep.config import Collapse
from raysweep.data.selection import Datasets, data_of
from raysweep.results.attempts import begin_attempt
from raysweep.results.checkpoints import remove_checkpoints
from raysweep.results.curves import write_curves
from raysweep.results.result import Result, make_result, note_traceback, read_result, set_result_aside, write_result
from raysweep.space import Trial
from raysweep.system.memory import kept_memory
from raysweep.training.compute import fixed_threads
from raysweep.training.distributed import SINGLE_PROCESS, DistributedContext
from raysweep.trial_progress import MustStop, Report, Saved
from raysweep.trial_run import TrialRun
from raysweep.trial_sharing import ALONE, Sharing


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
    stop: MustStop = lambda: False,
    saved: Saved = lambda: None,
    context: DistributedContext = SINGLE_PROCESS,
    encoder: Path | None = None,
    sharing: Sharing = ALONE,
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
        stop: see `MustStop`. A trial that stops returns None, and resumes from its checkpoint when it is run again.
        saved: see `Saved`.
        context: the processes of a data-parallel trial. This one is the main process; the others run `follow_trial`.
        encoder: the file of the encoder that a trial of an evaluation reads; None if it has none.
        sharing: the trial's part in a pretraining that it shares with other trials.
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
            run = TrialRun(trial, data, directory, attempt, gpu, caught, context, encoder, sharing, shorter)
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
        continues=run.continues,
        continued_s=run.continued_s,
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
