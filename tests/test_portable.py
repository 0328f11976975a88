"""Trained encoders outside their sweep: `raysweep embed` and `raysweep export`, as commands and as a library."""

import hashlib
import io
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
import warnings
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from raysweep import cli, plugins, portable
from raysweep.config import Settings
from raysweep.data import layout
from raysweep.data.loading import load
from raysweep.data.pixels import decode
from raysweep.errors import InputError
from raysweep.probes.features import extract
from raysweep.results.checkpoints import load_checkpoint, save_checkpoint, to_bytes
from raysweep.results.encoders import keep_encoder, save_encoder
from raysweep.training.state import fresh_state
from tests.support import ROOT, forked
from tests.support.networks import embed, make_encoder
from tests.support.trials import few_digits, read_encoder, run, trial_of


@pytest.fixture
def here(tmp_path, monkeypatch, capfd):
    """A function that runs the command in this process and the test's directory; returns status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def run(*arguments):
        status = cli.main([*map(str, arguments)])
        return status, *capfd.readouterr()

    return run


def describe(channels=1, size=8, dim=16, architecture="conv6"):
    return {"architecture": architecture, "channels": channels, "image_size": size, "embedding_dim": dim}


def trained(directory, channels=1, size=8, dim=16, architecture="conv6"):
    """Make a trial's directory with an encoder in it, and return the encoder."""
    encoder = make_encoder(architecture, channels, size, dim, seed=3)
    with torch.no_grad():
        encoder(torch.rand(8, channels, size, size))  # changes the batch-normalisation statistics
    directory.mkdir(parents=True, exist_ok=True)
    description = {**describe(channels, size, dim, architecture), "trunk_dim": encoder.feature_dim}
    save_encoder(directory, encoder.state_dict(), description)
    return encoder.eval()


def make_images(root, count=11):
    """Create images of several modes and sizes in folders."""
    rng = np.random.default_rng(0)
    for number in range(count):
        folder = root / ("b", "a/deep", ".")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        shape = (9 + number, 14, 3) if number % 2 else (8, 8 + number)
        image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        (image.convert("P") if number == 5 else image).save(folder / f"{number:02} ü.png")
    (root / "notes.txt").write_text("no image")
    (root / ".hidden.png").write_text("no image")
    return root


# ---- embed -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["trunk", "embedding"])
@pytest.mark.parametrize(("architecture", "channels", "size"), [("conv6", 1, 8), ("conv6", 3, 20), ("resnet18", 3, 12)])
def test_embedded_features_equal_the_probes_reference(tmp_path, architecture, channels, size, layer):
    encoder = trained(tmp_path / "trial", channels, size, architecture=architecture)
    folder = make_images(tmp_path / "images")
    portable.embed(tmp_path / "trial", folder, tmp_path / "f.npz", layer=layer)

    dataset = load(f"folder:{folder}", data_dir=tmp_path, image_size=size, channels=channels)
    images = torch.from_numpy(dataset.train_images)
    expected = extract(encoder, images, torch.arange(len(images)), layer).numpy()
    with np.load(tmp_path / "f.npz") as file:  # allow_pickle is off
        features, paths = file["features"], file["paths"]
        assert str(file["layer"]) == layer
        assert sorted(file.files) == ["features", "layer", "paths"]
    assert features.dtype == np.float32
    assert np.array_equal(features, expected)
    assert paths.tolist() == [str(path.relative_to(folder)) for path in layout.images_below(folder)]
    assert len(paths) == 11
    assert len(np.unique(features, axis=0)) == 11, "the features belong to different images"


def test_features_do_not_depend_on_the_batches_and_come_out_alike_again(tmp_path):
    trained(tmp_path / "trial")
    folder = make_images(tmp_path / "images")
    seen = []
    files = [tmp_path / f"{name}.npz" for name in "abc"]
    for file, batch_size in zip(files, (None, 4, None)):
        count, width = portable.embed(
            tmp_path / "trial",
            folder,
            file,
            batch_size=batch_size,
            progress=lambda done, total: seen.append((done, total)),
        )
        assert (count, width) == (11, 512)
    assert seen == [(11, 11), (4, 11), (8, 11), (11, 11), (11, 11)]
    whole, parts = (np.load(file)["features"] for file in files[:2])
    assert np.abs(whole - parts).max() <= 1e-6
    assert files[0].read_bytes() == files[2].read_bytes()


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """The last 240 of 320 images give 63 MB of features, which are their pixels."""
    trained(tmp_path / "trial", size=256, architecture="pixels")
    (tmp_path / "images").mkdir()
    for number in range(320):
        Image.new("L", (8, 8), number % 256).save(tmp_path / "images" / f"{number:03}.png")
    program = """
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from raysweep import portable
peaks = []
def note(*_):
    peaks.append(getrusage(RUSAGE_SELF).ru_maxrss)
portable.embed(Path("trial"), Path("images"), Path("f.npz"), batch_size=8, progress=note)
note()
print((peaks[-1] - peaks[9]) / 1024)
"""
    process = forked.run("-c", program, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert np.load(tmp_path / "f.npz")["features"].shape == (320, 256 * 256)
    assert float(process.stdout) < 10, "memory grew by 10 MiB or more"


def test_the_command_embeds_a_folder(tmp_path):
    trained(tmp_path / "trial")
    make_images(tmp_path / "images")
    process = forked.run("-m", "raysweep", "embed", "trial", "images", "-o", "f.npz", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout == "f.npz: trunk features of 11 images, 512 each\n"
    assert np.load(tmp_path / "f.npz")["features"].shape == (11, 512)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.npz", "images", "trial"]


def test_the_command_embeds_one_image(tmp_path, here):
    encoder = trained(tmp_path / "trial")
    folder = make_images(tmp_path / "images")
    status, out, err = here(
        "embed", "trial/encoder.safetensors", "images/02 ü.png", "-o", "one.npz", "--layer", "embedding"
    )
    assert (status, out, err) == (0, "one.npz: embedding features of 1 image, 16 each\n", "")
    one = np.load(tmp_path / "one.npz")
    pixels, _ = decode([folder / "02 ü.png"], 8, 1, False)
    expected = extract(encoder, torch.from_numpy(pixels), torch.arange(1), "embedding").numpy()
    assert np.array_equal(one["features"], expected)
    assert one["paths"].tolist() == ["02 ü.png"]


def test_the_command_says_what_it_leaves_out(tmp_path, here):
    trained(tmp_path / "trial")
    folder = make_images(tmp_path / "images")
    (folder / "b" / "00 bad.jpg").write_bytes(b"nothing")
    status, _, err = here("embed", "trial", "images", "-o", "f.npz", "--skip_bad_images", "--batch_size", 5)
    assert status == 0
    ignored, left_out = err.splitlines()
    assert ignored.startswith("warning: images: 1 file is ignored")
    assert "notes.txt" in ignored
    assert left_out.startswith("warning: 1 of 5 images left out")
    assert "00 bad.jpg" in left_out
    expected = [str(path.relative_to(folder)) for path in layout.images_below(folder) if "bad" not in path.name]
    file = np.load(tmp_path / "f.npz")
    assert file["paths"].tolist() == expected
    assert len(file["features"]) == 11


def test_names_that_are_no_valid_text_come_back(tmp_path):
    trained(tmp_path / "trial")
    folder = make_images(tmp_path / "images", count=1)
    odd = "\udcff.png"
    shutil.copy(folder / "b" / "00 ü.png", folder / odd)
    portable.embed(tmp_path / "trial", folder, tmp_path / "f.npz")
    assert np.load(tmp_path / "f.npz")["paths"].tolist() == [odd, "b/00 ü.png"]


# ---- training checkpoints --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "channels", "size"),
    [
        ({"dataset": "digits"}, 1, 8),
        ({"dataset": "digits", "encoder": "resnet18", "usl_type": "simclr"}, 1, 8),
        ({"dataset": "digits", "layerwise": "greedy"}, 1, 8),
        ({"dataset": "cifar10", "image_size": 16}, 3, 16),
        ({"dataset": "folder:/nowhere", "embedding_dim": 5}, 3, 32),
    ],
)
def test_a_training_checkpoint_gives_its_encoder(tmp_path, settings, channels, size):
    settings = Settings(**settings)
    state = fresh_state(settings, channels, size, torch.device("cpu"))
    save_checkpoint(tmp_path, {"settings": settings.model_dump(), "state": state.state_dict()})
    encoder = state.encoder.eval()
    loaded = portable.load(tmp_path / "checkpoints" / "00000001.pt")
    assert (loaded.channels, loaded.image_size) == (channels, size)
    images = torch.rand(3, channels, size, size)
    with torch.inference_mode():
        assert torch.equal(loaded(images), encoder(images))
    assert not loaded.training


POSITIONED = """
import raysweep
import torch
from torch import nn

class Positioned(nn.Module):
    def __init__(self, channels, image_size):
        super().__init__()
        self.position = nn.Parameter(torch.rand(1, 5, image_size, image_size))
        self.convolution = nn.Conv2d(channels, 5, 1)

    def forward(self, images):
        return (self.convolution(images) + self.position).relu().mean((2, 3))

@raysweep.encoder
def positioned(channels, image_size):
    "The first weight with four dimensions is not a convolution."
    return Positioned(channels, image_size)
"""
MLP = (ROOT / "examples" / "my_encoder.py").read_text()


@pytest.mark.parametrize(
    ("name", "text", "channels"), [("mlp", MLP, 1), ("mlp", MLP, 3), ("positioned", POSITIONED, 1)]
)
def test_a_checkpoint_of_a_plugins_encoder_gives_its_encoder(tmp_path, here, name, text, channels):
    (tmp_path / "mine.py").write_text(text)
    plugins.activate([plugins.Plugin("mine.py", text)])
    try:
        trial = trial_of(encoder=name, usl_type="simclr", probe_every=0)
        leaving = iter(range(100))
        assert run(tmp_path, trial, {("digits", 8, None): few_digits(channels)}, stop=lambda: next(leaving) > 6) is None
        (checkpoint,) = tmp_path.glob("checkpoints/*.pt")
        encoder = portable.load(checkpoint)
        assert (encoder.channels, encoder.image_size) == (channels, 8)
        state = fresh_state(trial.settings, channels, 8, torch.device("cpu"))
        state.load_state_dict(load_checkpoint(tmp_path)["state"])
        images = torch.rand(3, channels, 8, 8)
        with torch.inference_mode():
            assert torch.equal(encoder(images), state.encoder.eval()(images))
    finally:
        plugins.activate(())
    Image.new("L", (8, 8), 77).save(tmp_path / "image.png")
    status, out, err = here("embed", checkpoint, "image.png", "-o", "f.npz", "--plugin", "mine.py")
    assert (status, err) == (0, "")
    assert "trunk features of 1 image" in out
    status, out, err = here("export", checkpoint, "-o", "e.pt", "--plugin", "mine.py")
    assert (status, err) == (0, "")
    assert f"{name} for images of {channels}×8×8" in out


@pytest.mark.usefixtures("no_figures")
def test_encoders_of_a_real_trial_are_the_trial_s(tmp_path, run_sweep, few):
    """`embed` and `export` read the file that a sweep writes."""
    options = ["--usl_epochs", "1", "--le_epochs", "1", "--local", "--name", "x", "--output", tmp_path]
    assert run_sweep(*(f"--{name}={value}" for name, value in few.items()), *options).returncode == 0
    trial = tmp_path / "x" / "seed=0"
    encoder = portable.load(trial)
    saved = read_encoder(trial)
    assert all(torch.equal(weight, saved["encoder"][name]) for name, weight in encoder.state_dict().items())
    assert (encoder.channels, encoder.image_size) == (3, 8)
    with pytest.raises(
        InputError, match=r"has no encoder\.safetensors; give one of the trials in it, such as .*seed=0"
    ):
        portable.load(tmp_path / "x")


# ---- tensors that a state_dict lacks ---------------------------------------------------------------------------------

UNSAVED = """
import numpy as np
import raysweep
import torch
from torch import nn

class Scaled(nn.Module):
    def __init__(self, channels, image_size):
        super().__init__()
        self.linear = nn.Linear(channels * image_size**2, 4)
        self.register_buffer("scale", torch.full((4,), 3.0), persistent=False)
        self.shift = SHIFT

    def forward(self, images):
        return self.linear(images.flatten(1)) * self.scale + self.shift

@raysweep.encoder
def scaled(channels, image_size):
    "Features with a scale and a shift that its state_dict lacks."
    return Scaled(channels, image_size)
"""
SHIFTS = {
    "a plain tensor": "torch.tensor([1.0, 2.0, 3.0, 4.0])",
    "an array": "torch.from_numpy(np.array([1, 2, 3, 4], np.float32))",
    "values": "torch.tensor(torch.linspace(1, 4, 4).tolist())",
    "values of NumPy": "torch.from_numpy(torch.linspace(1, 4, 4).numpy())",
}


def check_rebuilt(directory, settings, size):
    """Check that an encoder that was saved and rebuilt has the features of the encoder, also after it was moved."""
    encoder = fresh_state(settings, 1, size, torch.device("cpu")).encoder.eval()
    keep_encoder(directory, encoder, settings)
    rebuilt = portable.load(directory)
    images = torch.rand(2, 1, size, size)
    with torch.inference_mode():
        assert torch.equal(rebuilt(images), encoder(images))
        assert torch.equal(rebuilt.to("cpu")(images), encoder(images))


@pytest.mark.parametrize("name", ["resnetblur18", "swin_tiny_patch4_window7_224"])
def test_an_encoder_of_timm_keeps_the_tensors_that_are_not_saved(tmp_path, name):
    check_rebuilt(tmp_path, Settings(encoder=f"timm/{name}"), 72)


@pytest.mark.parametrize("shift", SHIFTS)
def test_an_encoder_of_a_plugin_keeps_the_tensors_that_are_not_saved(tmp_path, shift):
    plugins.activate([plugins.Plugin("scaled.py", UNSAVED.replace("SHIFT", SHIFTS[shift]))])
    try:
        check_rebuilt(tmp_path, Settings(encoder="scaled"), 8)
        Image.new("L", (8, 8), 0).save(tmp_path / "black.png")
        portable.embed(tmp_path, tmp_path / "black.png", tmp_path / "f.npz")
        expected = 3 * portable.load(tmp_path).linear.bias.detach().numpy() + np.arange(1, 5)
        assert np.allclose(np.load(tmp_path / "f.npz")["features"], expected, atol=1e-6)
    finally:
        plugins.activate(())


# ---- export ----------------------------------------------------------------------------------------------------------


def test_exported_safetensors_hold_the_weights_and_what_they_are(tmp_path, here):
    encoder = trained(tmp_path / "trial", 3, 16)
    status, out, err = here("export", "trial", "-o", "e.safetensors")
    assert status == 0, err
    assert out == "e.safetensors: conv6 for images of 3×16×16; trunk 2048, embedding 16\n"
    with safe_open(tmp_path / "e.safetensors", "pt") as file:
        about = file.metadata()
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    assert {name: about[name] for name in ("architecture", "channels", "image_size", "embedding_dim", "trunk_dim")} == {
        "architecture": "conv6",
        "channels": "3",
        "image_size": "16",
        "embedding_dim": "16",
        "trunk_dim": "2048",
    }
    assert about["layers"].split() == ["trunk", "embedding"]
    same(weights, encoder.state_dict())


def test_exported_pt_is_the_plain_state_dict(tmp_path, here):
    encoder = trained(tmp_path / "trial", 3, 16)
    status, _, err = here("export", "trial/encoder.safetensors", "-o", "e.pt")
    assert status == 0, err
    weights = torch.load(tmp_path / "e.pt", weights_only=True)
    same(weights, encoder.state_dict())
    assert all(weight.is_contiguous() for weight in weights.values())


def same(weights, expected):
    assert set(weights) == set(expected)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


SHOWN = [
    ("conv6", 3, 32, "torch.rand(16, 3, 32, 32)"),
    ("conv6", 1, 28, "nn.functional.pad(torch.rand(16, 1, 28, 28), (2, 2, 2, 2))"),
    ("conv6", 3, 19, "nn.functional.pad(torch.rand(16, 3, 19, 19), (2, 3, 2, 3))"),
    ("resnet18", 3, 32, "torch.rand(16, 3, 32, 32)"),
    ("resnet18", 1, 13, "torch.rand(16, 1, 13, 13)"),
]


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """For each case in SHOWN, an encoder and the documented program's output for it; one process computes all."""
    text = (ROOT / "docs" / "take-it-elsewhere.md").read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "safetensors" in block]
    encoders, folders = [], []
    for architecture, channels, size, images in SHOWN:
        folder = tmp_path_factory.mktemp("shown")
        encoders.append(trained(folder / "trial", channels, size, architecture=architecture))
        portable.export(folder / "trial", folder / "encoder.safetensors")
        block = blocks[architecture == "resnet18"]
        assert "torch.rand(16, 3, 32, 32)" in block
        assert "raysweep" not in block
        after = "\ntorch.save({'images': images, 'trunk': trunk, 'embedding': embedding}, 'out.pt')\n"
        (folder / "shown.py").write_text(block.replace("torch.rand(16, 3, 32, 32)", images) + after)
        folders.append(folder)
    program = "import os, runpy, sys\nsys.modules['raysweep'] = None\n"
    program += "for folder in sys.argv[1:]:\n    os.chdir(folder)\n    runpy.run_path('shown.py')\n"
    process = forked.run("-c", program, *folders, cwd=ROOT)
    assert process.returncode == 0, process.stderr
    return dict(zip(SHOWN, zip(encoders, folders)))


@pytest.mark.parametrize("case", SHOWN, ids=lambda case: "-".join(map(str, case[:3])))
def test_the_documented_plain_torch_program_equals_ours_as_reference(shown, case):
    (encoder, folder), size = shown[case], case[2]
    out = torch.load(folder / "out.pt", weights_only=True)
    left = (out["images"].shape[-1] - size) // 2
    cut = out["images"][..., left : left + size, left : left + size]
    with torch.inference_mode():
        assert torch.allclose(out["trunk"], encoder(cut), atol=1e-5)
        assert torch.allclose(out["embedding"], embed(encoder, cut), atol=1e-5)


# ---- bad input -------------------------------------------------------------------------------------------------------


class Malicious:
    """Its pickle creates a file when it is loaded."""

    def __reduce__(self):
        return (open, ("executed", "w"))


def archive_of(pickled):
    """Return a file in PyTorch's format that contains this pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return buffer.getvalue()


def text_archive():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "hello")
    return buffer.getvalue()


def with_changes(weights=None, **changes):
    """Return an encoder file with some weights or fields changed."""
    encoder = make_encoder("conv6", 1, 8, 16, seed=0).state_dict()
    for name, weight in (weights or {}).items():
        encoder[name] = weight
    return to_bytes({**describe(), "encoder": encoder, **changes})


def without(name):
    saved = torch.load(io.BytesIO(with_changes()), weights_only=True)
    saved["encoder"].pop(name)
    return to_bytes(saved)


def flipped():
    """Return an encoder file with one bit of a weight flipped."""
    content = bytearray(with_changes())
    content[len(content) // 2] ^= 1
    return bytes(content)


BAD_FILES = {
    "truncated": (with_changes()[:-5000], "cut off or damaged"),
    "nearly empty": (with_changes()[:10], "cut off or damaged"),
    "a bit flipped": (flipped(), "cut off or damaged"),
    "empty": (b"", "not a file of PyTorch"),
    "text": (b"hello\n", "not a file of PyTorch"),
    "any zip": (text_archive(), "not a file of PyTorch"),
    "pickle": (pickle.dumps(Malicious()), "not a file of PyTorch"),
    "pickle in a zip": (archive_of(pickle.dumps(Malicious(), 2)), "more than tensors and plain values"),
    "pickle among weights": (archive_of(pickle.dumps({"encoder": Malicious()}, 2)), "more than tensors and plain"),
    "another's state_dict": (to_bytes({"fc.weight": torch.zeros(2, 2)}), "holds no encoder"),
    "a tensor": (to_bytes(torch.zeros(2)), "holds no encoder"),
    "odd checkpoint": (to_bytes({"settings": {}, "state": {"encoder": 3}}), "not a mapping of tensors"),
    "not tensors": (with_changes(encoder={"blocks.0.0.weight": [1, 2]}), "not a mapping of tensors"),
    "unknown architecture": (with_changes(architecture="vit"), "unknown architecture 'vit'; valid: conv6, resnet18"),
    "another architecture": (with_changes(architecture="resnet18"), "do not fit a resnet18 for 1×8×8 images"),
    "wrong size": (with_changes(image_size=32), "head.weight is (16, 512) instead of (16, 8192)"),
    "wrong channels": (with_changes(channels=3), "blocks.0.0.weight is (32, 1, 3, 3) instead of (32, 3, 3, 3)"),
    "impossible channels": (with_changes(channels=2), "is damaged"),
    "impossible size": (with_changes(image_size=-8), "is damaged"),
    "huge size": (with_changes(image_size=60000), "do not fit"),
    "weights missing": (without("blocks.2.0.weight"), "blocks.2.0.weight is missing"),
    "weights too many": (with_changes({"blocks.5.weight": torch.zeros(1)}), "blocks.5.weight is not a weight of"),
    "double precision": (with_changes({"head.weight": torch.zeros(16, 512).double()}), "torch.float64 instead of"),
}


def listing(root):
    """Map every path under `root` to the SHA-256 of its content, or to False for a directory."""
    return {
        path.relative_to(root): path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
    }


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_checkpoints_are_refused_and_nothing_in_them_is_run(tmp_path, monkeypatch, name):
    content, words = BAD_FILES[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.pt").write_bytes(content)
    make_images(tmp_path / "images", 3)
    before = listing(tmp_path)
    for use in (
        lambda: portable.export(tmp_path / "bad.pt", tmp_path / "e.safetensors"),
        lambda: portable.embed(tmp_path / "bad.pt", tmp_path / "images", tmp_path / "f.npz"),
    ):
        with pytest.raises(InputError) as caught:
            use()
        message = str(caught.value)
        assert words in message
        assert str(tmp_path / "bad.pt") in message
        assert listing(tmp_path) == before, "there is a new file: the pickle was run, or `embed` left something behind"


def test_the_malicious_pickle_of_these_tests_would_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Malicious())).close()
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["embed", "nowhere", "images", "-o", "f.npz"], "nowhere: does not exist"),
        (["embed", "images", "images", "-o", "f.npz"], "images: has no encoder.safetensors; give a trial's directory"),
        (["embed", "running", "images", "-o", "f.npz"], "newest training checkpoint is running/checkpoints/0"),
        (["embed", "trial", "nowhere", "-o", "f.npz"], "nowhere: no such folder or image"),
        (["embed", "trial", "empty", "-o", "f.npz"], "empty: has no images"),
        (["embed", "trial", "corrupt", "-o", "f.npz"], "corrupt/x.png"),
        (["embed", "trial", "corrupt", "-o", "f.npz", "--skip_bad_images"], "none of its 1 images can be read"),
        (["embed", "trial", "images", "-o", "taken.npz"], "taken.npz: exists"),
        (["embed", "trial", "images", "-o", "no/f.npz"], "there is no directory 'no'"),
        (["embed", "trial", "images", "-o", "f.npy"], "must end in .npz"),
        (["embed", "trial", "images"], "-o/--output"),
        (["embed", "trial", "images", "-o", "f.npz", "--layer", "head"], "invalid choice: 'head'"),
        (["embed", "trial", "images", "-o", "f.npz", "--batch_size", "0"], "--batch_size 0: must be at least 1"),
        (["embed", "trial", "images", "-o", "f.npz", "--batchsize", "1"], "did you mean --batch_size?"),
        (["export", "nowhere", "-o", "e.pt"], "nowhere: does not exist"),
        (["export", "trial", "-o", "e.onnx"], "must end in .safetensors or .pt"),
        (["export", "trial", "-o", "trial/encoder.safetensors"], "trial/encoder.safetensors: exists"),
        (["export", "trial", "-o", "no/e.pt"], "there is no directory 'no'"),
        (["export", "pickle.pt", "-o", "e.pt"], "more than tensors and plain values"),
        (["exprot"], "did you mean 'export'"),
    ],
    ids=" ".join,
)
def test_bad_arguments_end_with_one_line_and_status_2(tmp_path, here, arguments, words):
    trained(tmp_path / "trial")
    make_images(tmp_path / "images", 3)
    (tmp_path / "running" / "checkpoints").mkdir(parents=True)
    (tmp_path / "running" / "checkpoints" / "00000012.pt").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "corrupt").mkdir()
    (tmp_path / "corrupt" / "x.png").write_bytes((tmp_path / "images" / "02 ü.png").read_bytes()[:70])
    (tmp_path / "taken.npz").write_text("mine")
    (tmp_path / "pickle.pt").write_bytes(BAD_FILES["pickle in a zip"][0])
    before = listing(tmp_path)
    status, out, err = here(*arguments)
    assert status == 2
    assert out == ""
    *warned, line = err.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert len(warned) == ("--skip_bad_images" in arguments), "one warning says what was left out"
    assert listing(tmp_path) == before


def test_weights_that_are_nan_are_refused(tmp_path):
    content = with_changes({"head.weight": torch.full((16, 512), torch.nan)})
    (tmp_path / "nan.pt").write_bytes(content)
    images = make_images(tmp_path / "images", 3)
    with pytest.raises(InputError, match=r"nan\.pt: .*not finite"):
        portable.embed(tmp_path / "nan.pt", images, tmp_path / "f.npz", layer="embedding")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "nan.pt"]


@pytest.fixture
def _full_disk():
    """Let files of this process have at most 500 kB, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def _large(tmp_path):
    """Create an encoder and images whose files are larger than that."""
    trained(tmp_path / "trial", channels=3, size=32)
    (make_images(tmp_path / "images", 60) / "notes.txt").unlink()  # it would cause a warning


@pytest.mark.usefixtures("_large", "_full_disk")
@pytest.mark.parametrize("arguments", [["embed", "trial", "images", "-o", "f.npz"], ["export", "trial", "-o", "e.pt"]])
def test_a_full_disk_leaves_nothing_behind(tmp_path, here, arguments):
    before = listing(tmp_path)
    status, _, err = here(*arguments)
    assert status == 2, err
    assert "cannot be written: File too large" in err
    assert err.count("\n") == 1
    assert listing(tmp_path) == before


def test_an_output_that_was_made_meanwhile_is_kept(tmp_path):
    trained(tmp_path / "trial")
    images = make_images(tmp_path / "images", 3)
    output = tmp_path / "f.npz"
    with pytest.raises(InputError, match="exists"):
        portable.embed(tmp_path / "trial", images, output, progress=lambda done, total: output.write_text("mine"))
    assert output.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.npz", "images", "trial"]


@pytest.mark.parametrize(
    "arguments", [["embed", "none", "none", "-o", "f.npz"], ["export", "none", "-o", "e.pt"], ["export", "--help"]]
)
def test_wrong_paths_are_refused_before_torch_is_imported(tmp_path, arguments):
    program = f"""
import sys
from raysweep.cli import main
try:
    assert main({arguments!r}) == 2
except SystemExit as stop:
    assert stop.code == 0
sys.exit("imported" if "torch" in sys.modules else 0)
"""
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False
    )
    assert process.returncode == 0
