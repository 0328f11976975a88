"""The command line: `raysweep sweep …` (also `run_sweep.py …`), `evaluate`, `report`, `preview`, `fetch` and others.

It turns arguments into calls of `raysweep.api`, and prints what they return. A fault in the input becomes one line with
exit status 2, before torch or Ray is imported.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Collection, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep import __version__, api, dry_run, overview, plugins, space
from raysweep.arguments import (
    Parser,
    add_embed_arguments,
    add_evaluate_arguments,
    add_export_arguments,
    add_fetch_arguments,
    add_preview_arguments,
    add_report_arguments,
    add_sweep_arguments,
    check_single_values,
)
from raysweep.config import SETTINGS, suggest
from raysweep.errors import InputError, ResultsLost, SweepBrokeOff, SweepInterrupted
from raysweep.preparation import check_picture, shipped_spaces
from raysweep.printing import (
    FINISHED,
    SOME_FAILED,
    open_page,
    say,
    show_outcome,
    show_report,
    show_warning,
    tell,
    tell_state,
)
from raysweep.results.credentials import is_uri
from raysweep.results.store import Store, shown_place
from raysweep.space import Sweep
from raysweep.system.places import ensure_home, expanded, is_file, shown_path
from raysweep.system.terminal import INTERRUPTED, counted, make_console, redraws, resume_command

if TYPE_CHECKING:
    from raysweep.estimate import Estimate

BAD_INPUT = 2


def overrides_of(parsed: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that flags and --set give."""
    overrides = space.parse_assignments(parsed.set)
    for name in SETTINGS:
        text = getattr(parsed, name)
        if text is None:
            continue
        if name in overrides:
            raise InputError(f"give --set {name}={overrides[name]} or --{name} {text}, not both")
        overrides[name] = space.parse_value(name, text, f"--{name}")
    return overrides


def source_of(parsed: argparse.Namespace) -> Path | None:
    """Return the search-space file that the arguments name, or None."""
    if parsed.space and parsed.exp_type:
        raise InputError(f"give {parsed.space} or --exp_type {parsed.exp_type}, not both")
    if parsed.space in shipped_spaces() and not Path(parsed.space).exists():
        raise InputError(f"{parsed.space}: no such file; did you mean --exp_type {parsed.space}?")
    if parsed.space:
        return Path(parsed.space)
    return shipped_spaces()[parsed.exp_type] if parsed.exp_type else None


def run_options_of(parsed: argparse.Namespace) -> api.RunOptions:
    """Return how and where the arguments say that trials run."""
    if parsed.local and parsed.address is not None:
        raise InputError(f"--local runs without Ray and takes no --address {parsed.address}")
    if parsed.verbose and not parsed.dry_run:
        raise InputError("--verbose is for --dry-run, which then prints every setting")
    share = not getattr(parsed, "no_share", False)  # an evaluation pretrains nothing and has no such flag
    return api.RunOptions(parsed.local, parsed.address, lambda store: resume_of(store, parsed), share=share)


def check_destination(parsed: argparse.Namespace, directory: str, sweep: Sweep) -> None:
    """Raise InputError for a --name or --output that a real run would refuse. Buckets are not checked."""
    if {"name", "output"} & parsed.given.keys() and not is_uri(directory):
        Store.plan(directory, parsed.name, sweep.name)


def sweep_command(parsed: argparse.Namespace) -> int:
    """Run a new sweep, or resume an existing one."""
    options = run_options_of(parsed)
    if parsed.resume is not None:
        for flag in ("name", "output"):
            if flag in parsed.given:
                raise InputError(f"--resume names the directory of the sweep and takes no --{flag}")
    overrides, source = overrides_of(parsed), source_of(parsed)
    keywords: dict[str, Any] = {"options": options, "plugins": parsed.plugin}
    if parsed.resume is None and source is None and not overrides:
        raise InputError("nothing to run: give a search-space file, --exp_type alpha, or settings (--usl_type simclr)")
    if parsed.estimate and not parsed.dry_run:
        raise InputError("--estimate is for --dry-run; a running sweep shows the time left")
    if parsed.estimate and parsed.resume is not None:
        raise InputError("--estimate is for a new sweep; a resumed sweep shows the time left")
    if parsed.dry_run and parsed.resume is not None:
        before, sweep, done = api.plan_resume(parsed.resume, source, overrides, options, plugins.given(parsed.plugin))
        return show_plan(sweep, {trial.name for trial in before.trials}, parsed, done=done)
    if parsed.dry_run:
        sweep = api.plan(source, overrides, **keywords)
        check_destination(parsed, parsed.output, sweep)
        timed = api.estimate(sweep, local=parsed.local, share=options.share) if parsed.estimate else None
        return show_plan(sweep, None, parsed, timed)

    from raysweep.backends.display import ConsoleProgress

    console, started = make_console(), time.monotonic()
    progress = ConsoleProgress(console, say)
    if parsed.resume is not None:
        outcome = api.resume(parsed.resume, source, overrides, progress=progress, **keywords)
    else:
        outcome = api.run(source, overrides, output=parsed.output, name=parsed.name, progress=progress, **keywords)
    return show_outcome(outcome, console, started, options.resume_command)


def evaluate_command(parsed: argparse.Namespace) -> int:
    """Evaluate trained encoders under other evaluation settings."""
    source = None if parsed.space is None else Path(parsed.space)
    overrides = space.parse_assignments(parsed.set)
    options = run_options_of(parsed)
    keywords: dict[str, Any] = {"options": options, "plugins": parsed.plugin}
    if parsed.dry_run:
        planned = api.plan_evaluation(parsed.place, source, overrides, **keywords)
        check_destination(parsed, planned.directory(parsed.output), planned.sweep)
        return show_plan(planned.sweep, None, parsed)
    from raysweep.backends.display import ConsoleProgress

    console, started = make_console(), time.monotonic()
    keywords |= {"output": parsed.output, "name": parsed.name, "progress": ConsoleProgress(console, say)}
    outcome = api.evaluate(parsed.place, source, overrides, **keywords)
    return show_outcome(outcome, console, started, options.resume_command)


def show_plan(
    sweep: Sweep,
    known: Collection[str] | None,
    parsed: argparse.Namespace,
    estimate: Estimate | None = None,
    done: Collection[str] = (),
) -> int:
    """Print what would run.

    Args:
        sweep: The sweep.
        known: For a resume: the names of the trials that the existing sweep has. The other trials are marked as new.
        parsed: The parsed command line.
        estimate: How long the sweep would take; None if nobody asked.
        done: For a resume: the names of the trials that have ended. The plan does not count them.
    """
    share = not getattr(parsed, "no_share", False)
    for line in dry_run.lines_of(sweep, known, parsed.local, parsed.verbose, estimate, share, done):
        print(line)
    return FINISHED


def resume_of(store: Store, parsed: argparse.Namespace) -> str:
    """Return the command that resumes a sweep, with the options of this call."""
    options = ["--local"] if parsed.local else []
    options += ["--address", parsed.address] if parsed.address is not None else []
    options += ["--no-share"] if getattr(parsed, "no_share", False) else []
    return resume_command(shown_place(store), *options)


def report_command(parsed: argparse.Namespace) -> int:
    """Rebuild the report of one sweep, or compare several."""
    if len(parsed.sweeps) == 1:
        if parsed.output is not None:
            Store.open(parsed.sweeps[0], copies="reports", only_read=True)
            raise InputError("-o is for a comparison of several sweeps; the report of one sweep is in its directory")
        outcome = api.rebuild_report(parsed.sweeps[0])
        status, directory = show_outcome(outcome, make_console()), outcome.store.root
    else:
        report, directory = api.compare(parsed.sweeps, parsed.output)
        show_report(report, directory, make_console())
        status = tell_state(report, directory)
    if parsed.open:
        open_page(directory)
    return status


def fetch_command(parsed: argparse.Namespace) -> int:
    """Read datasets, and download the missing ones."""
    console = make_console()
    for name in parsed.datasets:
        dataset = api.fetch(name, parsed.data_dir)
        test = "no" if dataset.test_images is None else f"{len(dataset.test_images):,}"
        more = "" if dataset.unlabelled is None else f", {len(dataset.unlabelled):,} images for pretraining"
        pixels = "×".join(map(str, dataset.train_images.shape[1:]))
        count = len(dataset.classes)
        classes = f", {count} class{'' if count == 1 else 'es'}" if dataset.labelled else ", without labels"
        tell(console, f"{name}: {len(dataset.train_images):,} training and {test} test images{more}, {pixels}{classes}")
    return FINISHED


def embed_command(parsed: argparse.Namespace) -> int:
    """Write the features that a trained encoder computes for images."""
    from rich.progress import Progress

    console = make_console()
    with Progress(console=console, transient=True, disable=not redraws(console)) as bar:
        task = bar.add_task("embedding", total=None)
        count, width = api.embed(
            parsed.checkpoint,
            parsed.images,
            parsed.output,
            layer=parsed.layer,
            batch_size=parsed.batch_size,
            skip_bad_images=parsed.skip_bad_images,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    tell(console, f"{shown_path(parsed.output)}: {parsed.layer} features of {counted(count, 'image')}, {width} each")
    return FINISHED


def export_command(parsed: argparse.Namespace) -> int:
    """Write the weights of a trained encoder for other programs."""
    written = api.export(parsed.checkpoint, parsed.output)
    size = written["image_size"]
    what = f"{written['architecture']} for images of {written['channels']}×{size}×{size}"
    widths = f"trunk {written['trunk_dim']}, embedding {written['embedding_dim']}"
    tell(make_console(), f"{shown_path(parsed.output)}: {what}; {widths}")
    return FINISHED


def preview_command(parsed: argparse.Namespace) -> int:
    """Draw the augmented views of a sweep at each strength."""
    from raysweep.backends.display import ConsoleProgress

    check_picture(parsed.output)
    console, overrides = make_console(), space.parse_assignments(parsed.set)
    progress = ConsoleProgress(console, say)
    for panel in api.preview(Path(parsed.space), overrides, parsed.output, progress, plugins=parsed.plugin):
        tell(console, f"{shown_path(parsed.output)}: {panel}")
    return FINISHED


COMMANDS = {
    "sweep": (
        sweep_command,
        add_sweep_arguments,
        "run a sweep from a search-space file, or resume one (also: python run_sweep.py …)",
        "Run a sweep of self-supervised experiments on Ray. Every setting of an experiment is a flag.",
    ),
    "evaluate": (
        evaluate_command,
        add_evaluate_arguments,
        "evaluate the encoders of a sweep under other evaluation settings",
        "Evaluate trained encoders under other evaluation settings, without pretraining. Each encoder is evaluated "
        "under each combination. The results of a sweep's encoders are in DIR/NAME/evaluations.",
    ),
    "report": (
        report_command,
        add_report_arguments,
        "rebuild the tables and figures of a sweep, or compare several sweeps",
        "Rebuild the tables and figures of a sweep. With several sweeps, write a comparison of all.",
    ),
    "preview": (
        preview_command,
        add_preview_arguments,
        "draw the augmented views at each strength",
        "Draw the views that a sweep would train on, with a row for each augmentation strength.",
    ),
    "fetch": (
        fetch_command,
        add_fetch_arguments,
        "download datasets, or check a folder of images",
        "Read datasets, and download the missing ones into --data_dir, for machines without a network. A folder:PATH "
        "is read as a sweep reads it.",
    ),
    "embed": (
        embed_command,
        add_embed_arguments,
        "compute features of images with a trained encoder",
        "Compute features of images with a trained encoder. The file has features (N, D), paths (N) and layer.",
    ),
    "export": (
        export_command,
        add_export_arguments,
        "write the weights of a trained encoder for other programs",
        "Write the weights of a trained encoder for other programs.",
    ),
}
"""For each command: its function, the function that adds its arguments, its line in the overview, its description."""


def plugins_in(arguments: list[str]) -> tuple[plugins.Plugin, ...]:
    """Return the plugins that a command uses: from --plugin, the search-space file, and the sweep of --resume.

    Their settings become flags of the command.
    """
    named: list[str] = []
    existing: list[Path] = []
    spaces: list[Path] = []
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        flag, sign, value = argument.partition("=")
        value = value if sign else following
        if flag == "--plugin" and value:
            named.append(value)
        elif flag == "--resume" and value:
            existing.append(Path(expanded(value), "sweep.yaml"))
        elif arguments[0] == "evaluate" and is_file(Path(expanded(argument), "sweep.yaml")):
            existing.append(Path(expanded(argument), "sweep.yaml"))
        elif argument.endswith((".yaml", ".yml")):
            spaces.append(Path(expanded(argument)))

    def listed(paths: list[Path], **limit: int) -> Iterator[plugins.Plugin]:
        for path in paths:
            if is_file(path) and arguments[0] in ("sweep", "evaluate", "preview"):
                yield from plugins.find(space.read(path, **limit).get("plugins") or (), path.parent, f"{path}: plugins")

    recorded = tuple(listed(existing, longest=space.LONGEST_WRITTEN))
    return plugins.with_existing(recorded, (*plugins.given(named), *listed(spaces)))


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the arguments. Only the parser of the given command gets its arguments."""
    parser = Parser(
        prog="raysweep",
        usage="raysweep COMMAND …",
        description=overview.program_overview() if asks_for_help(arguments[:1]) else None,
        epilog="raysweep COMMAND --help shows the arguments of a command.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    for name, (function, add_arguments, line, description) in COMMANDS.items():
        top: dict[str, Any] = {"prog": f"raysweep {name}", "description": overview.filled(description)}
        if name == "evaluate":
            top["epilog"] = overview.filled(SWEEP_STATUS)
        if name == "sweep" and asks_for_help(arguments):
            top = {
                "usage": f"{overview.program()} {overview.USAGE}",
                "description": overview.sweep_overview(description),
                "epilog": overview.filled(SWEEP_STATUS),
            }
        command = commands.add_parser(name, help=line, allow_abbrev=False, **top)
        command.set_defaults(function=function)
        if arguments and arguments[0] == name:
            add_arguments(command)
    if not arguments:
        parser.print_help()
        parser.exit()
    if arguments[0] not in COMMANDS and not arguments[0].startswith("-"):
        raise InputError(f"unknown command {arguments[0]!r}{suggest(arguments[0], COMMANDS)}")
    if arguments[0] == "sweep":
        check_single_values(arguments[1:])
    return parser.parse_all(arguments, commands.choices.get(arguments[0], parser))


def asks_for_help(arguments: list[str]) -> bool:
    """Return whether these arguments make a command print its help."""
    return not arguments or "--help" in arguments or "-h" in arguments


SWEEP_STATUS = (
    "Exit status: 0, all trials finished or were stopped early; 1, some trials failed or did not run; 2, the input is "
    "wrong; 130, the sweep was interrupted, and the last line says how to resume it."
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        ensure_home()
        plugins.activate(plugins_in(arguments))
        parsed = parse(arguments)
        warnings.showwarning = show_warning
        return int(parsed.function(parsed))
    except InputError as fault:
        say(f"error: {fault}")
        return BAD_INPUT
    except SweepInterrupted as fault:
        say(str(fault))
        return INTERRUPTED
    except (SweepBrokeOff, ResultsLost) as fault:
        say(str(fault))
        return SOME_FAILED
    except OSError as fault:
        if fault.filename is None:
            raise
        say(f"error: {fault.filename}: {fault.strerror}")  # a path from the user, or a full disk
        return BAD_INPUT
    finally:
        plugins.activate(())
