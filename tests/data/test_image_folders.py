"""Image folders as users have them: the splits are the intended ones, and every file that is left out is reported."""

import os
import socket
import stat
import tracemalloc
import unicodedata
import warnings
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

from raysweep import portable
from raysweep.config import Settings
from raysweep.data import layout
from raysweep.data.dataset import Dataset, digest_of
from raysweep.data.loading import load
from raysweep.data.selection import select_data
from raysweep.data.splits import fit_and_val, split_train
from raysweep.errors import InputError

SMALL = (
    "--local", "--usl_type", "simclr", "--usl_epochs", "1", "--le_epochs", "1", "--batch_size", "8", "--knn_k", "3",
)  # fmt: skip
RANDOM = ("--local", "--usl_epochs", "0", "--le_epochs", "1", "--knn_k", "3")
PLAIN = {"train": 4, "test": 2}
FULL = {**PLAIN, "val": 3}


def picture(seed=0, darkest=0):
    pixels = np.random.default_rng(seed).integers(darkest, darkest + 100, (24, 24, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def save(path, image=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or picture()).save(path, **options)
    return path


def make(root, splits, classes=("dark", "light")):
    """Create a dataset. `splits` maps each split to its images per class; the classes differ in brightness."""
    for split, count in splits.items():
        for k, name in enumerate(classes):
            for i in range(count):
                save(root / split / name / f"{i}.png", picture([len(split), k, i], darkest=150 * k))
    return root


def read(root, **options):
    return load(f"folder:{root}", data_dir=root, **options)


def refusal(root, **options):
    with pytest.raises(InputError) as raised:
        read(root, **options)
    message = str(raised.value)
    assert str(root) in message
    return message


def warned(root, **options):
    """Read a dataset; return the warnings and the dataset."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = read(root, **options)
    return [str(warning.message) for warning in caught], dataset


def assert_refused(process, *words):
    """Check that the command refused its input in one line, before it wrote anything."""
    assert process.returncode == 2
    assert process.stdout == ""
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


# ---- Splits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [(), (0, 17, 99)])
def test_dividing_a_folder_needs_no_second_copy_of_its_images(tmp_path, bad):
    """The reference decodes each file by itself and copies the chosen images."""
    paths = [tmp_path / "set" / "train" / name / f"{i:02}.png" for name in ("dark", "light") for i in range(50)]
    for i, path in enumerate(paths):
        save(path, picture(i))
        if i in bad:
            path.write_bytes(b"no image")
    read(make(tmp_path / "other", {"train": 2}))  # imports what is needed, which takes memory
    good = [path for i, path in enumerate(paths) if i not in bad]
    tracemalloc.start()
    try:
        _, dataset = warned(tmp_path / "set", image_size=96, skip_bad_images=True)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 1.5 * dataset.train_images[0].size * len(paths)
    images = np.stack([np.asarray(Image.open(path).resize((96, 96), Image.Resampling.BILINEAR)) for path in good])
    labels = np.array([int(path.parent.name == "light") for path in good])
    fit, held_out = split_train(labels, 0.2, 0)
    for chosen, got, got_labels in (
        (fit, dataset.train_images, dataset.train_labels),
        (held_out, dataset.test_images, dataset.test_labels),
    ):
        assert np.array_equal(got, images[chosen].transpose(0, 3, 1, 2))
        assert np.array_equal(got_labels, labels[chosen])


@pytest.mark.parametrize("name", ["val", "validation"])
def test_a_val_folder_is_the_validation_split(name, tmp_path):
    root = make(tmp_path, {**PLAIN, name: 3})
    for path in sorted((root / name / "light").iterdir()):
        pixels = np.asarray(Image.open(path)).transpose(2, 0, 1)
        assert (read(root, image_size=24).val_images == pixels).all(axis=(1, 2, 3)).any()
    dataset = read(root)
    assert dataset.val_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(dataset.train_images) == len(dataset.pretrain_images) == 8

    fit, val = fit_and_val(dataset, 0.1, 0)
    np.testing.assert_array_equal(fit.index, np.arange(8))
    assert fit.images is dataset.train_images
    assert val.images is dataset.val_images
    np.testing.assert_array_equal(val.index, np.arange(6))
    np.testing.assert_array_equal(val.labels, dataset.val_labels)
    fit, val = fit_and_val(dataset, 0, 0)
    assert (len(fit.index), len(val.index)) == (8, 0)


def test_a_val_folder_takes_the_form_of_the_pretraining_images(tmp_path):
    chosen = select_data(Settings(dataset="digits", probe_dataset=f"folder:{make(tmp_path, FULL)}"), {}, load=True)
    assert chosen.probe.val_images.shape == (6, 1, 8, 8)


def test_a_val_folder_is_part_of_the_digest_and_others_keep_theirs(tmp_path):
    root = make(tmp_path, FULL)
    digests = [read(root).digest]
    save(root / "val" / "dark" / "0.png", picture(99))
    digests.append(read(root).digest)
    (root / "val" / "dark" / "0.png").rename(root / "val" / "light" / "9.png")
    digests.append(read(root).digest)
    (root / "val").rename(root / "notes")
    digests.append(read(root).digest)
    assert len(set(digests)) == 4
    images = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
    labels = np.array([0, 1])
    without = Dataset("x", ("a", "b"), images, labels, images[:1], labels[:1])
    assert digest_of(without) == "1a40558e4ba8c7c3", (
        "without a val folder, the digest is the same as in earlier versions"
    )


@pytest.mark.parametrize("name", ["my_test", "test_public", "finalTest", "holdout", "mnist-test"])
def test_a_folder_beside_train_whose_name_contains_the_missing_split_is_refused(name, tmp_path):
    root = make(tmp_path, {"train": 4, name: 2})
    assert f"the folder {name!r} would not be read, because its name is not 'test'" in refusal(root)
    (root / "test").mkdir()
    for kind in ("dark", "light"):
        save(root / "test" / kind / "0.png", picture(1))
    assert len(read(root).test_images) == 2


def test_a_folder_with_other_content_may_have_the_name_of_a_split_in_its_name(tmp_path):
    root = make(tmp_path, {"train": 10})
    save(root / "test_plots" / "loss" / "0.png", picture(1))
    assert len(read(root).test_images) == 4


def test_the_command_validates_on_the_val_folder(run_sweep, tmp_path):
    """The classes of val are swapped, so a prediction that is right in test is wrong in val."""
    root = make(tmp_path / "set", FULL)
    (root / "val" / "dark").rename(root / "val" / "x")
    (root / "val" / "light").rename(root / "val" / "dark")
    (root / "val" / "x").rename(root / "val" / "light")
    process = run_sweep(*RANDOM, "--dataset", "folder:set", "--name", "s")
    assert process.returncode == 0, process.stderr
    scores = next((tmp_path / "runs" / "s").glob("*/result.json")).read_text()
    assert '"knn/test_accuracy": 1.0' in scores
    assert '"knn/val_accuracy": 0.0' in scores

    (root / "val" / "light" / "2.png").unlink()
    before = sorted((tmp_path / "runs" / "s").rglob("*"))
    next((tmp_path / "runs" / "s").glob("*/result.json")).unlink()
    process = run_sweep("--local", "--resume", "runs/s")
    assert_refused(process, "its images or labels changed after the sweep was started")
    assert len(sorted((tmp_path / "runs" / "s").rglob("*"))) == len(before) - 1


def test_val_without_test_is_refused(run_sweep, tmp_path):
    make(tmp_path / "set", {"train": 3, "val": 2})
    assert_refused(run_sweep(*SMALL, "--dataset", "folder:set"), "val/ but no test/", "rename val/ to test/")
    assert list(tmp_path.iterdir()) == [tmp_path / "set"]


def test_val_and_validation_are_refused(tmp_path):
    message = refusal(make(tmp_path, {**FULL, "validation": 1}))
    assert "'val'" in message
    assert "'validation'" in message


NEAR = {
    "train": ["Train", "TRAIN", "training", "Training Set", "train2017", "train_images"],
    "test": ["Test", "TEST", "tests", "testing", "test_set", "test-data", "tset", "test ", "test2017"],
    "val": ["Val", "VAL", "valid", "Valid", "Validation", "vaildation", "validaton", "dev", "eval", "val2017"],
}


@pytest.mark.parametrize(("split", "name"), [(split, name) for split, names in NEAR.items() for name in names])
def test_near_misses_are_refused_with_the_expected_name(split, name, run_sweep, tmp_path):
    splits = {name: 2} if split == "train" else {"train": 3, name: 2}
    make(tmp_path / "set", splits)
    process = run_sweep(*SMALL, "--dataset", "folder:set", "--dry-run")
    if (tmp_path / "set" / split).exists():  # the file system ignores case
        pytest.skip("the file system ignores case")
    assert_refused(process, repr(name), f"because its name is not {split!r}: rename it to {split!r}")


def test_near_misses_beside_all_splits_are_refused_too(tmp_path):
    make(tmp_path, {**FULL, "valid": 1})
    assert "'valid'" in refusal(tmp_path)
    (tmp_path / "valid").rename(tmp_path / "Training")
    assert "'Training'" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["notes", "text", "latest", "valve", "tests", "strain", ".test", "測試", "test-2"])
def test_other_folders_are_no_splits(name, tmp_path):
    make(tmp_path, PLAIN)
    if name == "tests":  # a folder of programs without images
        (tmp_path / name).mkdir()
        (tmp_path / name / "test_it.py").write_text("")
    else:
        save(tmp_path / name / "x.png")
    assert len(read(tmp_path).train_images) == 8


def test_splits_that_are_no_folders_or_the_same_folder(tmp_path):
    make(tmp_path, PLAIN)
    val = tmp_path / "val"
    val.symlink_to("test")
    assert "test/ and val/ are the same folder" in refusal(tmp_path)
    val.unlink()
    val.symlink_to("gone")
    assert f"{str(val)!r} is a link that leads nowhere" in refusal(tmp_path)
    val.unlink()
    val.write_text("")
    assert f"{str(val)!r} is not a folder" in refusal(tmp_path)
    val.unlink()
    val.symlink_to(make(tmp_path / "elsewhere", {"val": 1}) / "val")
    assert len(read(tmp_path).val_images) == 2


def test_test_without_train_is_refused(tmp_path):
    make(tmp_path, {"test": 2})
    assert "no train/" in refusal(tmp_path)


@pytest.mark.parametrize(("name", "values"), [("split_seed", "[0, 1]"), ("val_fraction", "[0.1, 0.2]")])
def test_a_search_over_the_division_is_refused_where_there_is_a_val_folder(name, values, run_sweep, tmp_path):
    make(tmp_path / "set", FULL)
    arguments = (*SMALL, "--dry-run", "--set", f"{name}={values}", "--dataset")
    assert_refused(run_sweep(*arguments, "folder:set"), name, "has its own validation split")
    assert run_sweep(*arguments, "digits").returncode == 0
    process = run_sweep(*SMALL, "--dry-run", "--set", "val_fraction=[0, 0.2]", "--dataset", "folder:set")
    assert process.returncode == 0, "whether to validate at all has an effect"


def test_classes_without_train_are_for_pretraining_only(run_sweep, tmp_path):
    for name in ("cat", "dog"):
        save(tmp_path / "set" / name / "x.png")
    arguments = (*SMALL, "--dry-run", "--dataset", "folder:set")
    assert_refused(run_sweep(*arguments), "put the class folders under train/")
    assert run_sweep(*arguments, "--probe_dataset", "digits").returncode == 0
    assert len(read(tmp_path / "set").pretrain_images) == 2


@pytest.mark.parametrize(("given", "meant"), [("outer", "outer/set"), ("outer/set/train", "outer/set")])
def test_a_path_one_folder_too_high_or_too_deep(given, meant, run_sweep, tmp_path):
    make(tmp_path / "outer" / "set", PLAIN)
    process = run_sweep(*SMALL, "--dry-run", "--dataset", f"folder:{given}")
    assert_refused(process, f"did you mean folder:{tmp_path / meant}?")


# ---- Classes ---------------------------------------------------------------------------------------------------------

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))


def test_unicode_forms_of_a_name_are_one_class(tmp_path):
    digests = set()
    for i, names in enumerate([(COMPOSED, COMPOSED), (DECOMPOSED, DECOMPOSED), (COMPOSED, DECOMPOSED)]):
        for split, name in zip(PLAIN, names, strict=True):
            make(tmp_path / str(i), {split: PLAIN[split]}, (name, "f"))
        dataset = read(tmp_path / str(i))
        assert dataset.classes == ("f", COMPOSED)
        digests.add(dataset.digest)
    assert len(digests) == 1


def test_two_unicode_forms_in_one_split_are_refused(tmp_path):
    make(tmp_path, PLAIN, (COMPOSED, DECOMPOSED))
    if len(list((tmp_path / "train").iterdir())) == 1:  # the file system keeps only one form
        return
    message = refusal(tmp_path)
    assert r"'\xe9'" in message
    assert r"'e\u0301'" in message


def test_val_must_have_the_classes_of_train(tmp_path):
    make(tmp_path, FULL)
    (tmp_path / "val" / "light").rename(tmp_path / "val" / "light ")
    message = refusal(tmp_path)
    assert "only in train/: 'light';" in message
    assert "only in val/: 'light '" in message


def test_empty_and_broken_class_folders(tmp_path):
    make(tmp_path, PLAIN)
    (tmp_path / "train" / "new").symlink_to("gone")
    assert f"{str(tmp_path / 'train' / 'new')!r} is a link that leads nowhere" in refusal(tmp_path)
    for split in PLAIN:
        (tmp_path / split / "new").unlink(missing_ok=True)
        (tmp_path / split / "new").mkdir()
        (tmp_path / split / "new" / "x.heic").write_bytes(b"")
    message = refusal(tmp_path)
    assert repr(str(tmp_path / "train" / "new")) in message
    assert "x.heic" in message


def test_classes_that_differ_in_case_are_two(tmp_path):
    make(tmp_path, PLAIN, ("A", "a"))
    if len(list((tmp_path / "train").iterdir())) < 2:
        pytest.skip("the file system ignores case")
    assert read(tmp_path).classes == ("A", "a")


# ---- Files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "jp2", "avif", "PNG", "webp", "tga", "ico", "pcx", "mpo", "apng"])
def test_what_pillow_reads_is_read(suffix, tmp_path):
    Image.init()
    if Image.registered_extensions().get(f".{suffix.lower()}") not in Image.SAVE:
        pytest.skip("this Pillow does not write the format")
    save(tmp_path / f"x.{suffix}")
    messages, dataset = warned(tmp_path)
    assert messages == []
    exact = suffix not in ("jfif", "jpe", "avif", "mpo", "webp")
    size = dataset.train_images.shape[-1]
    expected = np.asarray(picture().resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    difference = np.abs(dataset.train_images[0].astype(int) - expected)
    assert (difference == 0).all() if exact else difference.mean() < 25


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_of_several_frames_the_first_is_read(suffix, tmp_path):
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    frames = [Image.new("RGB", (8, 8), colour) for colour in colours]
    lossless = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **lossless)
    with Image.open(tmp_path / f"a.{suffix}") as image:
        assert image.n_frames == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = load(f"folder:{tmp_path}", data_dir=tmp_path, image_size=8).train_images
    assert images.shape == (1, 3, 8, 8)
    assert np.array_equal(np.unique(images[0].reshape(3, -1), axis=1).T, [colours[0]])


def test_every_format_that_is_read_can_be_decoded_by_pillow_itself():
    assert {".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif"} <= {*layout.suffixes()}
    assert not {"EPS", "PDF", "MPEG", "WMF"} & {*layout.formats()}
    assert not {".eps", ".ps", ".pdf", ".mpg", ".svg", ".heic", ".h5", ".txt"} & {*layout.suffixes()}


def test_ghostscript_is_never_started(tmp_path, monkeypatch):
    """The test puts a program in Ghostscript's place that would leave a file."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    save(tmp_path / "set" / "a.png")
    save(tmp_path / "set" / "b.eps")
    messages, dataset = warned(tmp_path / "set")
    assert len(dataset.train_images) == 1
    assert "1 .eps" in messages[0]
    (tmp_path / "set" / "b.eps").rename(tmp_path / "set" / "b.png")
    assert "it is not an image" in refusal(tmp_path / "set")
    assert not (tmp_path / "started").exists()


def test_ignored_files_are_counted_once_for_a_dataset(run_sweep, tmp_path):
    root = make(tmp_path / "set", FULL)
    for name in ("a.heic", "b.HEIC", "c.svg", "d", ".DS_Store", "Thumbs.db", "desktop.ini", "._a.png"):
        (root / "val" / "dark" / name).write_bytes(b"?")
    (root / "train" / "labels.csv").write_text("")
    (root / "README").write_text("beside the splits, so not counted")
    process = run_sweep(*RANDOM, "--set", "image_size=[16, 24]", "--dataset", "folder:set")
    assert process.returncode == 0, process.stderr
    (line,) = [line for line in process.stderr.splitlines() if "ignored" in line]
    assert "5 files are ignored" in line
    assert "2 .heic" in line
    assert repr(str(root / "train" / "labels.csv")) in line
    assert messages_of(make(tmp_path / "clean", PLAIN)) == []


def messages_of(root):
    return warned(root)[0]


def test_a_folder_with_no_image_that_can_be_read(tmp_path):
    (tmp_path / "x.heic").write_bytes(b"?")
    message = refusal(tmp_path)
    assert "neither train/" in message
    assert "1 .heic" in message
    with pytest.raises(InputError, match=r"1 \.heic"):
        portable.find_images(tmp_path)


def special_files(folder):
    """Create everything that can be named x.png and is not a regular file; yield name and kind."""
    os.mkfifo(folder / "fifo.png")
    yield "fifo.png", "named pipe"
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        here = os.open(".", os.O_RDONLY)
        try:
            os.chdir(folder)  # a socket's path may have only 100 characters
            listener.bind("socket.png")
        finally:
            os.chdir(here)
            os.close(here)
        yield "socket.png", "socket"
    (folder / "device.png").symlink_to("/dev/zero")
    yield "device.png", "device"
    (folder / "broken.png").symlink_to("gone.png")
    yield "broken.png", "it is a link that leads nowhere"
    (folder / "loop.png").symlink_to("loop.png")
    yield "loop.png", "it is a link that leads nowhere"
    (folder / "empty.png").write_bytes(b"")
    yield "empty.png", "the file is empty"
    (folder / "text.png").write_text("a text")
    yield "text.png", "it is not an image"


def test_what_is_no_file_is_refused_by_name_and_never_waited_for(tmp_path):
    make(tmp_path, PLAIN)
    folder = tmp_path / "train" / "dark"
    for name, what in special_files(folder):
        message = refusal(tmp_path)
        assert repr(str(folder / name)) in message
        assert what in message
        messages, dataset = warned(tmp_path, skip_bad_images=True)
        assert len(dataset.train_images) == 8
        assert len([text for text in messages if name in text]) == 1
        (folder / name).unlink()


def test_a_pipe_in_the_real_command(run_sweep, tmp_path):
    make(tmp_path / "set", PLAIN)
    os.mkfifo(tmp_path / "set" / "test" / "dark" / "x.png")
    assert_refused(run_sweep(*SMALL, "--dataset", "folder:set"), "x.png", "named pipe")
    assert stat.S_ISFIFO((tmp_path / "set" / "test" / "dark" / "x.png").stat().st_mode)


def test_links_and_folders_called_like_images_are_followed(tmp_path):
    make(tmp_path, PLAIN)
    folder = tmp_path / "train" / "dark"
    (folder / "link.png").symlink_to("0.png")
    save(folder / "folder.png" / "x.jpg")
    assert len(read(tmp_path).train_images) == 10


# ---- Warnings, orientation, transparency -----------------------------------------------------------------------------


def test_warnings_name_the_image_and_are_joined(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    for i in range(3):
        save(tmp_path / f"{i}.png", Image.new("L", (20, 20 + i)))
    (message,) = messages_of(tmp_path)
    assert message.startswith("2 of 3 images, the first")
    assert repr(str(tmp_path / "1.png")) in message
    assert "420 pixels" in message
    (tmp_path / "2.png").unlink()
    (message,) = messages_of(tmp_path)
    assert message.startswith(f"image {str(tmp_path / '1.png')!r}: ")

    save(tmp_path / "bomb.png", Image.new("L", (30, 30)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        message = refusal(tmp_path)
    assert "bomb.png" in message
    assert "900 pixels" in message
    assert "Make it smaller" in message


@pytest.mark.parametrize("content", [b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01", b"Exif\0\0nonsense", b"Exif\0\0"])
def test_damaged_exif_data_costs_no_image(content, tmp_path):
    save(tmp_path / "x.jpg", picture(), exif=content)
    messages, dataset = warned(tmp_path)
    assert len(dataset.train_images) == 1
    assert all(str(tmp_path / "x.jpg") in message for message in messages)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(10))
def test_photographs_are_upright(orientation, suffix, tmp_path):
    """The white corner is at the top left, as in a viewer, for every stored orientation. 0 and 9 mean nothing."""
    stored = Image.new("RGB", (32, 32))
    left, top = {1: (0, 0), 2: (16, 0), 3: (16, 16), 4: (0, 16), 5: (0, 0), 6: (0, 16), 7: (16, 16), 8: (16, 0)}.get(
        orientation, (0, 0)
    )
    stored.paste((255, 255, 255), (left, top, left + 16, top + 16))
    exif = Image.Exif()
    exif[0x112] = orientation
    save(tmp_path / f"x.{suffix}", stored, exif=exif)
    shown = read(tmp_path).train_images[0].mean(axis=0) > 127
    assert shown[:16, :16].mean() > 0.95
    assert shown.mean() < 0.3


def test_transparent_pixels_keep_the_colour_of_the_file(tmp_path):
    pixels = np.zeros((32, 32, 4), dtype=np.uint8)
    pixels[:, 16:] = (10, 200, 30, 0)
    save(tmp_path / "x.png", Image.fromarray(pixels))
    image = read(tmp_path).train_images[0]
    assert (image[:, :, :16] == 0).all()
    assert (image[:, :, 16:] == np.array([10, 200, 30])[:, None, None]).all()


def test_odd_images(tmp_path):
    save(tmp_path / "long.png", Image.new("RGB", (30_000, 1), (1, 2, 3)))
    save(tmp_path / "one.png", Image.new("L", (1, 1), 7))
    frames = [Image.new("RGB", (24, 24), colour) for colour in ("black", "white")]
    save(tmp_path / "animation.gif", frames[0], save_all=True, append_images=frames[1:])
    save(tmp_path / "animation.webp", frames[0], save_all=True, append_images=frames[1:])
    save(tmp_path / "cmyk.jpg", Image.new("CMYK", (24, 24)))
    messages, dataset = warned(tmp_path)
    assert messages == []
    gif, webp, cmyk, long, one = dataset.train_images  # sorted by name
    assert gif.max() == webp.max() == 0
    assert cmyk.min() > 250
    assert (long == np.array([1, 2, 3])[:, None, None]).all()
    assert (one == 7).all()


def test_a_truncated_photograph_is_named(tmp_path):
    path = save(tmp_path / "x.jfif", picture(), format="JPEG")
    path.write_bytes(path.read_bytes()[:400])
    assert repr(str(path)) in refusal(tmp_path)
