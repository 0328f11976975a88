"""Folders of images as people have them: other names of splits, other endings, odd files, turned photographs."""

import json
import os
import unicodedata
import warnings

import numpy as np
import pytest
from PIL import Image

from raysweep import data
from raysweep.errors import InputError
from tests.conftest import here

TINY = ["--usl_type", "simclr", "--usl_epochs", "1", "--le_epochs", "1", "--batch_size", "8", "--knn_k", "3"]
TINY += ["--local", "--name", "x"]


def make(root, *splits, images=6, classes=("cat", "dog"), ending=".png"):
    """Class folders with noise of 24×24 pixels in each of the splits."""
    draws = np.random.default_rng(0)
    for split in splits:
        for label in classes:
            (root / split / label).mkdir(parents=True, exist_ok=True)
            for number in range(images):
                pixels = draws.integers(0, 256, (24, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{number}{ending}")
    return root


def load(root, **settings):
    return data.load(f"folder:{root}", data_dir=root, image_size=8, **settings)


def said(root, **settings):
    """The dataset, and the warnings that reading it gives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = load(root, **settings)
    return dataset, [str(warning.message) for warning in caught]


@pytest.mark.parametrize("name", ["val", "validation"])
def test_a_val_folder_is_the_validation_split_and_pretraining_does_not_see_it(tmp_path, name):
    dataset = load(make(tmp_path, "train", "test", name))
    assert len(dataset.pretrain_images) == len(dataset.train_images) == 12
    fit, val = data.fit_and_val(dataset, 0.1, 0)
    assert (len(fit.index), len(val.index)) == (12, 12)
    assert val.images is dataset.val_images
    _, none = data.fit_and_val(dataset, 0.0, 0)
    assert len(none.index) == 0
    before = dataset.digest
    Image.new("RGB", (24, 24)).save(tmp_path / name / "cat" / "0.png")
    assert load(tmp_path).digest != before


def test_a_sweep_is_validated_on_the_val_folder(tmp_path):
    """A val folder of images that any probe tells apart: one half is white. Test is noise."""
    root = make(tmp_path / "images", "train", "test")
    for label, left in (("cat", 0), ("dog", 12)):
        (root / "val" / label).mkdir(parents=True)
        image = Image.new("RGB", (24, 24))
        image.paste("white", (left, 0, left + 12, 24))
        for number in range(4):
            image.save(root / "val" / label / f"{number}.png")
        for number in range(20):
            image.save(root / "train" / label / f"half-{number}.png")
    done = here("run_sweep.py", "--dataset", f"folder:{root}", *TINY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "runs" / "x" / "seed=0" / "result.json").read_text())["metrics"]
    assert metrics["knn/val_accuracy"] == 1.0
    refused = here("run_sweep.py", "--dataset", f"folder:{root}", *TINY, "--set", "split_seed=[0, 1]", cwd=tmp_path)
    assert refused.returncode == 2
    assert "would give the same results, as the val folder" in refused.stderr


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (["train", "val"], "there is val/ but no test/, and a test accuracy needs test/: rename val/ to test/"),
        (["train", "validation"], "rename validation/ to test/ to test on its images, or add test/"),
        (["train", "test", "val", "validation"], "there are both 'val' and 'validation'"),
        (["train", "Test"], "the folder 'Test' would not be read, as the name that is expected is 'test'"),
        (["train", "test", "valid"], "the folder 'valid' would not be read, as the name that is expected is 'val'"),
        (["train", "test", "Val"], "the name that is expected is 'val'"),
        (["train", "testing"], "the name that is expected is 'test'"),
        (["train", "tset"], "the name that is expected is 'test'"),
        (["training", "test"], "the name that is expected is 'train'"),
        (["Train", "Test"], "the name that is expected is 'train'"),
        (["test"], "there is test/ but no train/: put the training images under train/"),
        (["."], "put the class folders under train/"),
    ],
)
def test_other_names_of_splits_are_refused_with_the_name_that_is_expected(tmp_path, folders, words):
    root = make(tmp_path / "images", *folders)
    done = here("run_sweep.py", "--dataset", f"folder:{root}", *TINY, cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["notes", "metadata", "train_2", "masks", "trailers", "latest"])
def test_an_unrelated_folder_is_no_error(tmp_path, name):
    assert len(load(make(tmp_path, "train", "test", name)).train_images) == 12


def test_all_endings_that_pillow_reads_count_and_the_others_are_named(tmp_path):
    make(tmp_path, "train", "test")
    for ending in (".jfif", ".jpe", ".jp2", ".avif", ".PNG", ".webp", ".tif"):
        for label in ("cat", "dog"):
            Image.new("RGB", (24, 24), "red").save(tmp_path / "train" / label / f"red{ending}")
    for name in ("drawing.svg", "notes.txt", "more.txt"):
        (tmp_path / "train" / "cat" / name).write_text("text")
    (tmp_path / "train" / "cat" / ".DS_Store").write_text("")
    (tmp_path / "train" / "cat" / "Thumbs.db").write_text("")
    dataset, told = said(tmp_path)
    assert len(dataset.train_images) == 12 + 14
    (line,) = told
    assert "3 files are ignored" in line
    assert "2 .txt, 1 .svg; for example " in line


def test_warnings_name_the_image_and_join_those_of_one_kind(tmp_path):
    make(tmp_path, "train", "test")
    for number in range(3):
        path = tmp_path / "train" / "cat" / f"odd-{number}.png"
        image = Image.new("P", (24, 24))
        image.save(path, transparency=bytes(range(number + 1)))
        Image.new("RGB", (24, 24)).save(path.with_suffix(".jpg"), exif=b"Exif\x00\x00MM\x00*damaged and cut off")
    _, told = said(tmp_path)
    assert told, "damaged EXIF data is warned of"
    for line in told:
        assert "odd-0" in line
        assert "\n" not in line
    assert len(told) == len(set(told)) <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_upright_as_viewers_show_them(tmp_path, orientation):
    """Against Pillow's own exif_transpose."""
    from PIL import ImageOps

    make(tmp_path, "train", "test", images=1)
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16, :16], pixels[:16, 16:], pixels[16:, :16] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / "test" / "cat" / "0.png"
    Image.fromarray(pixels).save(path, exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    dataset = data.load(f"folder:{tmp_path}", data_dir=tmp_path, image_size=32)
    np.testing.assert_array_equal(dataset.test_images[0].transpose(1, 2, 0), expected)


def test_a_transparent_pixel_has_the_colour_of_the_file(tmp_path):
    make(tmp_path, "train", "test", images=1)
    Image.new("RGBA", (24, 24), (200, 100, 50, 0)).save(tmp_path / "test" / "cat" / "0.png")
    assert load(tmp_path).test_images[0, :, 0, 0].tolist() == [200, 100, 50]


def test_a_pipe_a_broken_link_and_a_folder_called_like_an_image_never_hang(tmp_path):
    make(tmp_path, "train", "test")
    folder = tmp_path / "train" / "cat"
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(InputError, match=r"pipe\.png' \(it is a named pipe, not a file\)"):
        load(tmp_path)
    (folder / "link.png").symlink_to(tmp_path / "nothing")
    (folder / "folder.png").mkdir()
    dataset, told = said(tmp_path, skip_bad_images=True)
    assert len(dataset.train_images) == 12
    assert "2 of 14 images left out" in " ".join(told)


def test_two_unicode_spellings_of_a_class_are_one_class(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    make(tmp_path, "train", classes=(composed, "thé"))
    make(tmp_path, "test", classes=(decomposed, "thé"))
    dataset = load(tmp_path)
    assert dataset.classes == (composed, "thé")
    assert np.bincount(dataset.test_labels).tolist() == [6, 6]
    make(tmp_path, "train", classes=(decomposed,))
    with pytest.raises(InputError, match=r"'caf\\xe9' and 'cafe\\u0301'|'cafe\\u0301' and 'caf\\xe9'"):
        load(tmp_path)


def test_a_dataset_without_a_val_folder_keeps_its_digest(tmp_path):
    """The digest of these files before there were val folders, over shapes, pixels and labels."""
    import hashlib

    dataset = load(make(tmp_path, "train", "test"))
    sha = hashlib.sha256()
    for array in (dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels):
        sha.update(f"{array.shape};".encode())
        sha.update(array.tobytes())
    assert dataset.digest == sha.hexdigest()[:16]
