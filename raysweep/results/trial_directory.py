"""Holding the directory of one trial while it runs, and recording how the trial ended."""

from __future__ import annotations

import errno
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from raysweep.results.attempts import hold_directory
from raysweep.results.checkpoints import remove_checkpoints
from raysweep.results.mirror import Mirror, Replaced
from raysweep.results.result import Result, describe_error, make_result, note_traceback, write_result
from raysweep.results.store import Store
from raysweep.space import Trial
from raysweep.system.files import check_held, discard

ABSENT = "does not see the sweep's sweep.yaml"
"""Words of the error of a trial whose node does not see the results directory."""


@contextmanager
def at_work(store: Store, name: str) -> Iterator[Callable[..., None]]:
    """Hold a trial's directory to run the trial here; a bucket's files are fetched before and uploaded at the end.

    Yields:
        A function that uploads the files to the bucket in between (`Mirror.push`). It raises OSError if the bucket
        does not accept them. The files then stay here until the trial is resumed, and its `error.txt` gives the
        reason. It raises Replaced if another process has taken the trial over.

    Raises:
        FileNotFoundError: The sweep is missing at that path, either because this node lacks the shared mount or
            because the sweep was removed or renamed.
    """
    absent = FileNotFoundError(errno.ENOENT, f"{socket.gethostname()} {ABSENT}", str(store.root))
    if not store.present():  # otherwise whatever the trial writes would be lost
        raise absent
    with hold_directory(store.trial(name)):
        if store.bucket is None:
            try:
                yield lambda every=0.0: check_held(store.trial(name))
            except OSError as fault:
                if not store.present():
                    raise absent from fault
                raise
            return
        mirror = Mirror(store.bucket / name, store.trial(name))
        try:
            mirror.pull()
            try:
                yield mirror.push
            except Replaced:
                raise
            except Exception:  # SystemExit is excluded: Ray raises it in a stopped trial while the next trial waits
                mirror.push()
                raise
            mirror.push()
        except Replaced:
            raise
        except OSError:
            note_traceback(store.trial(name))
            if mirror.has_unsent("result.json"):  # the copy alone must not tell that the trial has ended
                discard(store.trial(name) / "result.json")
            raise


@contextmanager
def recording(store: Store, name: str, resumes: bool = True) -> Iterator[Path]:
    """Provide a trial's directory to record how it ended when its own process cannot; a bucket is updated afterwards.

    If the record cannot be written, a warning says so. The sweep continues, and a resume runs the trial again.

    Args:
        store: The results directory of the sweep.
        name: The name of the trial.
        resumes: Whether a resume runs the trial again. If not, its checkpoints are removed once the record is written.
    """
    try:
        yield store.trial(name)
        if store.bucket is not None:
            Mirror(store.bucket / name, store.trial(name)).push(
                lambda each: each in ("attempt.json", "result.json") or each.endswith(".stopped")
            )
        if not resumes:
            forget_checkpoints(store, name)
    except OSError as fault:
        if store.present():  # otherwise the command reports once that the directory is gone
            warnings.warn(f"{name}: the end of the trial cannot be recorded: {describe_error(fault)}", stacklevel=3)


def record_failure(store: Store, trial: Trial, probe_digest: str, error: str) -> Result:
    """Record that the trial's last attempt failed, and why."""
    directory = store.trial(trial.name)
    result = make_result(
        trial,
        probe_digest,
        directory,
        status="failed",
        error=error,
        metrics={},
        wall_s=0.0,
        device="unknown",
        warnings=[],
    )
    if store.present():
        with recording(store, trial.name):
            directory.mkdir(parents=True, exist_ok=True)
            write_result(directory, result)
    return result


def forget_checkpoints(store: Store, name: str) -> None:
    """Remove the checkpoints of a trial that will not be resumed, also from a bucket."""
    remove_checkpoints(store.trial(name))
    if store.bucket is not None:
        folder = store.bucket / name
        for each in folder.files():
            if each.startswith("checkpoints/"):
                folder.remove(each)
