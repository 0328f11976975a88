"""Datasets are read exactly as they are on disk, and every fault in a file is reported in one line that names it."""

import dataclasses
import gzip
import hashlib
import io
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ExifTags, Image

from raysweep import parts
from raysweep.config.images import native_size
from raysweep.data import dataset as dataset_module
from raysweep.data import named
from raysweep.data.dataset import Dataset, digest_of, in_threads
from raysweep.data.folders import check_exists, check_name
from raysweep.data.loading import load
from raysweep.data.pixels import convert
from raysweep.data.splits import draw_labels, split_train
from raysweep.errors import InputError
from tests.support.cifar import NOWHERE, cifar10_archive, cifar_files, expect_cifar, mirror, noise, write


def fault(action) -> str:
    """Return the message of the InputError that `action()` raises."""
    with pytest.raises(InputError) as raised:
        action()
    return str(raised.value)


def luminance(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the ITU-R 601 luminance: (N, 3, H, W) -> (N, 1, H, W)."""
    return np.tensordot(images, [0.299, 0.587, 0.114], axes=(1, 0))[:, None]


# ---- Names -----------------------------------------------------------------------------------------------------------


def test_names() -> None:
    sizes = {"digits": 8, "digits_m": 16, "mnist": 28, "fashion_mnist": 28, "cifar10": 32, "cifar100": 32, "svhn": 32}
    sizes["stl10"] = 96
    for name, size in sizes.items():
        check_name(name)
        check_exists(name)
        assert native_size(name) == size
    check_name("folder:anything")
    assert native_size("folder:anything") == 32


@pytest.mark.parametrize(
    ("given", "meant"),
    [("cifar", "cifar10"), ("CIFAR-100", "cifar100"), ("fashionmnist", "fashion_mnist"), ("folder", "folder:PATH")],
)
def test_unknown_name_is_answered_with_what_is_valid(given: str, meant: str) -> None:
    message = fault(lambda: check_name(given))
    assert f"unknown dataset {given!r}, did you mean {meant!r}?" in message
    assert "digits, digits_m, mnist, fashion_mnist, cifar10, cifar100, svhn, stl10, folder:PATH" in message


def test_names_with_nothing_close_and_folder_without_path(tmp_path: Path) -> None:
    assert "did you mean" not in fault(lambda: check_name("xyzzy"))
    assert "folder:PATH" in fault(lambda: check_name("folder:"))
    for name in ("xyzzy", "x" * 300):
        assert "unknown dataset" in fault(lambda name=name: load(name, data_dir=tmp_path))


def test_import_and_checks_are_cheap(tmp_path: Path) -> None:
    save(tmp_path / "x.png", noise(4, 4))
    script = (
        "import sys; from raysweep.data.folders import check_exists; from raysweep.config.images import native_size\n"
        f"check_exists('cifar10'); check_exists({f'folder:{tmp_path}'!r}); native_size('stl10')\n"
        "assert not {'torch', 'torchvision', 'sklearn', 'scipy', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# ---- digits ----------------------------------------------------------------------------------------------------------


def test_digits(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load("digits", data_dir=tmp_path / "absent")
    assert digits.name == "digits"
    assert digits.classes == tuple("0123456789")
    assert digits.labelled
    assert digits.train_images.shape == (1437, 1, 8, 8)
    assert digits.test_images.shape == (360, 1, 8, 8)
    assert digits.pretrain_images is digits.train_images
    assert {images.dtype.name for images in (digits.train_images, digits.test_images)} == {"uint8"}
    assert {labels.dtype.name for labels in (digits.train_labels, digits.test_labels)} == {"int64"}
    assert (digits.train_images.min(), digits.train_images.max()) == (0, 255)
    assert np.bincount(digits.train_labels).min() >= 139  # each class has 174 to 183 images
    assert np.bincount(digits.test_labels).min() >= 34
    assert not (tmp_path / "absent").exists()

    # Train and test together hold each of scikit-learn's digits exactly once, with its label.
    def rows(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> list[tuple[int, ...]]:
        return sorted(
            (*row, label) for row, label in zip(images.reshape(-1, 64).tolist(), labels.tolist(), strict=True)
        )

    original = load_digits()
    scaled = np.array([round(value * 255 / 16) for value in range(17)], dtype=np.uint8)[original.images.astype(int)]
    ours = rows(digits.train_images, digits.train_labels) + rows(digits.test_images, digits.test_labels)
    assert sorted(ours) == rows(scaled, original.target)


def test_digits_are_the_same_every_time(tmp_path: Path) -> None:
    first, second = (load("digits", data_dir=tmp_path) for _ in range(2))
    np.testing.assert_array_equal(first.train_images, second.train_images)
    np.testing.assert_array_equal(first.test_labels, second.test_labels)
    assert first.digest == second.digest == "61f1340c9b9c0294"


# ---- digits_m --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits_m() -> Dataset:
    return load("digits_m", data_dir=Path("/nowhere"))


def test_digits_m(digits_m: Dataset) -> None:
    assert digits_m.name == "digits_m"
    assert digits_m.classes == tuple("0123456789")
    assert digits_m.train_images.shape == (1437, 3, 16, 16)
    assert digits_m.test_images.shape == (360, 3, 16, 16)
    assert digits_m.train_images.dtype == digits_m.test_images.dtype == np.uint8
    assert digits_m.pretrain_images is digits_m.train_images
    assert not Path("/nowhere").exists()
    images = np.concatenate([digits_m.train_images, digits_m.test_images])
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == 1797
    spread = images.max(axis=1).astype(int) - images.min(axis=1)
    assert (spread.mean(axis=(1, 2)) > 5).mean() > 0.9  # the images are coloured
    assert 80 < images.mean() < 140


def test_digits_m_is_the_same_every_time_and_in_every_process(digits_m: Dataset) -> None:
    np.random.seed(1)  # the global random state has no influence
    again = load("digits_m", data_dir=Path("/elsewhere"), image_size=16)
    np.testing.assert_array_equal(again.train_images, digits_m.train_images)
    np.testing.assert_array_equal(again.test_images, digits_m.test_images)
    script = "from pathlib import Path; from raysweep.data.loading import load; "
    script += "print(load('digits_m', data_dir=Path('x')).digest)"
    process = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert process.stdout.strip() == again.digest == digits_m.digest


def test_the_patches_of_digits_m_never_change() -> None:
    """Scores of different versions are comparable only if the images are the same."""
    assert named.draw_patches(3, [(640, 427)] * 2) == [(1, 412, 219), (1, 244, 235), (0, 514, 350)]
    assert named.draw_patches(1797, [(640, 427)] * 2)[-1] == (0, 346, 357)


def test_property_patches_lie_inside_the_photographs_and_all_over_them() -> None:
    sizes = [(640, 427), (200, 100)]
    patches = np.array(named.draw_patches(5000, sizes))
    assert 2300 < (patches[:, 0] == 0).sum() < 2700
    for number, (width, height) in enumerate(sizes):
        left, top = patches[patches[:, 0] == number, 1:].T
        for corner, side in ((left, width), (top, height)):
            assert corner.min() >= 0
            assert corner.max() + named.PATCH_SIDE <= side
            assert corner.min() <= 0.02 * side
            assert corner.max() + named.PATCH_SIDE >= 0.98 * side
    assert len(np.unique(patches, axis=0)) > 4000


@pytest.mark.parametrize("size", [8, 16, 33])
def test_reference_digits_m_is_the_difference_of_digit_and_patch(size: int) -> None:
    """Recompute images pixel by pixel from scikit-learn's own arrays."""
    from sklearn.datasets import load_digits, load_sample_images
    from sklearn.model_selection import train_test_split

    dataset = load("digits_m", data_dir=Path("/nowhere"), image_size=size)
    photographs = load_sample_images().images
    original = load_digits()
    train, test = train_test_split(np.arange(1797), test_size=0.2, stratify=original.target, random_state=0)
    patches = named.draw_patches(1797, [(640, 427)] * 2)
    for images, labels, index in (
        (dataset.train_images, dataset.train_labels, train),
        (dataset.test_images, dataset.test_labels, test),
    ):
        np.testing.assert_array_equal(labels, original.target[index])
        for image, i in list(zip(images, index, strict=True))[::97]:
            number, left, top = patches[i]
            window = photographs[number][top : top + 64, left : left + 64]
            digit = np.asarray(Image.fromarray(np.rint(original.images[i] / 16 * 255).astype(np.uint8)).resize(
                (size, size), Image.Resampling.BILINEAR
            ))  # fmt: skip
            for channel in range(3):
                patch = Image.fromarray(window[..., channel].copy()).resize((size, size), Image.Resampling.BILINEAR)
                for row in range(size):
                    for column in range(size):
                        expected = abs(int(digit[row, column]) - int(np.asarray(patch)[row, column]))
                        assert image[channel, row, column] == expected


def test_digits_m_has_the_digits_in_their_order(digits_m: Dataset, tmp_path: Path) -> None:
    """Each image of digits_m is made from the digit at the same position in digits."""
    digits = load("digits", data_dir=tmp_path, image_size=16, channels=3)
    np.testing.assert_array_equal(digits_m.train_labels, digits.train_labels)
    np.testing.assert_array_equal(digits_m.test_labels, digits.test_labels)
    patches = named.draw_patches(1797, [(640, 427)] * 2)
    assert len(patches) == len(digits.train_images) + len(digits.test_images)
    for ours, theirs in ((digits_m.train_images, digits.train_images), (digits_m.test_images, digits.test_images)):
        white, black = theirs == 255, theirs == 0
        # |255 − patch| and |0 − patch| of neighbouring pixels add up to about 255 where the patch is smooth.
        sums = np.array([im[w].mean() + im[b].mean() for im, w, b in zip(ours, white, black, strict=True) if w.any()])
        shifted = np.roll(ours, 1, axis=0)
        shifted_sums = [im[w].mean() + im[b].mean() for im, w, b in zip(shifted, white, black, strict=True) if w.any()]
        assert np.abs(sums - 255).mean() < 0.5 * np.abs(np.array(shifted_sums) - 255).mean()


def test_digits_m_with_digits(digits_m: Dataset, tmp_path: Path) -> None:
    """An experiment pretrains on one dataset and evaluates on the other, in the first dataset's size and channels."""
    from raysweep.config import Settings
    from raysweep.data.selection import select_data

    data = select_data(Settings(dataset="digits_m", probe_dataset="digits"), {}, load=True)
    np.testing.assert_array_equal(data.pretrain, digits_m.train_images)
    assert data.probe.train_images.shape == (1437, 3, 16, 16)
    assert (data.probe.train_images == data.probe.train_images[:, :1]).all()
    np.testing.assert_array_equal(data.probe.train_labels, digits_m.train_labels)

    back = select_data(Settings(dataset="digits", probe_dataset="digits_m"), {}, load=True)
    assert back.pretrain.shape == (1437, 1, 8, 8)
    small = load("digits_m", data_dir=tmp_path, image_size=8)
    np.testing.assert_allclose(back.probe.train_images, luminance(small.train_images), atol=1)

    larger = load("digits_m", data_dir=tmp_path, image_size=32)
    assert larger.train_images.shape == (1437, 3, 32, 32)
    coarse = larger.train_images.reshape(1437, 3, 16, 2, 16, 2).mean(axis=(3, 5))
    assert np.abs(coarse - digits_m.train_images).mean() < 25  # the same pictures at a higher resolution


# ---- Digests, sizes and colours --------------------------------------------------------------------------------------


def test_digest_depends_on_pixels_labels_and_shapes() -> None:
    def digest(images: NDArray[np.uint8], labels: NDArray[np.int64] | None) -> str:
        return digest_of(Dataset("x", ("a", "b"), images, labels, None, None))

    images, labels = noise(4, 1, 6, 6), np.array([0, 1, 0, 1])
    other = images.copy()
    other[3, 0, 5, 5] ^= 1
    digests = {
        digest(images, labels),
        digest(images, 1 - labels),
        digest(images, None),
        digest(other, labels),
        digest(images.reshape(4, 1, 4, 9), labels),
    }
    assert len(digests) == 5
    assert all(len(digest_text) == 16 and int(digest_text, 16) >= 0 for digest_text in digests)


def test_digest_depends_on_the_number_of_classes_that_no_label_tells() -> None:
    images, labels = noise(4, 1, 6, 6), np.array([0, 2, 0, 2])
    plain = hashlib.sha256()
    for array in (images, labels):
        plain.update(f"{array.shape};".encode() + array.tobytes())
    plain.update(b"none;" * 2)
    names = "abcdef"
    digests = [digest_of(Dataset("x", tuple(names[:count]), images, labels, None, None)) for count in (3, 4, 5)]
    assert len(set(digests)) == 3
    assert digests[0] == plain.hexdigest()[:16], "results record the digests of all other datasets"
    known = Dataset("x", tuple("abcd"), images, labels, images, labels + 1)
    assert digest_of(known) == digest_of(dataclasses.replace(known, classes=tuple("efgh")))
    assert digest_of(known) != digest_of(dataclasses.replace(known, classes=tuple("abcde")))


def test_sizes_and_channels(tmp_path: Path) -> None:
    native = load("digits", data_dir=tmp_path)
    large = load("digits", data_dir=tmp_path, image_size=20, channels=3)
    assert large.train_images.shape == (1437, 3, 20, 20)
    assert large.test_images.shape == (360, 3, 20, 20)
    assert (large.train_images == large.train_images[:, :1]).all()
    resized = Image.fromarray(native.train_images[7, 0]).resize((20, 20), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(large.train_images[7, 1], np.asarray(resized))
    np.testing.assert_array_equal(large.train_labels, native.train_labels)
    assert large.digest != native.digest
    repeated = load("digits", data_dir=tmp_path, channels=3)
    np.testing.assert_array_equal(repeated.train_images, native.train_images.repeat(3, axis=1))


def test_reference_rgb_becomes_gray_by_luminance() -> None:
    images = noise(5, 3, 9, 9)
    gray = convert(images, 9, 1)
    assert gray.shape == (5, 1, 9, 9)
    np.testing.assert_allclose(gray, luminance(images), atol=1)
    assert np.abs(gray - luminance(images)).mean() < 0.5
    assert convert(images, 4, 1).shape == (5, 1, 4, 4)


def test_threads_raise_the_first_fault() -> None:
    finished = np.zeros(1000, dtype=bool)

    def work(i: int) -> None:
        if i in (300, 301, 700):
            raise InputError(str(i))
        finished[i] = True

    assert fault(lambda: in_threads(work, 1000)) == "300"
    in_threads(lambda i: finished.__setitem__(i, True), 1000)
    assert finished.all()


def test_more_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = fault(lambda: load("mnist", data_dir=tmp_path, image_size=100_000))
    assert "70,000 images of 1×100000×100000" in message
    assert "GiB" in message
    assert "image_size" in message
    monkeypatch.setattr(dataset_module, "MEMORY_SHARE", 1e-9)
    save(tmp_path / "images" / "a.png", noise(100, 100, 3))
    assert "fewer images" in fault(lambda: load(f"folder:{tmp_path / 'images'}", data_dir=tmp_path))


# ---- torchvision's datasets, in their formats ------------------------------------------------------------------------


def idx(array: NDArray[np.uint8]) -> bytes:
    """Encode in the IDX format: a magic number that holds the number of dimensions, big-endian sizes, bytes."""
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def mnist_files() -> tuple[dict[str, bytes], list[NDArray[np.uint8]]]:
    arrays = [noise(12, 28, 28), np.arange(12, dtype=np.uint8) % 10, noise(10, 28, 28, seed=1), np.arange(10)[::-1]]
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    arrays = [array.astype(np.uint8) for array in arrays]
    return {f"{name}-ubyte": idx(array) for name, array in zip(names, arrays, strict=True)}, arrays


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
@pytest.mark.parametrize("packed", [False, True])
def test_mnist(name: str, folder: str, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    files, arrays = mnist_files()
    raw, resources = tmp_path / folder / "raw", []
    for file, content in files.items():
        if packed:
            resources.append((f"{file}.gz", write(raw / f"{file}.gz", gzip.compress(content))))
        else:
            write(raw / file, content)
    if packed:
        monkeypatch.setattr(getattr(torchvision.datasets, folder), "resources", resources)
        monkeypatch.setattr(getattr(torchvision.datasets, folder), "mirrors", [NOWHERE])
    for _ in range(2):
        mnist = load(name, data_dir=tmp_path)
        np.testing.assert_array_equal(mnist.train_images, arrays[0][:, None])
        np.testing.assert_array_equal(mnist.train_labels, arrays[1])
        np.testing.assert_array_equal(mnist.test_images, arrays[2][:, None])
        np.testing.assert_array_equal(mnist.test_labels, arrays[3])
        assert len(mnist.classes) == 10
    assert {path.name for path in raw.iterdir()} >= set(files)
    assert [path.name for path in tmp_path.iterdir()] == [folder]

    small = load(name, data_dir=tmp_path, image_size=8, channels=3)
    assert small.train_images.shape == (12, 3, 8, 8)


def assert_holds(dataset: Dataset, expected: dict[str, object]) -> None:
    for field, value in expected.items():
        np.testing.assert_array_equal(getattr(dataset, field), value, err_msg=field)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, expected = cifar_files(name)
    folder = expect_cifar(name, files, monkeypatch)
    for file, content in files.items():
        write(tmp_path / folder / file, content)
    cifar = load(name, data_dir=tmp_path)
    assert_holds(cifar, expected)
    gray = load(name, data_dir=tmp_path, channels=1)
    np.testing.assert_allclose(gray.train_images, luminance(cifar.train_images), atol=1)


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision
    from scipy.io import savemat

    images = {"train": noise(11, 3, 32, 32), "test": noise(5, 3, 32, 32, seed=1)}
    labels = {"train": np.array([10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]), "test": np.array([9, 10, 1, 5, 3])}
    split_list = dict(torchvision.datasets.SVHN.split_list)
    for split in images:
        content = io.BytesIO()
        savemat(content, {"X": images[split].transpose(2, 3, 1, 0), "y": labels[split].astype(np.uint8)[:, None]})
        url, file, _ = split_list[split]
        split_list[split] = [url, file, write(tmp_path / file, content.getvalue())]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", split_list)
    svhn = load("svhn", data_dir=tmp_path)
    np.testing.assert_array_equal(svhn.train_images, images["train"])
    np.testing.assert_array_equal(svhn.train_labels, labels["train"] % 10)  # 10 stands for the digit 0
    np.testing.assert_array_equal(svhn.test_images, images["test"])
    np.testing.assert_array_equal(svhn.test_labels, labels["test"] % 10)
    assert svhn.classes == tuple("0123456789")
    assert svhn.train_images.flags.c_contiguous


def test_stl10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    kind = torchvision.datasets.STL10
    images = {"train": noise(11, 3, 96, 96), "unlabeled": noise(7, 3, 96, 96, seed=1), "test": noise(4, 3, 96, 96)}
    labels = {"train": np.r_[np.arange(10), 0], "test": np.array([3, 9, 0, 1])}
    content = {f"{split}_X.bin": array.transpose(0, 1, 3, 2).tobytes() for split, array in images.items()}
    content |= {f"{split}_y.bin": (array + 1).astype(np.uint8).tobytes() for split, array in labels.items()}
    sums = {file: write(tmp_path / kind.base_folder / file, text) for file, text in content.items()}
    monkeypatch.setattr(kind, "train_list", [[file, sums[file]] for file, _ in kind.train_list])
    monkeypatch.setattr(kind, "test_list", [[file, sums[file]] for file, _ in kind.test_list])

    stl = load("stl10", data_dir=tmp_path)
    np.testing.assert_array_equal(stl.train_images, images["train"])
    np.testing.assert_array_equal(stl.train_labels, labels["train"])
    np.testing.assert_array_equal(stl.test_images, images["test"])
    np.testing.assert_array_equal(stl.test_labels, labels["test"])
    np.testing.assert_array_equal(stl.pretrain_images, np.concatenate([images["train"], images["unlabeled"]]))
    assert len(stl.classes) == 10

    probed = load("stl10", data_dir=tmp_path, pretraining=False)
    assert probed.unlabelled is None
    assert probed.pretrain_images is probed.train_images
    np.testing.assert_array_equal(probed.train_images, stl.train_images)
    assert probed.digest == stl.digest  # so that scores are comparable
    small = load("stl10", data_dir=tmp_path, image_size=32, channels=1)
    assert small.pretrain_images.shape == (18, 1, 32, 32)


# ---- Downloads -------------------------------------------------------------------------------------------------------


def unreachable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    if name == "svhn":
        lists = {split: [NOWHERE + file, file, md5] for split, (_, file, md5) in datasets.SVHN.split_list.items()}
        monkeypatch.setattr(datasets.SVHN, "split_list", lists)
    elif name.endswith("mnist"):
        monkeypatch.setattr(datasets.MNIST if name == "mnist" else datasets.FashionMNIST, "mirrors", [NOWHERE])
    else:
        kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "stl10": datasets.STL10}[name]
        monkeypatch.setattr(kind, "url", NOWHERE + kind.filename)


@pytest.mark.parametrize("name", [name for name in parts.dataset if not name.startswith("digits")])
def test_no_network_is_said_and_leaves_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    unreachable(name, monkeypatch)
    data_dir = tmp_path / "new" / "data"
    message = fault(lambda: load(name, data_dir=data_dir))
    assert f"dataset {name} is not under {str(data_dir)!r} and cannot be downloaded" in message
    assert "refused" in message
    assert "use digits" in message
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_failed_download_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unreachable("cifar10", monkeypatch)
    write(tmp_path / "mine.txt", b"mine")
    write(tmp_path / "cifar-10-python.tar.gz", b"half an archive")
    fault(lambda: load("cifar10", data_dir=tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cifar-10-python.tar.gz", "mine.txt"]
    assert (tmp_path / "cifar-10-python.tar.gz").read_bytes() == b"half an archive"


def test_data_dir_that_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unreachable("cifar10", monkeypatch)
    write(tmp_path / "data", b"")
    assert str(tmp_path / "data") in fault(lambda: load("cifar10", data_dir=tmp_path / "data"))


def test_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    files, expected = cifar_files("cifar10")
    folder = expect_cifar("cifar10", files, monkeypatch)
    archive = cifar10_archive(files, folder)

    with mirror(archive, monkeypatch):
        assert_holds(load("cifar10", data_dir=tmp_path / "new" / "data"), expected)
    assert_holds(load("cifar10", data_dir=tmp_path / "new" / "data"), expected)
    assert [path.name for path in (tmp_path / "new" / "data").iterdir()] == [folder]
    assert capfd.readouterr() == ("", "")


def test_archive_that_lies_there_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    files, expected = cifar_files("cifar10")
    folder = expect_cifar("cifar10", files, monkeypatch)
    archive = cifar10_archive(files, folder)
    monkeypatch.setattr(CIFAR10, "tgz_md5", write(tmp_path / CIFAR10.filename, archive))
    assert_holds(load("cifar10", data_dir=tmp_path), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder, CIFAR10.filename]


def test_damaged_files_are_named_and_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, _ = cifar_files("cifar10")
    folder = expect_cifar("cifar10", files, monkeypatch)
    for file, content in files.items():
        write(tmp_path / folder / file, content)
    write(tmp_path / folder / "data_batch_3", b"oops")
    message = fault(lambda: load("cifar10", data_dir=tmp_path))
    assert "damaged or incomplete" in message
    assert repr(str(tmp_path / folder)) in message
    assert (tmp_path / folder / "data_batch_3").read_bytes() == b"oops"


@pytest.mark.parametrize("content", [b"", b"oops", idx(noise(12, 28, 28))[:-1]])
def test_damaged_mnist(content: bytes, tmp_path: Path) -> None:
    for file, whole in mnist_files()[0].items():
        write(tmp_path / "MNIST" / "raw" / file, whole)
    write(tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte", content)
    message = fault(lambda: load("mnist", data_dir=tmp_path))
    assert "damaged or incomplete" in message
    assert "download=True" not in message
    assert (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").read_bytes() == content


# ---- Folders ---------------------------------------------------------------------------------------------------------


def save(path: Path, pixels: NDArray[np.generic] | Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path)


def two_classes(root: Path, test: bool = True, count: int = 3) -> None:
    for split in ("train", "test") if test else ("train",):
        for k, name in enumerate(("cat", "dog")):
            for i in range(count):
                save(root / split / name / f"{i}.png", noise(32, 32, 3, seed=100 * k + i + 1000 * (split == "test")))


def pixels_of(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)


def read(root: Path, image_size: int | None = None, channels: int | None = None, skip: bool = False) -> Dataset:
    spec = f"folder:{root}"
    return load(spec, data_dir=root, image_size=image_size, channels=channels, skip_bad_images=skip)


def test_folder(tmp_path: Path) -> None:
    two_classes(tmp_path)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / "cat" / ".hidden.png").write_text("not an image")
    (tmp_path / "train" / ".checkpoints").mkdir()
    save(tmp_path / "train" / "dog" / "deeper" / "x.JPEG", noise(32, 32, 3))
    folder = read(tmp_path)
    assert folder.classes == ("cat", "dog")
    assert folder.train_labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert folder.test_labels.tolist() == [0, 0, 0, 1, 1, 1]
    train = [f"cat/{i}.png" for i in range(3)] + [f"dog/{i}.png" for i in range(3)] + ["dog/deeper/x.JPEG"]
    np.testing.assert_array_equal(folder.train_images, [pixels_of(tmp_path / "train" / path) for path in train])
    np.testing.assert_array_equal(folder.test_images[4], pixels_of(tmp_path / "test" / "dog" / "1.png"))
    assert read(tmp_path).digest == folder.digest


def test_folder_without_test_is_divided(tmp_path: Path) -> None:
    two_classes(tmp_path, test=False, count=10)
    folder = read(tmp_path)
    assert np.bincount(folder.train_labels).tolist() == [8, 8]
    assert np.bincount(folder.test_labels).tolist() == [2, 2]
    images = np.concatenate([folder.train_images, folder.test_images])
    assert len(np.unique(images.reshape(20, -1), axis=0)) == 20
    assert read(tmp_path).digest == folder.digest
    for i in range(1, 10):
        (tmp_path / "train" / "dog" / f"{i}.png").unlink()
    message = fault(lambda: read(tmp_path))
    assert str(tmp_path / "train" / "dog") in message
    assert "too few" in message


@pytest.mark.parametrize("layout", ["", "a/b", "train"])
def test_folder_without_classes(layout: str, tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / layout / f"{i}.png", noise(32, 32, 3, seed=i))
    check_exists(f"folder:{tmp_path}")
    folder = read(tmp_path)
    assert not folder.labelled
    assert folder.classes == ()
    assert (folder.train_labels, folder.test_images, folder.test_labels) == (None, None, None)
    np.testing.assert_array_equal(
        folder.pretrain_images, [noise(32, 32, 3, seed=i).transpose(2, 0, 1) for i in range(4)]
    )


def modes() -> dict[str, tuple[Image.Image, NDArray[np.uint8]]]:
    """Map file names to a 32×32 image and the RGB pixels (3, 32, 32) that reading it should give."""
    rgb, gray = noise(32, 32, 3), noise(32, 32)
    image, planes = Image.fromarray(rgb), rgb.transpose(2, 0, 1)
    three = np.stack([gray] * 3)
    palette = image.quantize(16)
    in_palette = np.asarray(palette.convert("RGB")).transpose(2, 0, 1)
    see_through = image.quantize(16)
    see_through.info["transparency"] = bytes(range(0, 160, 10))
    cmyk = image.convert("CMYK")
    wide = gray.astype(np.uint16) * 257
    return {
        "rgb.png": (image, planes),
        "gray.png": (Image.fromarray(gray), three),
        "gray-alpha.png": (Image.merge("LA", [Image.fromarray(gray), Image.fromarray(noise(32, 32, seed=2))]), three),
        "rgba.png": (Image.fromarray(np.dstack([rgb, noise(32, 32, seed=1)])), planes),
        "palette.png": (palette, in_palette),
        "palette-alpha.png": (see_through, in_palette),
        "palette.gif": (palette, in_palette),
        "bits.png": (Image.fromarray(gray > 127), np.stack([(gray > 127) * np.uint8(255)] * 3)),
        "sixteen.png": (Image.fromarray(wide), three),
        "sixteen.tif": (Image.fromarray(wide), three),
        "sixteen.pgm": (Image.fromarray(wide), three),
        "cmyk.tif": (cmyk, np.asarray(cmyk.convert("RGB")).transpose(2, 0, 1)),
        "rgb.ppm": (image, planes),
        "rgb.bmp": (image, planes),
    }


@pytest.mark.parametrize("file", modes())
def test_modes(file: str, tmp_path: Path) -> None:
    image, expected = modes()[file]
    save(tmp_path / file, image)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read(tmp_path).train_images[0], expected)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_modes_reference_torchvision(suffix: str, tmp_path: Path) -> None:
    from torchvision.datasets.folder import pil_loader

    save(tmp_path / f"x.{suffix}", Image.fromarray(noise(32, 32, 4)).convert("CMYK" if suffix == "jpg" else "RGBA"))
    np.testing.assert_array_equal(
        read(tmp_path).train_images[0].transpose(1, 2, 0), np.asarray(pil_loader(tmp_path / f"x.{suffix}"))
    )


def test_sixteen_bits_are_scaled_and_rounded(tmp_path: Path) -> None:
    wide = np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64
    save(tmp_path / "x.png", wide)
    np.testing.assert_array_equal(read(tmp_path).train_images[0, 0], np.rint(wide / 257))


def twelve_bits(gray: NDArray[np.uint16]) -> bytes:
    """Return an uncompressed TIFF with 12 bits for each pixel, by the TIFF specification. The sides must be even."""
    first, second = gray.reshape(-1, 2).T
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes()
    height, width = gray.shape
    # The tags are width, height, bits, compression, photometric, offset, samples, rows and bytes of the one strip.
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(packed)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return struct.pack("<2sHI", b"II", 42, 8 + len(packed)) + packed + directory


def test_twelve_bits_are_scaled_and_rounded(tmp_path: Path) -> None:
    gray = np.arange(1024, dtype=np.uint16).reshape(32, 32) * 4 + 3
    (tmp_path / "x.tif").write_bytes(twelve_bits(gray))
    np.testing.assert_array_equal(read(tmp_path).train_images[0, 0], np.rint(gray / 4095 * 255))


@pytest.mark.parametrize("white", [255, 65535, 10**6])
def test_integers_of_32_bits_are_bad_images(white: int, tmp_path: Path) -> None:
    gray = np.linspace(0, white, 1024).astype(np.int32).reshape(32, 32)
    save(tmp_path / "x.tif", Image.fromarray(gray))
    assert "(32-bit pixels have no fixed range: save it with 8 or 16 bits)" in fault(lambda: read(tmp_path))


def test_negative_pixels_are_bad_images(tmp_path: Path) -> None:
    gray = np.arange(1024, dtype=np.int32).reshape(32, 32)
    for least in (0, -1):
        signed = Image.fromarray((gray + least).astype(np.uint16))
        signed.save(tmp_path / "x.tif", tiffinfo={ExifTags.Base.SampleFormat: 2})
        with Image.open(tmp_path / "x.tif") as image:
            assert image.mode == "I"
            assert image.getextrema() == (least, 1023 + least)
        if least == 0:
            np.testing.assert_array_equal(read(tmp_path).train_images[0, 0], np.rint(gray / 257))
    assert "negative pixels have no fixed range" in fault(lambda: read(tmp_path))


def test_odd_sizes_are_cut_and_scaled(tmp_path: Path) -> None:
    strip = np.zeros((10, 40, 3), dtype=np.uint8)
    strip[:, 14:26] = 200  # the centre square plus one pixel that Pillow's interpolation reads
    save(tmp_path / "wide.png", strip)
    save(tmp_path / "tall.png", strip.transpose(1, 0, 2))
    save(tmp_path / "one.png", noise(1, 1, 3))
    save(tmp_path / "line.png", noise(1, 77))
    folder = read(tmp_path, image_size=24)
    assert folder.train_images.shape == (4, 3, 24, 24)
    assert (folder.train_images[[2, 3]] == 200).all()  # sorted by name: line, one, tall, wide
    assert (folder.train_images[1] == noise(1, 1, 3).transpose(2, 0, 1)).all()


def test_gray_folder(tmp_path: Path) -> None:
    save(tmp_path / "x.png", noise(32, 32, 3))
    gray = read(tmp_path, channels=1).train_images
    assert gray.shape == (1, 1, 32, 32)
    np.testing.assert_allclose(gray, luminance(read(tmp_path).train_images), atol=1)


def spoil(path: Path, damage: str) -> None:
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "corrupt": b"this is no image", "truncated": whole[: len(whole) // 2]}[damage])


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp"])
@pytest.mark.parametrize("damage", ["empty", "corrupt", "truncated"])
def test_bad_images(damage: str, suffix: str, tmp_path: Path) -> None:
    two_classes(tmp_path)
    for name in ("dog/1", "dog/bad"):
        save(tmp_path / "train" / f"{name}.{suffix}", noise(40, 40, 3))
        spoil(tmp_path / "train" / f"{name}.{suffix}", damage)
    good = [1] if suffix == "png" else []
    first = tmp_path / "train" / "dog" / f"1.{suffix}"
    message = fault(lambda: read(tmp_path))
    assert repr(str(first)) in message
    assert "`skip_bad_images`" in message
    assert ("the file is empty" in message) == (damage == "empty")

    with pytest.warns(UserWarning, match=r"2 of \d images left out") as warned:
        folder = read(tmp_path, skip=True)
    assert len(warned) == 1
    assert repr(str(first)) in str(warned[0].message)
    kept = [i for i in range(3) if i not in good]
    assert folder.train_labels.tolist() == [0, 0, 0] + [1] * len(kept)
    np.testing.assert_array_equal(
        folder.train_images[3:], [pixels_of(tmp_path / "train" / "dog" / f"{i}.png") for i in kept]
    )


def test_skipping_all_images_of_a_class_is_no_dataset(tmp_path: Path) -> None:
    two_classes(tmp_path)
    for path in (tmp_path / "test" / "cat").iterdir():
        spoil(path, "truncated")
    with pytest.warns(UserWarning, match="left out"):
        assert str(tmp_path / "test" / "cat") in fault(lambda: read(tmp_path, skip=True))


def test_float_pixels_and_broken_links_are_bad_images(tmp_path: Path) -> None:
    save(tmp_path / "x.tif", noise(32, 32).astype(np.float32) / 255)
    assert "floating-point" in fault(lambda: read(tmp_path))
    (tmp_path / "x.tif").unlink()
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    assert "link.png" in fault(lambda: read(tmp_path))


def test_classes_that_differ(tmp_path: Path) -> None:
    two_classes(tmp_path)
    (tmp_path / "test" / "dog").rename(tmp_path / "test" / "wolf")
    message = fault(lambda: read(tmp_path))
    assert "only in train/: 'dog'" in message
    assert "only in test/: 'wolf'" in message
    for path in (tmp_path / "test" / "wolf").iterdir():
        path.unlink()
    (tmp_path / "test" / "wolf").rmdir()
    message = fault(lambda: read(tmp_path))
    assert "only in train/: 'dog'" in message
    assert "only in test/" not in message


def test_folders_without_images(tmp_path: Path) -> None:
    assert repr(str(tmp_path / "gone")) in fault(lambda: check_exists(f"folder:{tmp_path / 'gone'}"))
    write(tmp_path / "file", b"")
    assert "is not a folder" in fault(lambda: check_exists(f"folder:{tmp_path / 'file'}"))
    assert "neither train/" in fault(lambda: check_exists(f"folder:{tmp_path}"))
    assert "neither train/" in fault(lambda: read(tmp_path))
    (tmp_path / "train").mkdir()
    assert repr(str(tmp_path / "train")) in fault(lambda: read(tmp_path))
    two_classes(tmp_path)
    check_exists(f"folder:{tmp_path}")
    for split in ("train", "test"):
        (tmp_path / split / "cow").mkdir()
    assert repr(str(tmp_path / "train" / "cow")) in fault(lambda: read(tmp_path))
    save(tmp_path / "train" / "cow" / "x.png", noise(32, 32, 3))
    assert repr(str(tmp_path / "test" / "cow")) in fault(lambda: read(tmp_path))


def test_image_beside_class_folders(tmp_path: Path) -> None:
    two_classes(tmp_path)
    save(tmp_path / "train" / "stray.png", noise(32, 32, 3))
    words = fault(lambda: read(tmp_path))
    assert repr(str(tmp_path / "train" / "stray.png")) in words
    assert "move it into a class folder, or out of train/" in words


# ---- Splits ----------------------------------------------------------------------------------------------------------

many_labels = st.lists(st.integers(0, 4), min_size=1, max_size=12).map(
    lambda extra: np.array([*range(5), *range(5), *extra], dtype=np.int64)
)


@given(many_labels, st.floats(0.01, 0.99), st.integers(0, 2**31 - 1))
@settings(max_examples=50)
def test_property_split_is_a_stratified_division(labels: NDArray[np.int64], fraction: float, seed: int) -> None:
    fit, val = split_train(labels, fraction, seed)
    assert fit.dtype == val.dtype == np.int64
    assert sorted([*fit, *val]) == list(range(len(labels)))
    assert (np.diff(fit) > 0).all()
    assert (np.diff(val) > 0).all()
    for index in range(5):
        count, in_val = (labels == index).sum(), (labels[val] == index).sum()
        assert 1 <= in_val <= count - 1
        assert abs(in_val - count * fraction) <= 1
    for again, first in zip(split_train(labels, fraction, seed), (fit, val), strict=True):
        np.testing.assert_array_equal(again, first)


def test_split_sizes_and_seeds() -> None:
    labels = np.repeat(np.arange(10), 500)
    fit, val = split_train(labels, 0.1, 0)
    assert np.bincount(labels[val]).tolist() == [50] * 10
    assert np.bincount(labels[fit]).tolist() == [450] * 10
    assert set(val) != set(split_train(labels, 0.1, 1)[1])
    positions = val.reshape(10, 50) % 500  # no two classes are divided in the same way
    assert len({tuple(row) for row in positions}) == 10


def test_split_never_changes() -> None:
    """Scores of different versions are comparable only if all of them split the data in the same way."""
    assert split_train(np.arange(40) % 4, 0.25, 7)[1].tolist() == [4, 6, 7, 9, 10, 11, 13, 17, 20, 28, 31, 38]
    assert draw_labels(np.arange(40) % 4, 2, 7).tolist() == [7, 8, 10, 11, 12, 18, 21, 37]


def test_property_split_of_a_class_depends_on_no_other() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(6), 20))
    _, val = split_train(labels, 0.2, 3)
    kept = np.flatnonzero(labels != 2)
    _, val_of_kept = split_train(labels[kept], 0.2, 3)
    assert set(kept[val_of_kept]) == {i for i in val if labels[i] != 2}
    sort = np.argsort(labels, kind="stable")  # nor on the order of the classes
    assert set(sort[split_train(labels[sort], 0.2, 3)[1]]) == set(val)


def test_split_without_val() -> None:
    fit, val = split_train(np.array([0, 1, 1]), 0.0, 0)
    assert fit.tolist() == [0, 1, 2]
    assert val.tolist() == []
    assert val.dtype == np.int64


def test_split_of_too_few() -> None:
    message = fault(lambda: split_train(np.array([0, 0, 1, 2, 2]), 0.5, 0))
    assert "class 1 has 1 training image" in message
    assert "val_fraction" in message


@given(many_labels, st.integers(0, 2**31 - 1))
@settings(max_examples=50)
def test_property_draw(labels: NDArray[np.int64], seed: int) -> None:
    one, two = draw_labels(labels, 1, seed), draw_labels(labels, 2, seed)
    assert np.bincount(labels[one]).tolist() == [1] * 5
    assert np.bincount(labels[two]).tolist() == [2] * 5
    assert (np.diff(two) > 0).all()
    assert set(one) < set(two)
    np.testing.assert_array_equal(draw_labels(labels, 2, seed), two)


def test_draws_differ_by_seed_and_end() -> None:
    labels = np.repeat(np.arange(3), [9, 4, 7])
    assert len({tuple(draw_labels(labels, 3, seed)) for seed in range(20)}) > 15
    for wanted in (5, 8, 100):
        message = fault(lambda wanted=wanted: draw_labels(labels, wanted, 0))
        assert "class 1 has only 4 images" in message, "the smallest class decides"
        assert "at most 4" in message


def test_links_in_circles_bring_no_other_class_in(tmp_path: Path) -> None:
    two_classes(tmp_path)
    before = read(tmp_path)
    (tmp_path / "train" / "cat" / "up").symlink_to(tmp_path)
    (tmp_path / "train" / "cat" / "self").symlink_to(tmp_path / "train" / "cat")
    assert read(tmp_path).digest == before.digest
