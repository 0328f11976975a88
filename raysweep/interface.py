"""The public functions of the Python interface: run, resume, evaluate and open. `docs/python.md` describes them."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from raysweep import api
from raysweep.backends.progress import Progress, Silence
from raysweep.backends.ray.environment import check_address
from raysweep.errors import InputError, SweepInterrupted
from raysweep.python_arguments import Space, checked_flag, checked_place, for_python, overrides_of, source_of
from raysweep.results.credentials import is_uri
from raysweep.sweep_results import Results
from raysweep.system.places import ensure_home

Shown = bool | Literal["auto"]


@for_python
def run(
    space: Space,
    *,
    set: Mapping[str, Any] | None = None,
    output: str | Path | None = "runs",
    name: str | None = None,
    local: bool = False,
    address: str | None = None,
    plugins: Sequence[str | Path] = (),
    parts: Sequence[Callable[..., Any]] = (),
    share: bool = True,
    progress: Shown = "auto",
) -> Results:
    """Run a new sweep.

    The trials run on Ray. A Ray that is already initialised in this process is used and left as it is. Otherwise Ray is
    started on this machine, and ended with the sweep. If the sweep is interrupted (Ctrl-C, or "interrupt" in a
    notebook), its running trials save their state, and the results so far are returned with a warning.

    Args:
        space: A search-space file, the name of a shipped one, the content of one as a dict, or a checked sweep.
        set: Settings by name that replace the settings of the search space, as `--set` does; a list becomes a grid.
        output: The directory in which the results directory is created, or a URI in a bucket; None: `runs`.
        name: The name of the results directory, which must not exist; None takes the name of the search space, with a
            suffix if it exists.
        local: Run the trials one after the other in this process, without Ray.
        address: The address of a Ray cluster; None takes `RAY_ADDRESS`, else starts Ray on this machine.
        plugins: Files or installed modules with parts of your own. The search space may list more of them.
        parts: Functions and classes that a decorator such as `raysweep.loss` declared, for example in a notebook. They
            are sent to the workers by value.
        share: Whether trials with the same pretraining share it, also if one of them trains longer. The results are
            the same.
        progress: True shows the progress, False shows nothing, and "auto" shows it in a notebook and on a terminal.

    Returns:
        The results of the trials.

    Raises:
        RaysweepError: The input is faulty, or the sweep broke off; the message is one line that says what to do.

    Example:
        >>> results = raysweep.run({"base": {"usl_epochs": 10}, "search": {"alpha": [0.1, 1], "seed": [0, 1, 2]}})
        >>> results.summary()
    """
    options = run_options(local, address, parts, share)
    with lasting_process(local):
        return results_of(
            lambda: api.run(
                source_of(space),
                overrides_of(set),
                output="runs" if output is None else checked_place(output, "output", "a directory or a URI"),
                name=name,
                options=options,
                progress=progress_of(progress),
                plugins=plugins,
                parts=parts,
            )
        )


@for_python
def resume(
    place: str | Path,
    space: Space | None = None,
    *,
    set: Mapping[str, Any] | None = None,
    local: bool = False,
    address: str | None = None,
    plugins: Sequence[str | Path] = (),
    parts: Sequence[Callable[..., Any]] = (),
    share: bool = True,
    progress: Shown = "auto",
) -> Results:
    """Resume an existing sweep: run the trials that have not finished, and the trials of new points.

    Args:
        place: The results directory of the sweep, or its URI in a bucket.
        space: A search space whose points are added; None adds none.
        set: Settings that change the search space; see `run`.
        local: See `run`.
        address: See `run`.
        plugins: Files or modules with further parts. The results directory already holds the sweep's own.
        parts: The parts that were passed to `run`. They are needed again if another process started the sweep.
        share: See `run`.
        progress: See `run`.

    Returns:
        The results of all trials, including the trials that had finished before.

    Raises:
        RaysweepError: See `run`.

    Example:
        >>> results = raysweep.resume("runs/alpha", set={"seed": [0, 1, 2, 3]})
    """
    options = run_options(local, address, parts, share)
    with lasting_process(local):
        return results_of(
            lambda: api.resume(
                checked_place(place),
                None if space is None else source_of(space),
                overrides_of(set),
                options=options,
                progress=progress_of(progress),
                plugins=plugins,
                parts=parts,
            )
        )


@for_python
def open(place: str | Path | Sequence[str | Path]) -> Results:
    """Open a finished or running sweep, or several sweeps to compare them. Nothing is written.

    Args:
        place: A results directory, its URI in a bucket (`s3://…`), or a list of these.

    Returns:
        The results. They are read anew at every call, so the results of a running sweep grow.

    Raises:
        RaysweepError: No sweep is at a place, or several sweeps were not evaluated alike.

    Example:
        >>> raysweep.open("runs/alpha").frame()
        >>> raysweep.open(["runs/alpha", "runs/simclr"]).conclusions()
    """
    places = list(place) if isinstance(place, (list, tuple)) else [place]
    if not places:
        raise InputError("open: the list of results directories is empty")
    with system_faults():
        ensure_home()
        given = [checked_place(each) for each in places]
        # An absolute path stays valid if the program changes its working directory.
        results = Results([place if is_uri(place) else str(Path(place).absolute()) for place in given])
        results.check()
        return results


@for_python
def evaluate(
    place: str | Path,
    space: Space | None = None,
    *,
    set: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    name: str | None = None,
    local: bool = False,
    address: str | None = None,
    plugins: Sequence[str | Path] = (),
    parts: Sequence[Callable[..., Any]] = (),
    progress: Shown = "auto",
) -> Results:
    """Evaluate trained encoders under other evaluation settings, without pretraining.

    Each encoder is evaluated under each combination of the settings. The trials run, resume and are reported as the
    trials of a sweep.

    Args:
        place: The results directory of a sweep, or a single encoder: its file, or the directory of its trial. All
            encoders of a sweep are evaluated. It may also be a URI in a bucket.
        space: A search space of evaluation settings; see `run`. None: only what `set` says.
        set: Evaluation settings by name, such as `{"labels_per_class": [1, 10]}`; a list becomes a grid.
        output: For a single encoder, the directory in which the results directory is created; None: `runs`. The
            results for a sweep are in its own directory, as `evaluations/NAME`.
        name: The name of the results directory, which must not exist; None takes the name of the search space, else
            `evaluation`, with a suffix if it exists.
        local: See `run`.
        address: See `run`.
        plugins: Files or modules with further parts. The results directory of the sweep already holds its own.
        parts: See `resume`.
        progress: See `run`.

    Returns:
        The results of the evaluation.

    Raises:
        RaysweepError: See `run`.

    Example:
        >>> results = raysweep.evaluate("runs/alpha", set={"labels_per_class": [1, 10], "probe_layer": ["trunk"]})
        >>> results.summary()
    """
    options = run_options(local, address, parts)
    with lasting_process(local):
        return results_of(
            lambda: api.evaluate(
                checked_place(place),
                None if space is None else source_of(space),
                overrides_of(set),
                output=None if output is None else checked_place(output, "output", "a directory or a URI"),
                name=name,
                options=options,
                progress=progress_of(progress),
                plugins=plugins,
                parts=parts,
            )
        )


def run_options(
    local: bool, address: str | None, parts: Sequence[Callable[..., Any]], share: bool = True
) -> api.RunOptions:
    """Return how and where a sweep runs."""
    checked_flag(local, "local")
    checked_flag(share, "share")
    if address is not None and not isinstance(address, str):
        raise InputError(f"address: give the text HOST:PORT, not {type(address).__name__}")
    if address is not None:
        check_address(address)
    if local and address is not None:
        raise InputError(f"local=True runs without Ray and takes no address {address!r}")
    return api.RunOptions(local, address, owns_process=False, share=share, parts=parts)


def progress_of(shown: Shown) -> Progress:
    """Return the object that shows the progress of a sweep."""
    if not isinstance(shown, bool) and not (isinstance(shown, str) and shown == "auto"):
        raise InputError(f"progress: give True, False or 'auto', not {shown!r}")
    from raysweep.backends.notebook import NotebookProgress, in_notebook

    if shown and in_notebook():
        return NotebookProgress()
    if shown is True or (shown and sys.stdout is not None and sys.stdout.isatty()):
        from raysweep.backends.display import ConsoleProgress
        from raysweep.system.terminal import make_console

        return ConsoleProgress(make_console(), warn)
    return WarningsOnly()


class WarningsOnly(Silence):
    """A `Progress` that shows only warnings."""

    def warn(self, text: str) -> None:
        """Warn as Python does."""
        warn(text)


def warn(text: str) -> None:
    """Warn the user as Python does."""
    warnings.warn(text.removeprefix("warning: "), stacklevel=2)


@contextmanager
def lasting_process(local: bool) -> Iterator[None]:
    """Run a sweep in a process that continues afterwards, and turn OSErrors about files into RaysweepErrors."""
    with system_faults():
        ensure_home()
        if local:
            yield
            return
        from raysweep.backends.ray.session import session

        with session():
            yield


@contextmanager
def system_faults() -> Iterator[None]:
    """Turn an OSError about a file, for example because the disk is full, into an InputError."""
    try:
        yield
    except OSError as fault:
        if fault.filename is None:
            raise
        raise InputError(f"{fault.filename}: {fault.strerror}") from fault


def results_of(sweep: Callable[[], api.Outcome]) -> Results:
    """Run a sweep and return its results. After an interrupt, warn and return the results so far.

    SIGTERM or SIGHUP ends the process after the trials have saved, as it would without a sweep.
    """
    try:
        return Results([sweep().store.place])
    except SweepInterrupted as fault:
        if fault.number != signal.SIGINT:
            signal.raise_signal(fault.number)
        warnings.warn(str(fault), stacklevel=4)
        return Results([fault.place])
