"""timm's models as encoders: equal to timm's own, trained end to end and by blocks, and refused in one line."""

import json
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from raysweep import parts, portable
from raysweep.config import Settings, make_settings
from raysweep.errors import InputError
from raysweep.methods.layerwise import block_losses
from raysweep.models.building import build_encoder, build_local_heads, build_symmetric_decoder
from raysweep.models.timm_models import check_size
from raysweep.training.loop import synchronise_batch_norm
from raysweep.training.state import fresh_state
from tests.support import ROOT
from tests.support.commands import here
from tests.support.networks import method_of

QUICK = {"usl_epochs": 1, "le_epochs": 1, "batch_size": 20, "precision": "fp32", "images_every": 0}


def encoder_of(name, channels=1, size=32):
    return build_encoder(Settings(encoder=f"timm/{name}"), channels, size)


@pytest.mark.parametrize("name", ["resnet10t", "test_vit", "test_convnext", "test_efficientnet"])
def test_reference_features_are_those_of_timms_own_model(name):
    """At 96 pixels no ResNet gets another stem, so timm's own model takes the same weights."""
    encoder = encoder_of(name, 3, 96).eval()
    options = {"img_size": 96} if "vit" in name else {}
    reference = timm.create_model(name, pretrained=False, num_classes=0, **options).eval()
    reference.load_state_dict(encoder.body.state_dict())
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = encoder(images)
        torch.testing.assert_close(features, reference(images))
        if parts.encoder[f"timm/{name}"].traits["blocks"]:
            torch.testing.assert_close(encoder.up_to(images, 4), features)
            outputs = encoder.layer_outputs(images)
            torch.testing.assert_close(outputs["trunk"], features)
            for layer, expected in zip(("layer1", "layer4"), (reference.layer1, reference.layer4), strict=True):
                kept = []
                hook = expected.register_forward_hook(lambda module, inputs, output, kept=kept: kept.append(output))
                reference(images)
                hook.remove()
                torch.testing.assert_close(outputs[layer], kept[0])
    assert features.shape == (2, encoder.feature_dim)


@pytest.mark.parametrize("name", ["resnet18", "resnet10t"])
def test_a_resnet_for_small_images_keeps_their_resolution(name):
    encoder = encoder_of(name)
    assert [shape[1] for shape in encoder.shapes] == [32, 32, 16, 8, 4]
    assert encoder.feature_dim == 512
    if name == "resnet18":
        ours = encoder_of("resnet18", 3).body.state_dict()
        own = build_encoder(Settings(encoder="resnet18"), 3, 32).body.state_dict()
        assert {n: w.shape for n, w in ours.items()} == {n: w.shape for n, w in own.items()}, "as our own ResNet-18"


def test_traits_are_read_from_the_model():
    assert parts.encoder["timm/resnet18"].traits["batch_norm"]
    assert not parts.encoder["timm/test_vit"].traits["batch_norm"]
    assert "timm/resnet18" in parts.encoder
    assert "timm/resnet18" not in list(parts.encoder), "the table does not list a thousand names"
    assert "resnet18/x" not in parts.encoder


def test_every_block_trains_with_every_term():
    settings = Settings(encoder="timm/resnet10t", layerwise="greedy", embedding_dim=3)
    encoder = build_encoder(settings, 1, 16)
    method = method_of(settings, encoder)
    heads, decoder = build_local_heads(encoder, settings), build_symmetric_decoder(encoder, 0)
    views = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    for block, (head, inverse) in enumerate(zip(heads, decoder.blocks, strict=True)):
        losses = block_losses(method, block, head, inverse, views, views[:2])
        losses.total.backward()
        assert all(weight.grad is not None for weight in encoder.blocks[block].parameters())
        assert decoder(encoder.up_to(views, block + 1), block + 1).shape == views.shape
        encoder.zero_grad()


@pytest.mark.parametrize(
    ("name", "layerwise"),
    [("test_efficientnet", "none"), ("mobilenetv3_small_050", "none"), ("resnet10t", "none"), ("resnet10t", "greedy")],
)
def test_synchronised_batch_norm_is_the_same_function(name, layerwise):
    """Without other processes, synchronised batch normalisation is plain batch normalisation, also on a CPU."""
    settings = Settings(encoder=f"timm/{name}", layerwise=layerwise, usl_type="simclr", head="mlp", precision="fp32")
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    states = [fresh_state(settings, 3, 32, torch.device("cpu")) for _ in range(2)]
    synchronise_batch_norm(states[1])
    synchronise_batch_norm(states[1])  # changes nothing more
    for step, (plain, changed) in enumerate(zip(*(state.steps() for state in states), strict=True)):
        kinds = [isinstance(module, nn.SyncBatchNorm) for module in changed.modules() if is_batch_norm(module)]
        assert kinds, step
        assert all(kinds), step
        losses = []
        for network in (plain, changed):
            torch.manual_seed(0)  # for dropout
            losses.append(network(images, images[:2]).total)
            losses[-1].backward()
        assert torch.equal(*losses)
        for expected, weight in zip(plain.parameters(), changed.parameters(), strict=True):
            torch.testing.assert_close(weight.grad, expected.grad)
    saved, expected = (state.encoder.state_dict() for state in reversed(states))
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[key], expected[key]) for key in saved), "the statistics and the weights are the same"
    with torch.no_grad():
        assert torch.equal(*(state.encoder.eval()(images) for state in states))


def is_batch_norm(module):
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def test_the_real_command_sweeps_embeds_and_exports(no_figures, tmp_path):
    draws = np.random.RandomState(0)
    for number in range(60):
        split, label = ("train" if number < 40 else "test"), "ab"[number % 2]
        folder = tmp_path / "images" / split / label
        folder.mkdir(parents=True, exist_ok=True)
        pixels = draws.randint(0, 256 if label == "a" else 100, (16, 16)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    base = {**QUICK, "dataset": "folder:images", "usl_type": "simclr", "knn_k": 5, "image_size": 16}
    search = [{"encoder": ["timm/test_vit", "timm/test_resnet"], "seed": [0]}]
    search.append({"encoder": ["timm/test_resnet"], "layerwise": ["greedy"], "seed": [0]})
    (tmp_path / "space.yaml").write_text(json.dumps({"name": "x", "base": base, "search": search}))
    process = here("run_sweep.py", "space.yaml", "--local", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    root = tmp_path / "runs" / "x"
    trials = sorted(path.parent for path in root.glob("*/encoder.safetensors"))
    assert len(trials) == 3
    assert here("raysweep", "report", root, cwd=tmp_path).returncode == 0
    resnet = next(trial for trial in trials if "test_resnet" in trial.name and "greedy" not in trial.name)
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "black.png")
    assert portable.embed(resnet, tmp_path / "black.png", tmp_path / "features.npz")[0] == 1
    description = portable.export(resnet, tmp_path / "weights.pt")
    assert description["architecture"] == "timm/test_resnet"
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    body = {name.removeprefix("body."): weight for name, weight in weights.items() if name.startswith("body.")}
    own = timm.create_model("test_resnet", num_classes=0, in_chans=1)
    assert own.state_dict().keys() == body.keys(), "the weights have timm's own names"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"encoder": "timm/nonsense"}, "x: encoder: timm/nonsense: timm has no model of that name"),
        ({"encoder": "timm/resnet19"}, "did you mean timm/resnet"),
        ({"encoder": "timm/resnet18.a1_in1k"}, "timm has no model of that name"),
        ({"encoder": "tim/resnet18"}, "encoder: must be 'conv6'"),
        ({"encoder": "timm/test_vit", "layerwise": "greedy", **QUICK}, "needs an encoder that is made of blocks"),
        ({"encoder": "timm/resnet18", "probe_layer": "layer5"}, "timm/resnet18 has no layer 'layer5'"),
    ],
)
def test_a_fault_is_one_line(given, words):
    with pytest.raises(InputError) as fault:
        make_settings(given, "x")
    assert words in str(fault.value)
    assert "\n" not in str(fault.value)


def test_a_size_that_a_model_cannot_take_is_one_line():
    check_size("test_vit", 1, 32)
    with pytest.raises(InputError, match=r"encoder: timm/vit_tiny_patch16_224: cannot take images of 1×8×8 \("):
        check_size("vit_tiny_patch16_224", 1, 8)


def test_without_timm_the_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError) as fault:
        make_settings({"encoder": "timm/resnet18"}, "x")
    assert str(fault.value) == (
        "x: encoder: timm/resnet18: needs the package timm; install it with pip install 'raysweep[timm]'"
    )


def test_a_name_of_timm_alone_imports_it():
    program = """
import sys
from raysweep.cli import main
assert main(["sweep", "--encoder", "tim/resnet18"]) == 2
assert not {"torch", "timm"} & set(sys.modules)
sys.modules["timm"] = None  # importing it raises ImportError
assert main(["sweep", "--encoder", "timm/nonsense"]) == 2
"""
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    _, line = process.stderr.splitlines()
    assert "needs the package timm" in line
