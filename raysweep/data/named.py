"""Readers of the named datasets from scikit-learn and torchvision."""

from __future__ import annotations

import errno
import io
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from raysweep.data.dataset import Dataset, Images, Labels, T
from raysweep.data.pixels import FILE_FAULTS, convert, one_line, warn_once
from raysweep.errors import InputError
from raysweep.system.files import open_lock, same_file, try_lock
from raysweep.system.temporary import temporary_directory

PATCH_SIDE = 64  # pixels of the photograph behind a digit of digits_m; shows edges and texture even at 16×16
NETWORK_TIMEOUT = 20.0  # seconds without an answer
DOWNLOAD = ".download-{}-"
"""The beginning of the name of the folder into which a dataset is downloaded. The name of the machine follows."""
LOCK = ".downloading-{}"
"""The name of the file that the process that downloads a dataset has locked."""
DOWNLOAD_SECONDS = 3600.0
"""The longest wait for the download of another process."""
MOVE_SECONDS = 10.0
"""How long another process may take to move the files of a finished download to their places."""


def read_digits(name: str) -> Dataset:
    """Read scikit-learn's 1,797 digits, 8×8, divided 80/20 because they have no test split of their own."""
    images, labels = all_digits()
    return divide_digits(name, images, labels)


def read_digits_m(name: str, size: int) -> Dataset:
    """Read the digits over colour patches of scikit-learn's two photographs, divided like `digits`.

    The images are made like MNIST-M (Ganin & Lempitsky 2015, arXiv 1409.7495, section 4): |digit − patch| per pixel
    and channel, with the digit scaled to `size` (bilinear). A patch is a square of `PATCH_SIDE` pixels of a photograph,
    drawn with a fixed seed and scaled to `size`. Another size therefore shows the same pictures, finer or coarser.
    """
    digits, labels = all_digits()
    digits = convert(digits, size, 1)
    images = np.empty((len(digits), 3, size, size), dtype=np.uint8)
    photographs = [Image.fromarray(pixels) for pixels in load_photographs()]
    for i, (number, left, top) in enumerate(draw_patches(len(digits), [photo.size for photo in photographs])):
        window = (left, top, left + PATCH_SIDE, top + PATCH_SIDE)
        patch = photographs[number].crop(window).resize((size, size), Image.Resampling.BILINEAR)
        images[i] = np.abs(digits[i].astype(np.int16) - np.asarray(patch).transpose(2, 0, 1))
    return divide_digits(name, images, labels)


def all_digits() -> tuple[Images, Labels]:
    """Return scikit-learn's digits in its order, (1797, 1, 8, 8), and their labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.rint(digits.images * 255 / 16).astype(np.uint8)[:, None], digits.target.astype(np.int64)


def divide_digits(name: str, images: Images, labels: Labels) -> Dataset:
    """Divide pictures of the digits, in scikit-learn's order, 80/20; each digit always goes to the same place."""
    from sklearn.model_selection import train_test_split

    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=0
    )
    return Dataset(name, tuple(map(str, range(10))), train_images, train_labels, test_images, test_labels)


def load_photographs() -> list[Images]:
    """Return the photographs that come with scikit-learn, each (427, 640, 3)."""
    from sklearn.datasets import load_sample_image

    return [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]


def draw_patches(count: int, sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Draw a photograph's number and a patch's left and top for `count` images; `sizes` are (width, height) each."""
    # RandomState, as for the splits, because NumPy guarantees that its numbers never change.
    draws = np.random.RandomState(0).random_sample((count, 3))
    number = (draws[:, 0] * len(sizes)).astype(int)
    corners = draws[:, 1:] * (np.array(sizes)[number] - PATCH_SIDE + 1)
    return [(n, left, top) for n, (left, top) in zip(number.tolist(), corners.astype(int).tolist(), strict=True)]


def read_mnist(name: str, data_dir: Path) -> Dataset:
    """Read MNIST or Fashion-MNIST: 60,000 training and 10,000 test images, gray, 28×28."""
    from torchvision.datasets import MNIST, FashionMNIST

    kind = MNIST if name == "mnist" else FashionMNIST
    archives = [f"{kind.__name__}/raw/{file}" for file, _ in kind.resources]

    def part(train: bool) -> tuple[Images, Labels]:
        files = [archive.removesuffix(".gz") for archive in archives]
        loaded = fetch(name, data_dir, files, archives, lambda root, get: kind(root, train=train, download=get))
        return loaded.data.numpy()[:, None], loaded.targets.numpy()

    return Dataset(name, tuple(kind.classes), *part(train=True), *part(train=False))


def read_cifar(name: str, data_dir: Path) -> Dataset:
    """Read CIFAR-10 or CIFAR-100 (fine labels): 50,000 training and 10,000 test images, RGB, 32×32."""
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = CIFAR10 if name == "cifar10" else CIFAR100

    def part(train: bool) -> Any:
        files, archives = [kind.base_folder], [kind.filename]
        return fetch(name, data_dir, files, archives, lambda root, get: kind(root, train=train, download=get))

    train, test = part(train=True), part(train=False)
    return Dataset(
        name,
        tuple(train.classes),
        train.data.transpose(0, 3, 1, 2),
        np.array(train.targets, dtype=np.int64),
        test.data.transpose(0, 3, 1, 2),
        np.array(test.targets, dtype=np.int64),
    )


def read_svhn(name: str, data_dir: Path) -> Dataset:
    """Read SVHN's cropped digits: 73,257 training and 26,032 test images, RGB, 32×32."""
    from torchvision.datasets import SVHN

    def part(split: str) -> tuple[Images, Labels]:
        files = [SVHN.split_list[split][1]]
        loaded = fetch(name, data_dir, files, [], lambda root, get: SVHN(root, split=split, download=get))
        return loaded.data, loaded.labels

    return Dataset(name, tuple(map(str, range(10))), *part("train"), *part("test"))


def read_stl10(name: str, data_dir: Path, pretraining: bool) -> Dataset:
    """Read STL-10: 5,000 and 8,000 RGB images of 96×96; pretraining uses the 5,000 and 100,000 unlabelled ones."""
    from torchvision.datasets import STL10

    def part(split: str) -> tuple[Images, Labels]:
        files, archives = [STL10.base_folder], [STL10.filename]
        loaded = fetch(name, data_dir, files, archives, lambda root, get: STL10(root, split=split, download=get))
        return loaded.data, loaded.labels.astype(np.int64)

    classes = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
    if not pretraining:
        return Dataset(name, classes, *part("train"), *part("test"))
    images, labels = part("train+unlabeled")  # labelled images come first; the others have the label -1
    labels = labels[labels >= 0]
    return Dataset(name, classes, images[: len(labels)], labels, *part("test"), unlabelled=images)


def present_files(data_dir: Path, files: Sequence[str]) -> list[str]:
    """Return the paths of the files of a dataset that exist."""
    return [str(data_dir / file) for file in files if (data_dir / file).exists()]


def make_or_wait(name: str, data_dir: Path, make: Callable[[Path, bool], T], is_alone: bool) -> T:
    """Read a dataset; see `fetch`. If another process is moving its files there, wait for it.

    Args:
        name: The dataset.
        data_dir: torchvision's root folder.
        make: The function that reads it.
        is_alone: Whether it is known that no other process downloads it.
    """
    end = time.monotonic() + MOVE_SECONDS
    while True:
        is_moving = not is_alone and is_begun(name, data_dir)
        try:
            return make(data_dir, False)
        except FILE_FAULTS:
            if not is_moving or time.monotonic() > end:
                raise
        time.sleep(0.2)


def is_begun(name: str, data_dir: Path) -> bool:
    """Return whether there is a folder of a download of the dataset that has not ended or was cut off."""
    return any(data_dir.glob(f"{DOWNLOAD.format(name)}*"))


@contextmanager
def downloading_alone(name: str, data_dir: Path) -> Iterator[bool]:
    """Wait until no other process downloads the dataset, and let the others wait until the block ends.

    Yields:
        Whether that was possible. Otherwise the files cannot be locked, or another download takes too long. Then two
        processes may download at the same time, which does no harm.
    """
    path = data_dir / LOCK.format(name)
    with ExitStack() as stack:
        is_alone = lock_download(path, stack)
        try:
            yield is_alone
        finally:
            if is_alone:
                with suppress(OSError):
                    path.unlink()


def lock_download(path: Path, stack: ExitStack) -> bool:
    """Lock the file at `path`, and return whether that was possible. `stack` closes the file."""
    end = time.monotonic() + DOWNLOAD_SECONDS
    while time.monotonic() < end:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)  # a download that failed may have removed it
            with ExitStack() as opened:
                file = opened.enter_context(open_lock(path))
                if try_lock(file, path.parent) and same_file(file.fileno(), path):
                    stack.push(opened.pop_all())
                    return True
        except OSError:
            return False
        except InputError:  # the file system has no locks
            with suppress(OSError):
                path.unlink()
            return False
        warn_once(f"waiting for another process that downloads a dataset into {str(path.parent)!r}")
        time.sleep(0.2)
    return False


def fetch(
    name: str, data_dir: Path, files: Sequence[str], archives: Sequence[str], make: Callable[[Path, bool], T]
) -> T:
    """Read a torchvision dataset from `data_dir`, or download it; a failed download leaves nothing behind.

    Args:
        name: The dataset's name, for messages.
        data_dir: torchvision's root folder.
        files: The files that torchvision reads, relative to the root.
        archives: The archives that torchvision unpacks the files from; used if they are in `data_dir` already.
        make: A function (root, download) -> torchvision's dataset, with its data in memory.

    Raises:
        InputError: The files are damaged or incomplete (they are left as they are), or cannot be downloaded.
    """
    with suppress(*FILE_FAULTS):
        return make(data_dir, False)
    new_folders = [folder for folder in (data_dir, *data_dir.parents) if not folder.exists()]
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with downloading_alone(name, data_dir) as is_alone:
            try:
                return make_or_wait(name, data_dir, make, is_alone)
            except FILE_FAULTS as fault:
                present = present_files(data_dir, files)
                # If a process was killed while it moved the files, the others are downloaded again.
                is_cut_off = len(present) < len(files) and is_begun(name, data_dir)
                if present and not is_cut_off:
                    reason = one_line(fault).split(" You can use download=True")[0]
                    raise InputError(
                        f"dataset {name} in {str(data_dir)!r} is damaged or incomplete ({reason}): copy its files "
                        f"there again, or remove {', '.join(map(repr, present))} to have it downloaded"
                    ) from fault
            return download(name, data_dir, files, archives, make)
    except InputError:
        raise
    except FILE_FAULTS as fault:
        raise InputError(
            f"dataset {name} is not under {str(data_dir)!r} and cannot be downloaded ({one_line(fault)}): copy "
            f"{', '.join(files)} there from a machine with a network, or use digits, which needs none"
        ) from fault
    finally:
        for folder in new_folders:
            with suppress(OSError):  # the folder is not empty if the download succeeded
                folder.rmdir()


def download(
    name: str, data_dir: Path, files: Sequence[str], archives: Sequence[str], make: Callable[[Path, bool], T]
) -> T:
    """Download a dataset into a temporary folder and move its files to their places; see `fetch`."""
    # Some file systems keep separate locks for each machine. So only folders of this machine are known to be left over.
    prefix = f"{DOWNLOAD.format(name)}{socket.gethostname()}-"
    with temporary_directory(data_dir, prefix) as temporary, quiet_network():
        for archive in archives:
            if (data_dir / archive).is_file():
                (temporary / archive).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(data_dir / archive, temporary / archive)
        dataset = make(temporary, True)
        for file in files:
            (data_dir / file).parent.mkdir(parents=True, exist_ok=True)
            try:
                if not (data_dir / file).exists():
                    (temporary / file).rename(data_dir / file)
            except OSError as fault:
                if fault.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # these mean that another process was faster
                    raise
    return dataset


@contextmanager
def quiet_network() -> Iterator[None]:
    """Inside the block, connections give up after `NETWORK_TIMEOUT` and progress bars are hidden."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)
