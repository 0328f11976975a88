"""`raysweep preview`: the picture shows the views that training draws, and bad input leaves no files behind."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from raysweep import api, plugins, preparation, space
from raysweep.cli import main
from raysweep.data import loading
from raysweep.errors import InputError
from raysweep.randomness import generator
from raysweep.report import preview
from tests.support import ROOT
from tests.support.images import augment

STRENGTH = str(ROOT / "search_spaces" / "strength.yaml")
ALPHA = str(ROOT / "search_spaces" / "alpha.yaml")


def pixels(path):
    """Return the picture at `path`, (H, W, 3)."""
    return np.asarray(Image.open(path).convert("RGB")).astype(np.int16)


def find(picture, image, scale):
    """Return the upper left corners (n, 2) where `picture` has `image` (C, H, W, in [0, 1]) enlarged `scale` times."""
    image = np.broadcast_to(np.asarray(image), (3, *image.shape[1:])).transpose(1, 2, 0) * 255
    order = np.abs(image - 128).sum(2).argsort(axis=None)  # gray pixels are rarer than black and white ones
    places = scale * np.stack(np.unravel_index(order, image.shape[:2]), axis=1)
    image = image.repeat(scale, axis=0).repeat(scale, axis=1)
    height, width, _ = image.shape
    row, column = places[0]
    red, value = picture[..., 0], image[row, column, 0]
    shifted = red[row : len(red) - height + 1 + row, column : red.shape[1] - width + 1 + column]
    corners = np.argwhere((shifted >= np.int16(np.ceil(value - 1))) & (shifted <= np.int16(np.floor(value + 1))))
    for row, column in places:
        values = picture[corners[:, 0] + row, corners[:, 1] + column]
        corners = corners[(np.abs(values - image[row, column]) <= 1).all(axis=1)]
    exact = [np.abs(picture[y : y + height, x : x + width] - image).max() <= 1 for y, x in corners]
    return corners[exact]


def load(settings):
    """Load the dataset that these settings pretrain on."""
    return loading.load(settings.dataset, data_dir=ROOT / "absent", image_size=settings.image_size)


def build(search=None, **base):
    return space.build({"name": "test", "base": base, "search": search or {}}, {}, "test")


def texts(figure):
    return [text.get_text() for text in figure.texts]


@pytest.mark.parametrize(("dataset", "scale"), [("digits", 9), ("digits_m", 4)])
def test_reference_the_picture_holds_the_views_that_training_draws(dataset, scale, tmp_path, capsys):
    output = tmp_path / "aug.png"
    assert main(["preview", STRENGTH, "-o", str(output), "--set", f"dataset={dataset}"]) == 0
    captured = capsys.readouterr()
    assert f"policy simclr on {dataset}, strengths 0, 0.125, 0.25, 0.5, 0.75, 1\n" in captured.out
    assert captured.err == ""

    picture = pixels(output)
    images = preview.choose_images(loading.load(dataset, data_dir=tmp_path), preview.IMAGES)
    batch = torch.from_numpy(images.repeat(preview.VIEWS, axis=0))
    rows = []
    for strength in (0, 0.125, 0.25, 0.5, 0.75, 1):
        views = augment(batch, ("simclr",), strength, False, generator(0, "preview"))
        tops = [{int(y) for y, _ in find(picture, view.numpy(), scale)} for view in views]
        # Weak views of 8×8 pixels also occur among the originals, so each row is searched below the previous one.
        rows.append(min(row for row in set.intersection(*tops) if row > (rows or [0])[-1]))
    assert len(set(np.diff(rows))) == 1
    for image in batch[:: preview.VIEWS]:  # the originals, repeated for each view
        corners = find(picture, image.numpy() / 255, scale)
        assert (corners[:, 0] == rows[0]).sum() == preview.VIEWS


def test_one_image_of_each_class_where_there_are_enough():
    digits = loading.load("digits", data_dir=ROOT / "absent")
    chosen = preview.choose_images(digits, 6)
    labels = [digits.train_labels[(digits.train_images == image).all(axis=(1, 2, 3))][0] for image in chosen]
    assert len(set(labels)) == 6
    assert len(preview.choose_images(digits, 5000)) == len(digits.train_images)


def test_strengths():
    assert preview.panels_of(build())[0].strengths == (0, 0.25, 0.5, 0.75, 1)
    assert preview.panels_of(build(strength=0.8))[0].strengths == (0, 0.25, 0.5, 0.75, 0.8, 1)
    assert preview.panels_of(build({"strength": {"grid": [2, 0.5]}}))[0].strengths == (0.5, 2)
    many = build({"strength": {"grid": [0.01 * i for i in range(1, 101)]}})
    panel = preview.panels_of(many)[0]
    assert (len(panel.strengths), panel.left_out) == (12, 88)
    assert (panel.strengths[0], panel.strengths[-1]) == (0.01, 1.0)
    assert "12 of 100 strengths" in texts(preview.draw(many, load))[0]


def test_panels_and_their_titles():
    one = texts(preview.draw(build(), load))
    assert one[0] == "test: policy simclr on digits, 8×8 gray"
    assert one[2:] == ["0\noriginal", "0.25", "0.5", "0.75", "1"]

    sweep = build({"policy": ["simclr", "noise+mask"], "strength": [0.5, 1]}, dataset="digits_m", blur=True)
    several = texts(preview.draw(sweep, load))
    assert several[0] == "test: augmented views"
    assert several[2:] == [
        "policy simclr with blur on digits_m, 16×16 RGB",
        *("original", "0.5", "1"),
        "policy noise+mask on digits_m, 16×16 RGB",
        *("original", "0.5", "1"),
    ]
    assert [str(panel) for panel in preview.panels_of(build({"dataset": ["digits", "digits_m"]}, policy="mask"))] == [
        f"policy mask on {dataset}, strengths 0, 0.25, 0.5, 0.75, 1" for dataset in ("digits", "digits_m")
    ]


def test_strengths_of_components_are_panels_of_their_own():
    sweep = build({"crop_strength": [None, 0, 0.25]}, color_strength=0.5, flip=False)
    titles = [panel.title for panel in preview.panels_of(sweep)]
    own = ["", " and crop_strength 0.0", " and crop_strength 0.25"]
    assert titles == [f"policy simclr with no flip{crop} and color_strength 0.5 on digits" for crop in own]


def test_each_value_of_a_datasets_own_parameter_is_a_panel_with_its_images():
    files = [ROOT / "examples" / "my_dataset.py"]
    sweep = api.plan({"name": "t", "base": {"dataset": "stripes"}, "search": {"noise": [0, 100, 200]}}, {},
                     plugins=files)  # fmt: skip
    panels = preview.panels_of(sweep)
    titles = [f"policy simclr on stripes{words}" for words in (", noise 0.0", "", ", noise 200.0")]
    assert [panel.title for panel in panels] == titles
    drawn = []

    def loaded(settings):
        drawn.append(settings.noise)
        return preparation.dataset_of(settings)

    figure = preview.draw(sweep, loaded)
    assert drawn == [0, 100, 200]
    assert all(any(text.startswith(title) for text in texts(figure)) for title in titles)
    originals = [axes.images[0].get_array() for axes in figure.axes[:: len(figure.axes) // 3]]
    assert not np.array_equal(originals[0], originals[1])
    assert not np.array_equal(originals[1], originals[2])
    plugins.activate(())


def test_the_baseline_and_the_seeds_are_no_panels():
    sweep = space.build({"name": "x", "search": {"seed": [0, 1], "alpha": [0, 1]}, "baseline": True}, {}, "x")
    assert len(preview.panels_of(sweep)) == 1


@pytest.mark.parametrize("suffix", ["jpg", "PDF", "svg", "webp"])
def test_other_formats(suffix, tmp_path):
    output = tmp_path / f"aug.{suffix}"
    assert main(["preview", ALPHA, "-o", str(output)]) == 0
    start = {"jpg": b"\xff\xd8\xff", "PDF": b"%PDF", "svg": b"<?xml", "webp": b"RIFF"}[suffix]
    assert output.read_bytes().startswith(start)


def test_a_folder_of_few_large_images_without_classes(tmp_path):
    for number in range(2):
        shade = np.full((200, 200, 3), 60 * number + 20, dtype=np.uint8)
        Image.fromarray(shade).save(tmp_path / f"{number}.png")
    output = tmp_path / "out.png"
    overrides = ["--set", f"dataset=folder:{tmp_path}", "--set", "image_size=200", "--set", "probe_dataset=digits"]
    assert main(["preview", ALPHA, "-o", str(output), *overrides]) == 0
    assert pixels(output).shape[1] < 2000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: SPACE.yaml, -o/--output"),
        ([ALPHA], "required: -o/--output"),
        ([ALPHA, "-o", "aug"], "ends with one of .png"),
        ([ALPHA, "-o", "aug.xyz"], "ends with one of .png"),
        ([ALPHA, "-o", "there.png"], "there.png: exists"),
        ([ALPHA, "-o", "link.png"], "link.png: exists"),
        ([ALPHA, "-o", "directory.png"], "directory.png: exists"),
        ([ALPHA, "-o", "absent/aug.png"], "there is no directory 'absent'"),
        ([ALPHA, "-o", "there.png/aug.png"], "there is no directory 'there.png'"),
        ([ALPHA, "-o", "a" * 300 + ".png"], "File name too long"),
        ([ALPHA, "-o", "/proc/aug.png"], "cannot write to /proc"),
        (["absent.yaml", "-o", "aug.png"], "absent.yaml: no such file"),
        (["bad.yaml", "-o", "aug.png"], "did you mean 'strength'?"),
        ([ALPHA, "-o", "aug.png", "--set", "policy=simclrr"], "unknown policy 'simclrr'"),
        ([ALPHA, "-o", "aug.png", "--set", "strength"], "expected NAME=VALUE"),
        ([ALPHA, "-o", "aug.png", "--set", "dataset=digitsm"], "did you mean 'digits_m'?"),
        ([ALPHA, "-o", "aug.png", "--set", "dataset=folder:absent"], "there is no folder"),
        ([ALPHA, "-o", "aug.png", "--outptu", "x"], "unknown argument --outptu, did you mean --output?"),
        ([ALPHA, "-o", "aug.png", "--set", f"image_size={list(range(8, 21))}"], "at most 12"),
    ],
    ids=lambda value: " ".join(value)[-60:] if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.png").write_bytes(b"mine")
    (tmp_path / "link.png").symlink_to("nowhere")
    (tmp_path / "directory.png").mkdir()
    (tmp_path / "bad.yaml").write_text("base: {strenght: 1}")
    before = sorted(tmp_path.rglob("*"))
    assert main(["preview", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "there.png").read_bytes() == b"mine"


def test_errors_come_before_anything_heavy_is_imported(tmp_path):
    program = f"""
import sys
from raysweep.cli import main
assert main(["preview", {ALPHA!r}, "-o", "absent/aug.png"]) == 2
assert main(["preview", {ALPHA!r}, "-o", "aug.png", "--set", "alpha=-1"]) == 2
found = {{"torch", "torchvision", "ray", "sklearn", "scipy", "matplotlib"}} & set(sys.modules)
sys.exit(f"imported: {{found}}" if found else 0)
"""
    process = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path):
    output = tmp_path / "aug.png"
    figure = preview.draw(build(), load)
    output.write_bytes(b"mine")
    with pytest.raises(InputError, match="exists"):
        preview.save(figure, output)
    assert output.read_bytes() == b"mine"


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "preview " in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["preview", "--help"])
    assert stop.value.code == 0
    assert "SPACE.yaml" in capsys.readouterr().out
