"""The arguments of the command line: their types, help and one-line errors with suggestions."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from raysweep.backends.ray.environment import check_address
from raysweep.config import SETTINGS, Settings, about, default_of, read_number
from raysweep.config.values import NUMBER
from raysweep.errors import InputError
from raysweep.preparation import PICTURES, shipped_spaces
from raysweep.results.credentials import is_uri
from raysweep.space.hints import grid_instead, leading_values, suggest_flag
from raysweep.system.places import expanded


class StoreOnce(argparse.Action):
    """Store the value of a flag. A flag that is given twice is an error; argparse alone would drop the first value."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        """Store one value; argparse calls this for each value on the command line."""
        given = vars(namespace).setdefault("given", {})
        if option_string is not None and self.dest in given:
            first, flag = str(given[self.dest]), "/".join(self.option_strings)
            parser.error(f"{flag} is given twice, as {first!r} and {str(values)!r}; give it once")
        given[self.dest] = values
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """An argparse parser with one-line errors and suggestions, which refuses a flag that is given twice."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self.register("action", None, StoreOnce)  # the default action

    def error(self, message: str) -> NoReturn:
        """Raise an InputError, which `main` prints, instead of printing the usage."""
        raise InputError(message)

    def parse_all(self, arguments: list[str], command: argparse.ArgumentParser) -> argparse.Namespace:
        """Parse the arguments. The error for an unknown flag suggests a similar one."""
        check_words(arguments)
        arguments = with_joined_numbers(arguments)
        known, unknown = self.parse_known_args(arguments, argparse.Namespace(given={}))
        if unknown:
            flags = [flag for action in command._actions for flag in action.option_strings]
            flag, _, value = unknown[0].partition("=")
            if not flag.startswith("-"):
                self.error(f"{unknown[0]!r} is one argument too many; --help shows what the command takes")
            after = arguments[arguments.index(unknown[0]) + 1 :][:1]
            value = value or next((word for word in after if not word.startswith("-")), "")
            hint = suggest_flag(flag, value, flags)
            if is_uri(getattr(known, "resume", None) or ""):  # its plugins are not known yet
                written = f"--set {flag.lstrip('-')}={value or 'VALUE'}"
                hint += f" (a setting of a plugin of this sweep is given by {written})"
            self.error(f"unknown argument {unknown[0]}{hint}")
        return known


def check_words(arguments: list[str]) -> None:
    """Raise InputError if an argument is `--` or empty. An unset shell variable would count as a missing argument."""
    for number, word in enumerate(arguments):
        before = arguments[number - 1] if number else ""
        flag, equals, value = word.partition("=")
        if word.startswith("--") and equals and not value.strip():
            raise InputError(f"{flag}: the value is empty")
        if not word.strip():
            takes_value = before.startswith("-") and "=" not in before
            raise InputError(f"{before}: the value is empty" if takes_value else "an argument is empty")
        if word == "--":
            raise InputError("leave out the argument --")


def with_joined_numbers(arguments: list[str]) -> list[str]:
    """Join each flag and its negative number by `=`. Else argparse takes a number such as `-1e-3` for a flag."""
    joined: list[str] = []
    for word in arguments:
        if word.startswith("-") and NUMBER.fullmatch(word) and joined and re.fullmatch("--[^=]+", joined[-1]):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def check_single_values(arguments: list[str]) -> None:
    """Raise InputError if several values follow the flag of a setting, as in `--seed 0 1 2`.

    argparse would take the second value as the search-space file.
    """
    for number, flag in enumerate(arguments):
        name, words = flag.removeprefix("--"), arguments[number + 1 :]
        if flag == "--set" and words:
            name, _, words[0] = words[0].partition("=")
        if not flag.startswith("--") or name not in SETTINGS or not about(name).search:
            continue
        values = leading_values(name, words)
        if len(values) > 1 and not os.path.exists(values[1]):
            where = f"--set {name}" if flag == "--set" else flag
            raise InputError(f"{where}: {grid_instead(name, values)}")


def place(text: str) -> str:
    """Return a path or a place in a bucket from the command line, with `~` replaced. Passwords are refused."""
    try:
        is_uri(text)
        return expanded(text)
    except InputError as fault:  # for another ValueError argparse would print "invalid place value"
        raise argparse.ArgumentTypeError(str(fault)) from None


def local_path(text: str) -> Path:
    """Return a path from the command line that is on this machine."""
    return Path(place(text))


def cluster_address(text: str) -> str:
    """Return the address of a Ray cluster from the command line."""
    try:
        check_address(text)
    except InputError as fault:
        raise argparse.ArgumentTypeError(str(fault)) from None
    return text


def add_plugins(parser: Parser) -> None:
    """The argument that names files with parts of the user's own."""
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE.py",
        help="a Python file or installed module that declares parts; raysweep runs it; may be given several times",
    )


def add_way_of_running(parser: Parser) -> None:
    """Add the arguments that say how trials run."""
    add_plugins(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="only print what differs from the defaults, the plan and the trials"
    )
    parser.add_argument("--verbose", action="store_true", help="with --dry-run: print every setting")
    parser.add_argument("--local", action="store_true", help="run in one process, without Ray")
    parser.add_argument(
        "--address",
        type=cluster_address,
        metavar="HOST:PORT",
        help="run on an existing Ray cluster (default: RAY_ADDRESS, else a new Ray on this machine)",
    )


def add_sweep_arguments(parser: Parser) -> None:
    """Add the arguments of `sweep`. Every setting of the experiment is an argument."""
    parser.add_argument("space", nargs="?", type=place, metavar="SPACE.yaml", help="search-space file")
    parser.add_argument(
        "--exp_type",
        choices=sorted(shipped_spaces()),
        metavar="NAME",
        help="run a search space that comes with raysweep (the list above)",
    )
    parser.add_argument("--name", help="name of the new results directory (default: the name in the search-space file)")
    parser.add_argument(
        "--output",
        type=place,
        default="runs",
        metavar="DIR",
        help="directory for results directories, or s3://BUCKET/PREFIX (default: runs)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="override a setting, baseline, tune.NAME, seeds.NAME or resources.NAME; a list becomes a grid: "
        "seed=[0,1,2]",
    )
    parser.add_argument(
        "--resume",
        type=place,
        metavar="DIR/NAME",
        help="resume a sweep: run unfinished trials, and the trials that a changed search space adds",
    )
    add_way_of_running(parser)
    parser.add_argument(
        "--no-share",
        action="store_true",
        help="let every trial pretrain (default: trials with the same pretraining share it, also if one of them "
        "trains longer)",
    )
    parser.add_argument(
        "--estimate",
        action="store_true",
        help="with --dry-run: load the data, time a few steps on this machine, and print how long the sweep would take",
    )
    groups: dict[str, Any] = {}
    for name in SETTINGS:
        description = about(name)
        if description.group not in groups:
            groups[description.group] = parser.add_argument_group(f"settings: {description.group}")
        default = default_of(name)
        groups[description.group].add_argument(
            f"--{name}",
            metavar=shown_values(name),
            help=f"{description.text} (default: {'none' if default is None else default})".replace("%", "%%"),
        )


def shown_values(name: str) -> str:
    """Return what --help shows for a setting's value: its choices, or X."""
    kind: Any = Settings.model_fields[name].annotation
    return f"{{{','.join(get_args(kind))}}}" if get_origin(kind) is Literal else "X"


def whole_number(text: str) -> int:
    """Return the value of a flag as a whole number. It is read like the value of a setting."""
    try:
        number = read_number(text)
    except ValueError as fault:
        raise argparse.ArgumentTypeError(f"{fault}, not {text!r}") from None
    if not float(number).is_integer():
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}")
    return int(number)


def add_checkpoint(parser: Parser) -> None:
    """Add the arguments that name a trained encoder, and the file that builds it if it is the user's own."""
    add_plugins(parser)
    parser.add_argument(
        "checkpoint",
        type=place,
        metavar="CHECKPOINT",
        help="a trial's directory, its encoder.safetensors, or a training checkpoint (TRIAL/checkpoints/*.pt); it may "
        "be in a bucket",
    )


def add_evaluate_arguments(parser: Parser) -> None:
    """Add the arguments of `evaluate`."""
    parser.add_argument(
        "place",
        type=place,
        metavar="DIR/NAME",
        help="the results directory of a sweep, or one encoder: its file or the directory of its trial; it may be in a "
        "bucket",
    )
    parser.add_argument(
        "space", nargs="?", type=place, metavar="SPACE.yaml", help="search-space file of evaluation settings"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="set an evaluation setting, baseline, tune.NAME or resources.NAME; a list becomes a grid: "
        "labels_per_class=[1,10]",
    )
    parser.add_argument(
        "--name", help="name of the new results directory (default: the name in the search-space file, or evaluation)"
    )
    parser.add_argument(
        "--output",
        type=place,
        metavar="DIR",
        help="for one encoder: directory for results directories, or s3://BUCKET/PREFIX (default: runs)",
    )
    add_way_of_running(parser)


def add_report_arguments(parser: Parser) -> None:
    """Add the arguments of `report`."""
    parser.add_argument(
        "sweeps",
        nargs="+",
        type=place,
        metavar="DIR/NAME",
        help="the results directory of a sweep; it may be in a bucket",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=place,
        metavar="DIR",
        help="new directory for a comparison of several sweeps (default: NAME+NAME beside the first sweep)",
    )
    parser.add_argument("--open", action="store_true", help="open the page report.html in the browser")


def add_preview_arguments(parser: Parser) -> None:
    """Add the arguments of `preview`."""
    parser.add_argument("space", type=place, metavar="SPACE.yaml", help="search-space file")
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        type=local_path,
        metavar="FILE",
        help=f"new file for the picture ({' '.join(PICTURES)})",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="override a setting, as for sweep"
    )
    add_plugins(parser)


def add_fetch_arguments(parser: Parser) -> None:
    """Add the arguments of `fetch`."""
    parser.add_argument(
        "datasets", nargs="+", metavar="DATASET", help="the name of a dataset, such as cifar10, or folder:PATH"
    )
    parser.add_argument(
        "--data_dir",
        type=local_path,
        default=Path(default_of("data_dir")),
        metavar="DIR",
        help="folder of downloaded datasets, as for sweep (default: data)",
    )
    add_plugins(parser)


def add_embed_arguments(parser: Parser) -> None:
    """Add the arguments of `embed`."""
    add_checkpoint(parser)
    parser.add_argument(
        "images", metavar="IMAGES", type=local_path, help="one image, or a folder with images; subfolders are searched"
    )
    parser.add_argument("-o", "--output", metavar="FEATURES.npz", type=local_path, required=True, help="new file")
    parser.add_argument(
        "--layer",
        choices=("trunk", "embedding"),
        default="trunk",
        help="features to write: the encoder's output or the head's (default: trunk)",
    )
    parser.add_argument(
        "--batch_size",
        type=whole_number,
        metavar="N",
        help="images in memory at a time (default: 500 of 32×32, fewer if larger)",
    )
    parser.add_argument("--skip_bad_images", action="store_true", help="skip unreadable images instead of stopping")


def add_export_arguments(parser: Parser) -> None:
    """Add the arguments of `export`."""
    add_checkpoint(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=local_path,
        required=True,
        help="new file: .safetensors has the encoder's description in its header, .pt is the plain state_dict",
    )
