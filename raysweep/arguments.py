"""The arguments of the command line: their types, their help, and one-line errors that suggest what was meant."""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from raysweep.config import SETTINGS, Settings, about, default_of, read_number
from raysweep.errors import InputError
from raysweep.preparation import PICTURES, shipped_spaces
from raysweep.results.credentials import is_uri
from raysweep.system.places import expanded


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

    def parse_all(self, arguments: list[str], command: argparse.ArgumentParser) -> argparse.Namespace:
        """Parse; an unknown flag of the command gets a suggestion."""
        known, unknown = self.parse_known_args(arguments, argparse.Namespace(given={}))
        if unknown:
            flags = [flag for action in command._actions for flag in action.option_strings]
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


def add_plugins(parser: Parser) -> None:
    """The argument that names files with parts of the user's own."""
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE.py",
        help="a file, or an installed module, that declares parts; may be given several times; it is run",
    )


def add_sweep_arguments(parser: Parser) -> None:
    """The arguments of `sweep`; every setting of the experiment is an argument."""
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
        help="resume a sweep: run the trials that have not finished, and those that a changed search space adds",
    )
    add_plugins(parser)
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
        description = about(name)
        if description.group not in groups:
            groups[description.group] = parser.add_argument_group(f"settings: {description.group}")
        default = default_of(name)
        groups[description.group].add_argument(
            f"--{name}",
            metavar=shown_values(name),
            help=f"{description.text} ({'none' if default is None else default})".replace("%", "%%"),
        )


def shown_values(name: str) -> str:
    """What --help shows for a setting's value: the choices, where it is one of a few."""
    kind: Any = Settings.model_fields[name].annotation
    return f"{{{','.join(get_args(kind))}}}" if get_origin(kind) is Literal else "X"


def whole_number(text: str) -> int:
    """The value of a flag as a whole number, read like the values of settings."""
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
        help="a trial's directory, its encoder.safetensors, or a training checkpoint (TRIAL/checkpoints/*.pt); "
        "also in a bucket",
    )


def add_report_arguments(parser: Parser) -> None:
    """The arguments of `report`."""
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


def add_preview_arguments(parser: Parser) -> None:
    """The arguments of `preview`."""
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
    add_plugins(parser)


def add_embed_arguments(parser: Parser) -> None:
    """The arguments of `embed`."""
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


def add_export_arguments(parser: Parser) -> None:
    """The arguments of `export`."""
    add_checkpoint(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=local_path,
        required=True,
        help="a new file: .safetensors, with the encoder's description in its header, or .pt, the state_dict alone",
    )
