"""The command line: `raysweep sweep …` (also `run_sweep.py …`), `report`, `preview`, `embed` and `export`.

Whatever is wrong with the input is said in one line, with exit status 2, before torch or Ray is imported.
"""

from __future__ import annotations

import argparse
import difflib
import os
import shlex
import subprocess
import sys
import threading
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import datetime, timezone
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TextIO, get_args, get_origin

from raysweep import __version__, space
from raysweep.backends.stopping import Stopping
from raysweep.config import SETTINGS, Settings, about, default_of, protocol, read_number, suggest
from raysweep.errors import InputError, masked, printable
from raysweep.results.credentials import is_uri
from raysweep.results.mirror import fetch_encoder
from raysweep.results.result import Result, describe_error, note_traceback, protocol_difference
from raysweep.results.store import TAKE_SECONDS, Store, candidates, check_writable
from raysweep.results.sweep_file import recorded_datasets, with_proposals
from raysweep.space import Sweep
from raysweep.system.files import existing_ancestor
from raysweep.system.places import ensure_home, expanded, settle_ray_directory
from raysweep.system.terminal import INTERRUPTED, make_console, output_is_lost, redraws, resume_command

if TYPE_CHECKING:
    from rich.console import Console

    from raysweep.data.selection import Datasets
    from raysweep.report.contents import Report

REPORT_IMPORT_SECONDS = 10.0
FINISHED, SOME_FAILED, BAD_INPUT = 0, 1, 2


class StoreOnce(argparse.Action):
    """Keep a flag's value; of a flag that is given twice argparse would drop the first."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        """Called for every value that the command line has."""
        given = vars(namespace).setdefault("given", {})
        if option_string is not None and self.dest in given:
            first, flag = str(given[self.dest]), "/".join(self.option_strings)
            parser.error(f"{flag} is given twice, as {first!r} and {str(values)!r}; give it once")
        given[self.dest] = values
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors that suggest the flag that was meant, and no flag twice."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.register("action", None, StoreOnce)  # of every flag that does not name another action

    def error(self, message: str) -> NoReturn:
        """Raise what `main` prints, instead of printing the usage."""
        raise InputError(message)

    def parse_all(self, arguments: list[str]) -> argparse.Namespace:
        """Parse; an unknown flag gets a suggestion."""
        known, unknown = self.parse_known_args(arguments, argparse.Namespace(given={}))
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            close = difflib.get_close_matches(unknown[0].split("=")[0], flags, n=1)
            hint = f", did you mean {close[0]}?" if close else "; --help lists what there is"
            self.error(f"unknown argument {unknown[0]}{hint}")
        return known


def place(text: str) -> str:
    """A path on the command line, or a place in a bucket: `~` is the home directory, and passwords are refused."""
    try:
        is_uri(text)
        return expanded(text)
    except InputError as fault:  # argparse would say for any other ValueError that the function `place` failed
        raise argparse.ArgumentTypeError(str(fault)) from None


def local_path(text: str) -> Path:
    """A path on the command line that is on this machine."""
    return Path(place(text))


def cluster_address(text: str) -> str:
    """The address of a Ray cluster, which is printed and logged."""
    if "@" in text:
        raise argparse.ArgumentTypeError("credentials in an address end up in logs; Ray's is RAY_AUTH_TOKEN")
    return text


def sweep_parser() -> Parser:
    """The flags of `sweep`: every setting of the experiment is one of them."""
    parser = Parser(
        prog="run_sweep.py",
        description="Run a sweep of self-supervised experiments on Ray.",
        epilog="Exit status: 0 all trials finished or were stopped early, 1 some failed, 2 bad input, 130 interrupted "
        "(resume with --resume).",
        allow_abbrev=False,
    )
    parser.add_argument("space", nargs="?", type=place, metavar="SPACE.yaml", help="search-space file")
    parser.add_argument("--exp_type", choices=sorted(shipped_spaces()), help="a search space that comes with raysweep")
    parser.add_argument("--name", help="name of the results directory, which must not exist (the space's)")
    parser.add_argument(
        "--output",
        type=place,
        default="runs",
        metavar="DIR",
        help="where results directories are made, or s3://BUCKET/PREFIX (runs)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="override any setting, or baseline, tune.NAME, resources.NAME; a list becomes a grid: seed=[0,1,2]",
    )
    parser.add_argument(
        "--resume",
        type=place,
        metavar="DIR/NAME",
        help="go on with a sweep: run the trials that have not finished, and those that a changed search space adds",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the trials and the resolved settings only")
    parser.add_argument("--local", action="store_true", help="one process, no Ray")
    parser.add_argument(
        "--address",
        type=cluster_address,
        metavar="HOST:PORT",
        help="an existing Ray cluster (default: RAY_ADDRESS, else Ray on this machine)",
    )
    groups: dict[str, Any] = {}
    for name in SETTINGS:
        of = about(name)
        if of.group not in groups:
            groups[of.group] = parser.add_argument_group(f"settings: {of.group}")
        default = default_of(name)
        groups[of.group].add_argument(
            f"--{name}",
            metavar=shown_values(name),
            help=f"{of.text} ({'none' if default is None else default})".replace("%", "%%"),
        )
    return parser


def shown_values(name: str) -> str:
    """What --help shows for a setting's value: the choices, where it is one of a few."""
    kind: Any = Settings.model_fields[name].annotation
    return f"{{{','.join(get_args(kind))}}}" if get_origin(kind) is Literal else "X"


def shipped_spaces() -> dict[str, Path]:
    """The search spaces that come with raysweep: inside the package once installed, beside it in a checkout."""
    package = Path(__file__).parent
    folder = package / "search_spaces" if (package / "search_spaces").is_dir() else package.parent / "search_spaces"
    return {path.stem: path for path in folder.glob("*.yaml")}


def requested(arguments: argparse.Namespace, begun: Path | None = None) -> Sweep:
    """The sweep that the arguments describe, checked; without a search space, that of the file `begun`."""
    overrides = space.parse_assignments(arguments.set)
    flags = {name: getattr(arguments, name) for name in SETTINGS if getattr(arguments, name) is not None}
    for name, text in flags.items():
        if name in overrides:
            raise InputError(f"give --set {name}={overrides[name]} or --{name} {text}, not both")
        overrides[name] = space.parse_value(name, text, f"--{name}")
    if arguments.space and arguments.exp_type:
        raise InputError(f"give {arguments.space} or --exp_type {arguments.exp_type}, not both")
    if arguments.space in shipped_spaces() and not Path(arguments.space).exists():
        raise InputError(f"{arguments.space}: no such file; did you mean --exp_type {arguments.space}?")
    if arguments.space:
        return space.build(space.read(Path(arguments.space)), overrides, arguments.space)
    if arguments.exp_type:
        path = shipped_spaces()[arguments.exp_type]
        return space.build(space.read(path), overrides, path.name)
    if begun is not None:
        return space.build(space.read(begun), overrides, "command line" if overrides else str(begun))
    if not overrides:
        raise InputError("nothing to run: give a search-space file, --exp_type alpha, or settings (--usl_type simclr)")
    name = overrides.get("usl_type", Settings().usl_type)
    return space.build({"name": name if isinstance(name, str) else "sweep"}, overrides, "command line")


def check_paths(sweep: Sweep, probed: bool = True) -> None:
    """Check the datasets of a sweep by the names of their files, before anything heavy is imported.

    With `probed`, the datasets that trials are evaluated on must have labels.

    Raises:
        InputError: a dataset does not exist or lacks labels, or a searched setting has no effect on it.
    """
    from raysweep.data import selection
    from raysweep.data.folders import check_exists

    for name in dict.fromkeys(trial.settings.dataset for trial in sweep.examples):
        check_exists(name)
    for name in dict.fromkeys(trial.settings.evaluated_dataset for trial in sweep.examples):
        check_exists(name, labelled=probed)
        selection.check_validation(name, [t.settings for t in sweep.examples if t.settings.evaluated_dataset == name])


def check_means(sweep: Sweep, local_run: bool) -> None:
    """Raises InputError where the sweep needs what is not there: Ray, or an extra."""
    if not local_run and "@" in os.environ.get("RAY_ADDRESS", ""):
        raise InputError("RAY_ADDRESS: credentials in an address end up in logs; Ray's is RAY_AUTH_TOKEN")
    tune = sweep.tune
    needs_ray = [f"tune.scheduler: {tune.scheduler}"] if tune.scheduler != "fifo" else []
    needs_ray += [f"tune.searcher: {tune.searcher}"] if tune.searcher != "none" else []
    if local_run and needs_ray:
        raise InputError(f"--local runs trials one after the other, without Ray, but {needs_ray[0]} needs Ray")
    if tune.searcher == "optuna" and find_spec("optuna") is None:
        raise InputError(
            f"tune.searcher: {tune.searcher} needs a package that is not installed: pip install 'optuna>=5'"
        )


def provenance() -> dict[str, Any]:
    """What made a sweep: versions, the commit of a checkout, the command, the time."""
    versions: dict[str, Any] = {"raysweep": __version__, "python": sys.version.split()[0]}
    for package in ("torch", "torchvision", "ray", "scikit-learn", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # --local runs without Ray
            versions[package] = None
    source = Path(__file__).parent
    git = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False) if has_git(source) else None
    return {
        "versions": versions,
        "commit": commit.stdout.strip() if commit is not None and commit.returncode == 0 else None,
        "command": shlex.join(sys.argv),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def has_git(source: Path) -> bool:
    """Whether the package lies in a checkout of its own, and git is there to ask."""
    from shutil import which

    return which("git") is not None and (source.parent / ".git").exists()


def sweep_command(arguments: list[str]) -> int:
    """Run, or go on with, a sweep."""
    parsed = sweep_parser().parse_all(arguments)
    if parsed.local and parsed.address is not None:
        raise InputError(f"--local runs without Ray and takes no --address {parsed.address}")
    if parsed.resume is not None:
        return resume(parsed)
    sweep = requested(parsed)
    check_paths(sweep)
    check_means(sweep, parsed.local)
    if parsed.dry_run:
        return dry_run(sweep)
    from raysweep.data import selection

    store, console = Store.plan(parsed.output, parsed.name, sweep.name), make_console()
    datasets, plan = prepare(sweep, store, {}, parsed, console)
    # Another process may have taken the name meanwhile: from here on the store is the one that was made.
    store = store.create(sweep, {**provenance(), "datasets": selection.digests(datasets)})
    with store.lock(wait=TAKE_SECONDS), breaking_off(store, parsed):
        tell(console, f"{store.place}: {sweep.total} trials, {plan}")
        sweep = run_trials(sweep, store, datasets, [], parsed, console)
        return conclude_run(sweep, store, parsed, console)


def resume(parsed: argparse.Namespace) -> int:
    """Go on with the sweep that lies in a directory; a search space, or settings, add the points that they name."""
    for flag in ("name", "output"):
        if flag in parsed.given:
            raise InputError(f"--resume goes on in the directory that it names and takes no --{flag}")
    there, before = Store.open(
        parsed.resume, copies="reports"
    )  # another process may be at work in the copy of a bucket
    sweep = extended(before, there, parsed)
    check_paths(sweep)
    check_means(sweep, parsed.local)
    if parsed.dry_run:
        return dry_run(sweep, {trial.name for trial in before.trials})
    from raysweep.data import selection

    warnings.showwarning = show_warning
    console, store = make_console(), Store(parsed.resume)
    with store.lock():
        _, before = Store.open(store.place)  # another process may have gone on with it until now
        sweep = extended(before, store, parsed)
        added = sweep.total - before.total
        changed = sweep.to_dict() != before.to_dict()
        store.check_begun(sweep)
        store.set_damaged_aside(sweep)
        kept = [result for result in store.results(sweep) if result.status != "failed"]
        if len(kept) == sweep.total:
            if changed:
                store.extend(sweep, provenance())
            tell(console, f"{store.place}: all {len(kept)} trials have finished")
            return conclude(sweep, store, console)
        datasets, plan = prepare(sweep, store, recorded_datasets(store.root), parsed, console)
        check_kept(sweep, kept, datasets)
        if changed:
            store.extend(sweep, {**provenance(), "datasets": selection.digests(datasets)})
        if before.resources != sweep.resources:
            say("warning: other resources than before: results on other threads, or a GPU, differ in their last digits")
        new = f" ({added} new)" if added else ""
        tell(console, f"{store.place}: {sweep.total} trials{new}, {len(kept)} finished before, {plan}")
        with breaking_off(store, parsed):
            sweep = run_trials(sweep, store, datasets, kept, parsed, console)
            return conclude_run(sweep, store, parsed, console)


def extended(begun: Sweep, store: Store, parsed: argparse.Namespace) -> Sweep:
    """A sweep that was begun with the points that the arguments add to it."""
    flags = any(getattr(parsed, name) is not None for name in SETTINGS)
    if not (parsed.space or parsed.exp_type or parsed.set or flags):
        return begun
    asked = requested(parsed, store.root / "sweep.yaml")
    where = f"{parsed.space or parsed.exp_type or 'command line'} for {shown_place(store)}"
    return with_proposals(store.root, space.extend(begun, asked, where))


def check_kept(sweep: Sweep, kept: list[Result], datasets: Datasets) -> None:
    """Raises InputError if what is kept was evaluated otherwise than the rest would be: other data, another version."""
    from raysweep.data.selection import select_data

    trials = {trial.name: trial for trial in sweep.trials}
    for result in kept:
        settings = trials[result.trial].settings
        now = protocol(settings, select_data(settings, datasets).probe.digest)
        differs = protocol_difference(result.protocol, now)
        if differs is not None:
            key, was, value = differs
            raise InputError(
                f"{result.trial} was evaluated with {key} {was!r}, but the trials that are left would be with "
                f"{value!r}: their scores could not be compared; start a new sweep"
            )


def dry_run(sweep: Sweep, known: Collection[str] | None = None) -> int:
    """Print what would run; where a sweep is gone on with, which trials it does not know yet."""
    text = space.to_yaml(sweep.to_dict())
    if not all(line.isprintable() for line in text.splitlines()):  # such as a character that turns the direction round
        text = space.to_yaml(sweep.to_dict(), ascii_only=True)
    print(text)
    print(f"# {sweep.total} trial{'s' if sweep.total > 1 else ''}:")
    for trial in sweep.trials:
        print(trial.name if known is None or trial.name in known else f"{trial.name}  # new")
    left = sweep.tune.num_samples - len(sweep.proposed)
    if sweep.tune.searcher != "none" and left > 0:
        seeds = ", ".join(map(str, sweep.seeds))
        print(f"# and {left} points that {sweep.tune.searcher} proposes while the sweep runs, each with seed {seeds}")
    return FINISHED


def prepare(
    sweep: Sweep, store: Store, recorded: Mapping[str, str], parsed: argparse.Namespace, console: Console
) -> tuple[Datasets, str]:
    """Load and check the data and connect to Ray, leaving nothing behind; the datasets and the plan in words.

    `recorded` has the digests of the datasets that the sweep was begun with.
    """
    from raysweep.data import selection
    from raysweep.data.selection import check_data, select_data

    warnings.showwarning = show_warning
    datasets: Datasets = {}
    with waiting(console, "loading the data; what is not there yet is downloaded"):
        for trial in sweep.examples:
            check_data(trial.settings, select_data(trial.settings, datasets, load=True))
        selection.check_unchanged(datasets, recorded)
    if parsed.local:
        return datasets, "one at a time in this process"
    with waiting(console, "starting Ray"):
        from raysweep.backends.ray.authentication import present_token
        from raysweep.backends.ray.environment import prepare_environment

        address = parsed.address or os.environ.get("RAY_ADDRESS")
        prepare_environment(address)
        present_token(address)
        if address is None:
            settle_ray_directory()
        from raysweep.backends.ray import cluster
        from raysweep.backends.ray.cluster import check_bucket, check_shared

        plan = cluster.connect(parsed.address, sweep.resources, sweep.tune.max_concurrent)
        if store.bucket is None:
            check_shared(existing_ancestor(store.root))
        else:
            check_bucket(store.place)
    return datasets, plan


def run_trials(
    sweep: Sweep, store: Store, datasets: Datasets, kept: list[Result], parsed: argparse.Namespace, console: Console
) -> Sweep:
    """Run the trials that have no result in `kept`; returns the sweep with the points that were proposed meanwhile."""
    from raysweep.backends.progress import ProgressDisplay

    done = {result.trial for result in kept}
    pending = [trial for trial in sweep.trials if trial.name not in done]
    stopping = Stopping(store, sweep.tune.time_budget, resume_of(store, parsed))
    # What the report needs takes 2 s to import, in which its reader would wait; not while workers import PyTorch.
    early = threading.Timer(REPORT_IMPORT_SECONDS, import_report)
    early.daemon = True
    early.start()
    with stopping.running(), ProgressDisplay(sweep, kept, console) as view:
        if parsed.local:
            from raysweep.backends.local import run_locally

            run_locally(sweep, pending, store, datasets, view, stopping)
        else:
            from raysweep.backends.ray.tuner import run_on_ray

            sweep = run_on_ray(sweep, pending, kept, store, datasets, view, stopping)
        early.cancel()
        if stopping.interrupted:
            raise KeyboardInterrupt
    if not store.present():
        say(
            f"{shown_place(store)}: the results directory was removed, renamed or replaced while its trials ran, so "
            f"nothing more was written; if it has another name now, go on with: --resume and that name"
        )
        raise SystemExit(SOME_FAILED)
    if stopping.since is not None and sweep.tune.time_budget is not None:
        say(f"the time budget of {sweep.tune.time_budget:g} s is used up")
    return sweep


def import_report() -> None:
    """Import what the report needs ahead of time. If that fails, it fails again at the report, which says so."""
    for name in ("report", "figures"):
        with suppress(Exception):
            import_module(f"raysweep.{name}")


def tell(console: Console, text: str) -> None:
    """One line on standard output, however long; control characters in it become escape sequences."""
    console.print(printable(text), highlight=False, markup=False, emoji=False, soft_wrap=True)


def waiting(console: Console, what: str) -> AbstractContextManager[Any]:
    """Show on a terminal what is being waited for; nothing elsewhere."""
    return console.status(what) if redraws(console) else nullcontext()


def resume_of(store: Store, parsed: argparse.Namespace) -> str:
    """The command that resumes a sweep in the way in which it was called."""
    options = ["--local"] if parsed.local else []
    options += ["--address", parsed.address] if parsed.address is not None else []
    return resume_command(shown_place(store), *options)


@contextmanager
def breaking_off(store: Store, parsed: argparse.Namespace) -> Iterator[None]:
    """Say in one line why a sweep that has begun broke off, and how it is resumed.

    The traceback of an exception that nobody expected goes into the sweep's `error.txt`, for whoever looks for the
    cause. The exit status is 130 after an interruption, else 1.
    """
    try:
        yield
    except KeyboardInterrupt:
        say(f"interrupted; resume with: {resume_of(store, parsed)}")
        raise SystemExit(INTERRUPTED) from None
    except InputError:
        raise
    except Exception as fault:
        note_traceback(store.root)
        where = shown(store.root / "error.txt")
        why = describe_error(fault)
        say(f"the sweep broke off: {why} (traceback in {where}); resume with: {resume_of(store, parsed)}")
        raise SystemExit(SOME_FAILED) from None


def conclude_run(sweep: Sweep, store: Store, parsed: argparse.Namespace, console: Console) -> int:
    """`conclude` after trials have run: where the report cannot be written, the trials' results are still there."""
    try:
        return conclude(sweep, store, console)
    except OSError as fault:
        say(f"the report cannot be written: {describe_error(fault)}; resume with: {resume_of(store, parsed)}")
        return SOME_FAILED


def conclude(sweep: Sweep, store: Store, console: Console) -> int:
    """Write the report and print it; the exit status."""
    from raysweep.report.building import build_report

    made = build_report(store, sweep)
    show_report(made, store.root, console)
    store.push()
    tell(console, f"TensorBoard tensorboard --logdir {shlex.quote(shown_place(store).partition('?')[0])}")
    if output_is_lost():
        say(f"standard output was closed before the end; the report is in {shown(store.root / 'summary.md')}")
    return tell_state(made, store.root)


def show_report(made: Report, directory: Path, console: Console) -> None:
    """Print the table, what it says in words, and where the rest lies."""
    from raysweep.report.tables import summary_table

    if made.points:
        console.print(summary_table(made))
    for line in made.in_words(scores=1):
        tell(console, line)
    for figure in sorted((directory / "figures").glob("*.png")):
        tell(console, f"figure      {shown(figure)}")
    tell(console, f"summary     {shown(directory / 'summary.md')}")


def tell_state(made: Report, directory: Path) -> int:
    """Say which figures could not be drawn, and which trials failed or have not finished; returns the exit status."""
    for line in made.not_drawn:
        say(f"warning: {line}")
    status = FINISHED
    for member in made.members:
        for result in member.results:
            if result.status == "failed":
                say(f"failed: {result.trial}: {result.error}")
                status = SOME_FAILED
        unfinished = member.sweep.total - len(member.results)
        if unfinished:
            command = resume_command(shown_place(member.store))
            say(f"{unfinished} of {member.sweep.total} trials have not finished; resume with: {command}")
            status = SOME_FAILED
    remarks = {warning for member in made.members for result in member.results for warning in result.warnings}
    if remarks:
        say(f"{len(remarks)} warning(s), listed in {shown(directory / 'summary.md')}")
    return status


def report_command(arguments: list[str]) -> int:
    """Rebuild the report of one sweep, or compare several."""
    parser = Parser(
        prog="raysweep report",
        description="Rebuild the table and the figures of a sweep; of several sweeps, set them side by side.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "sweeps", nargs="+", type=place, metavar="DIR/NAME", help="a sweep's results directory; also in a bucket"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=place,
        metavar="DIR",
        help="where a comparison of several sweeps goes; must not exist (default: NAME+NAME beside the first)",
    )
    parsed = parser.parse_all(arguments)
    opened = [Store.open(path, copies="reports") for path in parsed.sweeps]
    for store, _ in opened:
        store.pull()
    if len(opened) == 1:
        if parsed.output is not None:
            raise InputError("-o is for a comparison of several sweeps; the report of one lies in its own directory")
        return conclude(opened[0][1], opened[0][0], make_console())
    roots = [store.root.resolve() for store, _ in opened]
    twice = next((path for path, root in zip(parsed.sweeps, roots, strict=True) if roots.count(root) > 1), None)
    if twice is not None:
        raise InputError(f"{twice}: is given twice; a sweep is compared with others, not with itself")
    if parsed.output is not None:
        if is_uri(parsed.output):
            raise InputError(f"-o {parsed.output}: a comparison goes into a local directory")
        check_free(Path(parsed.output))
    elif opened[0][0].bucket is not None:
        raise InputError(f"{parsed.sweeps[0]}: lies in a bucket; say with -o DIR where the comparison goes")
    from raysweep.report.building import build_comparison, read_several

    made = read_several(opened)
    directories: Iterable[Path] = [Path(parsed.output or "")]
    if parsed.output is None:
        check_writable(roots[0].parent)
        directories = (roots[0].parent / name for name in candidates(None, made.name))
    made, directory = build_comparison(made, directories)
    show_report(made, directory, make_console())
    return tell_state(made, directory)


def check_free(directory: Path) -> None:
    """Raises InputError unless `directory` can be made."""
    if os.path.lexists(directory):
        raise InputError(f"-o {directory}: exists; choose another directory")
    check_writable(directory)


def embed_command(arguments: list[str]) -> int:
    """Write the features that a trained encoder gives for a folder of images."""
    parser = Parser(
        prog="raysweep embed",
        description="Write the features that a trained encoder gives for images: features (N, D), paths (N), layer.",
        allow_abbrev=False,
    )
    add_checkpoint(parser)
    parser.add_argument(
        "images", metavar="IMAGES", type=local_path, help="a folder of images, at any depth, or one image"
    )
    parser.add_argument("-o", "--output", metavar="FEATURES.npz", type=local_path, required=True, help="a new file")
    parser.add_argument("--layer", choices=("trunk", "embedding"), default="trunk", help="which features (trunk)")
    parser.add_argument(
        "--batch_size", type=whole_number, metavar="N", help="images at a time (500 of 32×32, fewer if larger)"
    )
    parser.add_argument("--skip_bad_images", action="store_true", help="leave unreadable images out, do not stop")
    parsed = parser.parse_all(arguments)
    from rich.progress import Progress

    from raysweep import portable

    warnings.showwarning = show_warning
    console = make_console()
    with Progress(console=console, transient=True, disable=not redraws(console)) as bar:
        task = bar.add_task("embedding", total=None)
        count, width = portable.embed(
            checkpoint_of(parsed),
            parsed.images,
            parsed.output,
            layer=parsed.layer,
            batch_size=parsed.batch_size,
            skip_bad_images=parsed.skip_bad_images,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    tell(console, f"{shown(parsed.output)}: {parsed.layer} features of {count} images, {width} each")
    return FINISHED


def export_command(arguments: list[str]) -> int:
    """Write the weights of a trained encoder for other programs."""
    parser = Parser(
        prog="raysweep export",
        description="Write the weights of a trained encoder for other programs.",
        allow_abbrev=False,
    )
    add_checkpoint(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=local_path,
        required=True,
        help="a new file: .safetensors, with the encoder's description in its header, or .pt, the state_dict alone",
    )
    parsed = parser.parse_all(arguments)
    from raysweep import portable

    made = portable.export(checkpoint_of(parsed), parsed.output)
    size = made["image_size"]
    what = f"{made['architecture']} for images of {made['channels']}×{size}×{size}"
    widths = f"trunk {made['trunk_dim']}, embedding {made['embedding_dim']}"
    tell(make_console(), f"{shown(parsed.output)}: {what}; {widths}")
    return FINISHED


def whole_number(text: str) -> int:
    """The whole number that a flag has, read as those of the settings are."""
    try:
        number = read_number(text)
    except ValueError as fault:
        raise argparse.ArgumentTypeError(f"{fault}, not {text!r}") from None
    if not float(number).is_integer():
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}")
    return int(number)


def add_checkpoint(parser: Parser) -> None:
    """The argument that names a trained encoder."""
    parser.add_argument(
        "checkpoint",
        type=place,
        metavar="CHECKPOINT",
        help="a trial's directory, its encoder.pt, or a training checkpoint (TRIAL/checkpoints/*.pt); also in a bucket",
    )


def checkpoint_of(parsed: argparse.Namespace) -> Path:
    """The trained encoder that was named, brought over if it lies in a bucket."""
    return fetch_encoder(parsed.checkpoint) if is_uri(parsed.checkpoint) else Path(parsed.checkpoint)


PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg")


def preview_command(arguments: list[str]) -> int:
    """Draw a sweep's views by strength."""
    parser = Parser(
        prog="raysweep preview",
        description="Draw the views that a sweep would train on: a row for each augmentation strength.",
        allow_abbrev=False,
    )
    parser.add_argument("space", type=place, metavar="SPACE.yaml", help="search-space file")
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        type=local_path,
        metavar="FILE",
        help=f"the picture, a new file ({' '.join(PICTURES)})",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="override any setting, as for sweep"
    )
    parsed = parser.parse_all(arguments)
    output = parsed.output
    check_picture(output)
    sweep = space.build(space.read(Path(parsed.space)), space.parse_assignments(parsed.set), parsed.space)
    check_paths(sweep, probed=False)
    from raysweep.data import loading
    from raysweep.data.dataset import Dataset
    from raysweep.report import preview

    warnings.showwarning = show_warning

    def load(settings: Settings) -> Dataset:
        return loading.load(
            settings.dataset,
            data_dir=Path(settings.data_dir),
            image_size=settings.image_size,
            skip_bad_images=settings.skip_bad_images,
            pretraining=False,
        )

    console = make_console()
    with waiting(console, "loading the data; what is not there yet is downloaded"):
        figure = preview.draw(sweep, load)
    preview.save(figure, output)
    for panel in preview.panels_of(sweep):
        tell(console, f"{shown(output)}: {panel}")
    return FINISHED


def check_picture(output: Path) -> None:
    """Raises InputError where no picture can be written, without writing."""
    if output.suffix.lower() not in PICTURES:
        raise InputError(f"{output}: the name of a picture ends with one of {' '.join(PICTURES)}")
    if os.path.lexists(output):
        raise InputError(f"{output}: exists; give another name, or remove it")
    if not output.parent.is_dir():
        raise InputError(f"{output}: there is no directory {str(output.parent)!r}")
    check_writable(output.parent)


def shown(path: Path) -> str:
    """A path as short as it can be typed."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def shown_place(store: Store) -> str:
    """Where a sweep lies, as it is typed."""
    return shown(store.root) if store.bucket is None else store.place


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show a warning as a user needs it: what it says, not where in the code it was raised."""
    say(f"warning: {' '.join(str(message).split())}")


def say(text: str) -> None:
    """One line on standard error, without secrets; control characters in it become escape sequences."""
    print(printable(masked(text)), file=sys.stderr)


COMMANDS = {
    "sweep": sweep_command,
    "report": report_command,
    "preview": preview_command,
    "embed": embed_command,
    "export": export_command,
}

USAGE = """\
usage: raysweep COMMAND …

  raysweep sweep     run a sweep from a search-space file, or go on with one (also: python run_sweep.py …)
  raysweep report    rebuild a sweep's tables and figures, or set several sweeps side by side
  raysweep preview   a picture of the augmented views at each strength
  raysweep embed     features of images by a trained encoder
  raysweep export    the weights of a trained encoder, for other programs

raysweep COMMAND --help says more; raysweep --version gives the version."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return FINISHED
    if arguments[0] == "--version":
        print(__version__)
        return FINISHED
    try:
        if arguments[0] not in COMMANDS:
            raise InputError(f"unknown command {arguments[0]!r}{suggest(arguments[0], COMMANDS)}")
        ensure_home()
        return COMMANDS[arguments[0]](arguments[1:])
    except InputError as fault:
        say(f"error: {fault}")
        return BAD_INPUT
    except OSError as fault:
        if fault.filename is None:
            raise
        say(f"error: {fault.filename}: {fault.strerror}")  # a place that the user named, or a disk that is full
        return BAD_INPUT
