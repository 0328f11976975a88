"""The directory of one trial: held while the trial runs, and the records of how the trial ended."""

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
from raysweep.system.files import check_held


@contextmanager
def at_work(store: Store, name: str) -> Iterator[Callable[..., None]]:
    """Hold a trial's directory to run the trial here: brought over from a bucket before, and back at the end.

    Yields:
        What brings the files into the bucket meanwhile (`Mirror.push`). It raises OSError where the bucket does not
        take them: they are kept here until the trial is taken up again, and its `error.txt` says why. It raises
        Replaced where another process has taken the trial up.

    Raises:
        FileNotFoundError: the sweep does not lie there, as on a node that joined without the shared mount, or it
            was removed or renamed meanwhile.
    """
    absent = FileNotFoundError(
        errno.ENOENT, f"{socket.gethostname()} does not see the sweep's sweep.yaml", str(store.root)
    )
    if not store.present():  # or what it writes would be lost
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
            except Exception:  # not SystemExit, by which Ray ends a stopped trial while the next one waits for it
                mirror.push()
                raise
            mirror.push()
        except Replaced:
            raise
        except OSError:
            note_traceback(store.trial(name))
            raise


@contextmanager
def recording(store: Store, name: str) -> Iterator[Path]:
    """A trial's directory, to record how the trial ended where its own process does not; a bucket gets it then.

    If that cannot be written, a warning says so. The sweep continues, and a resume runs the trial again.
    """
    try:
        yield store.trial(name)
        if store.bucket is not None:
            Mirror(store.bucket / name, store.trial(name)).push(lambda each: each.endswith((".json", ".stopped")))
    except OSError as fault:
        if store.present():  # otherwise the command says once that the directory is gone
            warnings.warn(f"{name}: how it ended cannot be recorded: {describe_error(fault)}", stacklevel=3)


def record_failure(store: Store, trial: Trial, probe_digest: str, error: str) -> Result:
    """Record that the trial's last attempt broke off, and why."""
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
    """Remove the checkpoints of a trial that will not be resumed, in a bucket too."""
    remove_checkpoints(store.trial(name))
    if store.bucket is not None:
        folder = store.bucket / name
        for each in folder.files():
            if each.startswith("checkpoints/"):
                folder.remove(each)
