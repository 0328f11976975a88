"""Folders of images: which folder is which split, and which files are images. Reads names only, never pixels."""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from raysweep.config import FOLDER
from raysweep.errors import InputError

FOLDER_SIZE = 32

NOT_READ = {"EPS", "PDF", "MPEG", "BUFR", "GRIB", "HDF5", "WMF"}
"""Formats that Pillow knows and that are not read. EPS: Pillow runs Ghostscript. PDF: Pillow only writes it. The
others: Pillow recognises them and cannot decode them, or only on Windows."""

SIDE_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
"""Files that file managers write by themselves, in lower case. Like hidden files, they are ignored without a word."""

WORDS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validate", "validation", "dev", "development", "eval", "evaluation"),
}
"""By split: names that people give to its folder."""
EXACT = ("train", "test", "val", "validation")
"""The names that are read."""


@cache
def formats() -> tuple[str, ...]:
    """The formats that are read, as Pillow calls them, in the order in which Pillow tries them."""
    Image.init()  # imports all of Pillow's plugins: 0.1 s
    registered = {*Image.registered_extensions().values()} - NOT_READ
    return tuple(name for name in Image.ID if name in registered)


@cache
def suffixes() -> tuple[str, ...]:
    """The endings of image files, in lower case."""
    read = {*formats(), "MPO"}  # Pillow opens MPO, several JPEGs in a file, as JPEG
    return tuple(sorted(suffix for suffix, name in Image.registered_extensions().items() if name in read))


@dataclass(frozen=True)
class Layout:
    """Where the splits of a folder dataset lie; None: there is no such folder."""

    train: Path | None
    test: Path | None = None
    val: Path | None = None


def layout(root: Path, where: str) -> Layout:
    """Find the splits in `root`, an existing folder. `where` opens the messages.

    Raises:
        InputError: a folder with images looks like a split and has another name than that which is read; `val/` and
            `validation/` are both there; a split is no folder, or the same folder as another; there is `test/` or
            `val/` without `train/`; there is `val/` without `test/` beside class folders in `train/`.
    """
    train, test, short, long = (subfolder(root, name, where) for name in EXACT)
    if short is not None and long is not None:
        raise InputError(f"{where}: there are both 'val' and 'validation': rename or remove one of them")
    val = short or long
    present = {"train": train, "test": test, "val": val}

    for path in sorted(root.iterdir()):
        split = meant_split(path.name, typing_errors=train is not None)
        if split is None or path.name in EXACT or path.name.startswith(".") or not path.is_dir():
            continue
        expected = present[split]
        if expected is not None and (path.samefile(expected) or re.search(r"\d", path.name)):
            continue  # a file system that ignores case, or a further, numbered set
        if (train is not None or split == "train") and next(images_below(path), None) is not None:
            raise InputError(
                f"{where}: the folder {path.name!r} would not be read, as the name that is expected is {split!r}: "
                f"rename it to {split!r}, or give it an unrelated name to leave it out"
            )

    if train is None:
        for other in (test, val):
            if other is not None and next(images_below(other), None) is not None:
                raise InputError(
                    f"{where}: there is {other.name}/ but no train/: put the training images under train/, or name "
                    f"folder:{other} to read only the images there, without labels"
                )
        return Layout(None)
    if val is not None and test is None and class_folders(train):
        raise InputError(
            f"{where}: there is {val.name}/ but no test/, and a test accuracy needs test/: rename {val.name}/ to test/ "
            "to test on its images, or add test/"
        )
    folders = [path for path in (train, test, val) if path is not None]
    for i, path in enumerate(folders):
        for other in folders[:i]:
            if path.samefile(other):
                raise InputError(f"{where}: {other.name}/ and {path.name}/ are the same folder")
    return Layout(train, test, val)


def subfolder(root: Path, name: str, where: str) -> Path | None:
    """The folder `name` in `root`, None if there is none; raises InputError if it is something else."""
    path = root / name
    if path.is_dir():
        return path
    if os.path.lexists(path):
        what = "a link that leads nowhere" if not path.exists() else "not a folder"
        raise InputError(f"{where}: {str(path)!r} is {what}: make it a folder, or rename it")
    return None


def meant_split(name: str, typing_errors: bool) -> str | None:
    """Which split a folder of this name could be meant as: `train`, `test`, `val`, or None.

    Case, digits, signs and an ending such as "set" do not count. With `typing_errors`, neither does a letter too many
    or too few, or letters in the wrong order.
    """
    letters = re.sub(r"[^a-z]", "", name.casefold())
    letters = re.sub(r"(?<=[a-z]{3})(set|data|split|images|imgs)$", "", letters)
    for split, words in WORDS.items():
        if letters in words:
            return split
    for split, words in WORDS.items():
        for word in words:
            if typing_errors and letters[:1] == word[0]:
                ratio = difflib.SequenceMatcher(None, letters, word).ratio()
                if sorted(letters) == sorted(word) or ratio >= 0.85:
                    return split
    return None


def class_folders(split: Path) -> dict[str, Path]:
    """The class folders in a split: by the class's name, in the order of the names. Hidden folders are left out.

    Names are in Unicode's composed form (NFC): macOS may write "é" as two characters where other systems write one.

    Raises:
        InputError: two folders have the same name in different Unicode forms, or a link leads nowhere.
    """
    folders: dict[str, Path] = {}
    for path in sorted(split.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_symlink() and not path.exists():
            raise InputError(f"{str(path)!r} is a link that leads nowhere: repair or remove it")
        if not path.is_dir():
            continue
        name = unicodedata.normalize("NFC", path.name)
        if name in folders:
            raise InputError(
                f"two class folders in {str(split)!r} have the same name in different Unicode forms, "
                f"{folders[name].name!a} and {path.name!a}: move the images of one into the other"
            )
        folders[name] = path
    return dict(sorted(folders.items()))


def images_below(folder: Path, ignored: list[Path] | None = None) -> Iterator[Path]:
    """The image files in a folder and all folders in it, hidden ones left out, always in the same order.

    Links are followed, except to a folder that contains this one or was visited: such a link would lead in circles, or
    bring in another class's images.

    Args:
        folder: an existing folder.
        ignored: the other files are appended to it, except hidden files and `SIDE_FILES`.

    Raises:
        InputError: a folder cannot be read.
    """
    start = folder.resolve()
    visited = {start}

    def is_new(path: Path) -> bool:
        target = path.resolve()
        if target in visited or start.is_relative_to(target):
            return False
        visited.add(target)
        return True

    def unreadable(fault: OSError) -> None:
        raise InputError(f"cannot read the folder {str(fault.filename)!r}: {fault.strerror}") from None

    for where, folders, files in os.walk(folder, onerror=unreadable, followlinks=True):
        folders[:] = [name for name in sorted(folders) if not name.startswith(".") and is_new(Path(where, name))]
        yield from images_among(Path(where), files, ignored)


def images_among(folder: Path, names: Iterable[str], ignored: list[Path] | None = None) -> Iterator[Path]:
    """Those of the files `names` in a folder that are images by their ending, sorted; `ignored`: see `images_below`."""
    for name in sorted(names):
        if name.startswith(".") or name.lower() in SIDE_FILES:
            continue
        if name.lower().endswith(suffixes()):
            yield folder / name
        elif ignored is not None:
            ignored.append(folder / name)


def kinds(paths: Sequence[Path]) -> str:
    """How many files have which ending, the most frequent first, and an example: in words."""
    counts = Counter(path.suffix.lower() or "no ending" for path in paths)
    words = [f"{count} {ending}" for ending, count in counts.most_common(3)]
    others = len(paths) - sum(count for _, count in counts.most_common(3))
    words += [f"{others} more"] if others else []
    return f"{', '.join(words)}; for example {str(paths[0])!r}"


def folder_path(spec: str) -> Path:
    """The path in `folder:PATH`."""
    return Path(spec.removeprefix(FOLDER)).expanduser()


def has_val_folder(spec: str) -> bool:
    """Whether `spec` is a `folder:PATH` with a validation split of its own. `check_exists` must have passed."""
    return spec.startswith(FOLDER) and layout(folder_path(spec), f"dataset {spec!r}").val is not None


def no_classes(spec: str) -> str:
    """Say that a dataset has no labels to evaluate with, and what to do."""
    if not spec.startswith(FOLDER):
        return f"{spec} has no classes to evaluate on; name a labelled probe_dataset"
    root = folder_path(spec).absolute()
    meant = root.parent if root.name == "train" else None  # PATH may lead one folder too deep, or not deep enough
    meant = next((path for path in sorted(root.iterdir()) if (path / "train").is_dir()), meant)
    hint = f" (or did you mean {FOLDER}{meant}?)" if meant is not None else ""
    return (
        f"dataset {spec!r} has no classes to evaluate on: put the class folders under train/, as "
        f"train/<class>/*{hint}, or name a labelled probe_dataset"
    )
