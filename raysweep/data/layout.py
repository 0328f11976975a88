"""The layout of image folders: which folder is which split, and which files are images. Reads names, never pixels."""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from raysweep import parts
from raysweep.config import FOLDER
from raysweep.errors import InputError
from raysweep.system.places import expanded

NOT_READ = {"EPS", "PDF", "MPEG", "BUFR", "GRIB", "HDF5", "WMF"}
"""Formats that Pillow knows but that are not read.

Pillow runs Ghostscript for EPS, and it can only write PDF. It recognises the other formats but cannot decode them, or
decodes them only on Windows.
"""

SIDE_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
"""Names, in lower case, of files that file managers create. They are ignored silently, like hidden files."""

WORDS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validate", "validation", "dev", "development", "eval", "evaluation"),
}
"""For each split, the names that people commonly give to its folder."""
EXACT = ("train", "test", "val", "validation")
"""The folder names that are read as splits."""


@cache
def formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats that are read, in the order in which Pillow tries them."""
    Image.init()  # imports all of Pillow's plugins, which takes 0.1 s
    registered = {*Image.registered_extensions().values()} - NOT_READ
    return tuple(name for name in Image.ID if name in registered)


@cache
def suffixes() -> tuple[str, ...]:
    """Return the file name endings of images, in lower case."""
    read = {*formats(), "MPO"}  # Pillow opens MPO (several JPEGs in one file) as JPEG
    return tuple(sorted(suffix for suffix, name in Image.registered_extensions().items() if name in read))


@dataclass(frozen=True)
class Layout:
    """The folders of a folder dataset's splits; None for a split without a folder."""

    train: Path | None
    test: Path | None = None
    val: Path | None = None


def layout(root: Path, where: str) -> Layout:
    """Find the splits in the existing folder `root`. Messages start with `where`.

    Raises:
        InputError: A folder with images looks like a split but does not have the expected name; `val/` and
            `validation/` both exist; a split is not a folder, or is the same folder as another split; there is `test/`
            or `val/` without `train/`; or there is `val/` without `test/` although `train/` has class folders.
    """
    train, test, short, long = (subfolder(root, name, where) for name in EXACT)
    if short is not None and long is not None:
        raise InputError(f"{where}: there are both 'val' and 'validation': rename or remove one of them")
    val = short or long
    present = {"train": train, "test": test, "val": val}

    for path in sorted(root.iterdir()):
        split = meant_split(path.name, typing_errors=train is not None)
        if split is None and train is not None:
            split = split_beside(train, path, present)
        if split is None or path.name in EXACT or path.name.startswith(".") or not path.is_dir():
            continue
        expected = present[split]
        if expected is not None and (path.samefile(expected) or re.search(r"\d", path.name)):
            continue  # the same folder on a file system that ignores case, or an additional, numbered set
        if (train is not None or split == "train") and next(images_below(path), None) is not None:
            raise InputError(
                f"{where}: the folder {path.name!r} would not be read, because its name is not {split!r}: "
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
    """Return the folder `name` in `root`, None if nothing has that name; raises InputError if it is not a folder."""
    path = root / name
    if path.is_dir():
        return path
    if os.path.lexists(path):
        what = "a link that leads nowhere" if not path.exists() else "not a folder"
        raise InputError(f"{where}: {str(path)!r} is {what}: make it a folder, or rename it")
    return None


def meant_split(name: str, typing_errors: bool) -> str | None:
    """Return the split that a folder of this name is probably meant to be: `train`, `test`, `val` or None.

    Case, digits, punctuation and an ending such as "set" are ignored. With `typing_errors`, the name may also have a
    letter too many or too few, or letters in the wrong order.
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


def split_beside(train: Path, folder: Path, present: Mapping[str, Path | None]) -> str | None:
    """Return the missing split that a folder is probably meant to be, such as `test` for `my_test/` beside `train/`.

    A word of its name is the name of the split, and it has a class folder of the training split.
    """
    names = {**WORDS, "test": (*WORDS["test"], "holdout")}
    for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", folder.name):
        for split, words in names.items():
            if word.lower() in words and present[split] is None and folder.is_dir():
                return split if class_folders(folder).keys() & class_folders(train).keys() else None
    return None


def class_folders(split: Path) -> dict[str, Path]:
    """Return a split's class folders by class name, sorted by name. Hidden folders are left out.

    Names are in Unicode's composed form (NFC), because macOS may write "é" as two characters where other systems write
    one.

    Raises:
        InputError: Two folders have the same name in different Unicode forms, or a link is broken.
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
    """Yield the image files in a folder and its subfolders in a fixed order; hidden ones are left out.

    Links are followed, except to a folder that contains this one or was already visited. Such a link would lead in
    circles or add another class's images.

    Args:
        folder: An existing folder.
        ignored: A list to which the other files are appended, except hidden files and `SIDE_FILES`.

    Raises:
        InputError: A folder cannot be read.
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
    """Yield the files in `names` with image endings, sorted. For `ignored` see `images_below`."""
    for name in sorted(names):
        if name.startswith(".") or name.lower() in SIDE_FILES:
            continue
        if name.lower().endswith(suffixes()):
            yield folder / name
        elif ignored is not None:
            ignored.append(folder / name)


def kinds(paths: Sequence[Path]) -> str:
    """Describe how many files have which ending, the most frequent first, with an example."""
    counts = Counter(path.suffix.lower() or "no ending" for path in paths)
    words = [f"{count} {ending}" for ending, count in counts.most_common(3)]
    others = len(paths) - sum(count for _, count in counts.most_common(3))
    words += [f"{others} more"] if others else []
    return f"{', '.join(words)}; for example {str(paths[0])!r}"


def folder_path(spec: str) -> Path:
    """Return the path in `folder:PATH`."""
    return Path(expanded(spec.removeprefix(FOLDER)))


def has_val_folder(spec: str) -> bool:
    """Return whether `spec` is a `folder:PATH` with its own validation split. Call `check_exists` first."""
    return spec.startswith(FOLDER) and layout(folder_path(spec), f"dataset {spec!r}").val is not None


def likely_folder(spec: str) -> Path | None:
    """Return the folder with classes that the user probably meant instead of this one; None without one.

    It is the folder around `train/`, or the first folder inside that has `train/<class>/`.
    """
    root = folder_path(spec).absolute()
    with os.scandir(root) as entries:  # `scandir` needs no further system call for each of many images
        folders = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    for path in (root / name for name in folders):
        if os.path.isdir(path / "train") and class_folders(path / "train"):
            return path
    return root.parent if root.name == "train" and class_folders(root) else None


def no_classes(spec: str) -> str:
    """Return the message that a dataset has no labels to evaluate with, and what to do."""
    switches = [part.traits["switch"] for part in parts.probe.values() if not part.traits["needs_labels"]]
    without = f"set {switches[0]}=true"
    measures = "for measures that need no labels"
    if not spec.startswith(FOLDER):
        return (
            f"{spec} has no classes to evaluate on; name a labelled probe_dataset, or {without} {measures} and declare "
            "the dataset with labelled=False"
        )
    meant = likely_folder(spec)  # PATH may be one folder too deep or too shallow
    hint = f" (or did you mean {FOLDER}{meant}?)" if meant is not None else ""
    without += "" if meant is None else " and probe_labels=false"
    return (
        f"dataset {spec!r} has no classes to evaluate on: put the class folders under train/, as "
        f"train/<class>/*{hint}, or name a labelled probe_dataset, or {without} {measures}"
    )
