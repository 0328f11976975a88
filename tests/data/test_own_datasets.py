"""Datasets from torch, NumPy and Hugging Face objects."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset
from torchvision.datasets import FakeData

from raysweep import Dataset
from raysweep.data.named import all_digits, divide_digits
from raysweep.errors import InputError

DRAWS = np.random.RandomState(0)
GRAY = DRAWS.randint(0, 256, (6, 1, 5, 5)).astype(np.uint8)
COLOUR = DRAWS.randint(0, 256, (6, 3, 5, 5)).astype(np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def as_picture(pixels):
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


FORMS = {
    "PIL": as_picture,
    "uint8 tensor": torch.from_numpy,
    "float tensor": lambda pixels: torch.from_numpy(pixels).float() / 255,
    "float64 array": lambda pixels: pixels / 255,
}


@pytest.mark.parametrize("images", [GRAY, COLOUR], ids=["gray", "colour"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_image_gives_the_same_pixels(images, form):
    pairs = [(FORMS[form](image), int(label)) for image, label in zip(images, LABELS)]
    dataset = Dataset.from_torch(pairs, pairs[:3], name="mine")
    assert dataset.train_images.dtype == np.uint8
    np.testing.assert_array_equal(dataset.train_images, images)
    np.testing.assert_array_equal(dataset.test_images, images[:3])
    np.testing.assert_array_equal(dataset.train_labels, LABELS)
    assert dataset.train_labels.dtype == np.int64
    assert dataset.classes == ("0", "1", "2")


def test_torch_datasets_are_read_whole_and_their_classes_are_kept():
    images, labels = all_digits()
    known = divide_digits("digits", images, labels)
    train = TensorDataset(torch.from_numpy(known.train_images) / 255, torch.from_numpy(known.train_labels))
    test = TensorDataset(torch.from_numpy(known.test_images), torch.from_numpy(known.test_labels))
    train.classes = [f"digit {number}" for number in range(10)]
    dataset = Dataset.from_torch(train, test)
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        np.testing.assert_array_equal(getattr(dataset, name), getattr(known, name))
    assert dataset.classes[3] == "digit 3"
    fake = FakeData(4, (3, 8, 8), 2)
    assert Dataset.from_torch(fake, fake).train_images.shape == (4, 3, 8, 8)


@pytest.mark.parametrize(
    "order",
    [lambda x: x, lambda x: x.transpose(0, 2, 3, 1), lambda x: x / 255],
    ids=["channels first", "channels last", "float"],
)
def test_numpy_arrays_may_have_channels_first_or_last(order):
    dataset = Dataset.from_numpy(order(COLOUR), LABELS, order(COLOUR[:2]), LABELS[:2], classes=("a", "b", "c"))
    np.testing.assert_array_equal(dataset.train_images, COLOUR)
    assert dataset.classes == ("a", "b", "c")
    flat = Dataset.from_numpy(GRAY[:, 0], LABELS, GRAY[:, 0], LABELS)
    np.testing.assert_array_equal(flat.train_images, GRAY)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (COLOUR[:, :2], LABELS, r"have the shape \(6, 2, 5, 5\); expected \(N, C, H, W\) with 1 or 3 channels"),
        (COLOUR.astype(np.int32), LABELS, "pixels are int32; expected uint8, or real numbers in"),
        (COLOUR / 100, LABELS, r"pixels are in \[.*\]; expected \[0, 1\], without normalisation"),
        (COLOUR * np.nan, LABELS, r"pixels are in \[nan, nan\]"),
        (COLOUR[:0], LABELS[:0], "has no images"),
        (COLOUR, LABELS[:4], r"labels have the shape \(4,\); expected \(6,\)"),
        (COLOUR, LABELS - 1, "labels must be whole numbers from 0"),
        (COLOUR, LABELS / 2, "labels must be whole numbers from 0"),
    ],
)
def test_arrays_of_another_kind_are_refused(images, labels, words):
    with pytest.raises(InputError, match=f"mine: train: .*{words}"):
        Dataset.from_numpy(images, labels, COLOUR, LABELS, name="mine")


def test_images_of_several_sizes_or_channels_are_refused():
    small, large = Image.new("L", (5, 5)), Image.new("L", (6, 5))
    with pytest.raises(InputError, match="mine: train: image 1 is 1×5×6, but image 0 is 1×5×5; give all images one"):
        Dataset.from_torch([(small, 0), (large, 1)], [(small, 0)], name="mine")
    with pytest.raises(InputError, match="train images are 1×5×5, but test images are 1×5×6"):
        Dataset.from_torch([(small, 0)], [(large, 0)])
    for mode in ("RGBA", "LA", "CMYK"):
        with pytest.raises(InputError, match=f"mine: train: image 0 has the mode {mode}; convert it, for example by"):
            Dataset.from_torch([(Image.new(mode, (5, 5)), 0)], [(small, 0)], name="mine")
    with pytest.raises(InputError, match=r"mine: train: image 0: images have the shape \(1, 5, 5, 4\)"):
        Dataset.from_torch([(np.zeros((5, 5, 4), np.uint8), 0)], [(small, 0)], name="mine")
    colour = Image.new("RGB", (5, 5))
    words = r'image 1 has 3 channels \(RGB\), but image 0 has 1 channel \(gray\); convert all .* image.convert\("RGB"\)'
    with pytest.raises(InputError, match=words):
        Dataset.from_torch([(small, 0), (colour, 1)], [(small, 0)])
    Dataset.from_torch([(each.convert("RGB"), 0) for each in (small, colour)], [(colour, 0)])
    with pytest.raises(InputError, match="item 0 is Image; expected an image and its label"):
        Dataset.from_torch([small], [(small, 0)])
    with pytest.raises(InputError, match="the label 2 is too large for 2 classes"):
        Dataset.from_numpy(GRAY, LABELS, GRAY, LABELS, classes=("a", "b"))
    palette = Image.new("P", (5, 5))
    assert Dataset.from_torch([(palette, 0)], [(palette, 0)]).train_images.shape == (1, 3, 5, 5)


def test_a_hugging_face_dataset_keeps_the_names_of_its_classes():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog", "eel"])}
    )
    rows = {"picture": [as_picture(pixels) for pixels in COLOUR], "kind": LABELS.tolist()}
    split = datasets.Dataset.from_dict(rows, features=features)
    both = datasets.DatasetDict({"train": split, "test": split.select([0, 1])})
    dataset = Dataset.from_huggingface(both, image="picture", label="kind")
    np.testing.assert_array_equal(dataset.train_images, COLOUR)
    assert dataset.classes == ("cat", "dog", "eel")
    with pytest.raises(InputError, match="mine: has no column 'image'; it has picture, kind"):
        Dataset.from_huggingface(both, name="mine")
    with pytest.raises(InputError, match="has no split 'valid'; it has train, test"):
        Dataset.from_huggingface(both, image="picture", label="kind", test="valid")
