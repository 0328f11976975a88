"""The projection heads, and what follows from their batch normalisation."""

import pytest
import torch
from torch import nn

from raysweep import parts, portable, space
from raysweep.config import Settings
from raysweep.errors import InputError
from raysweep.models.building import check_batch_norm
from raysweep.results.checkpoints import save_checkpoint
from raysweep.training.loop import pretrain
from raysweep.training.state import fresh_state
from tests.support.networks import make_encoder

CPU = torch.device("cpu")
PROJECTORS = {
    "simclr": ({"head_batch_norm": False}, ["Linear+", "ReLU", "Linear+"]),
    "byol": ({}, ["Linear", "BatchNorm1d", "ReLU", "Linear+"]),
    "barlow twins and vicreg": (
        {"head_layers": 2},
        ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear+"],
    ),
    "simsiam": (
        {"head_layers": 2, "head_output_batch_norm": True},
        ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"],
    ),
}


def described(network):
    """Return the names of the layers; a `+` stands for biases."""
    layers = []
    for module in network:
        biased = isinstance(module, nn.Linear) and module.bias is not None
        layers.append(type(module).__name__ + "+" * biased)
    return layers


@pytest.mark.parametrize(("given", "expected"), PROJECTORS.values(), ids=PROJECTORS)
def test_the_projectors_of_the_papers_can_be_built(given, expected):
    head = make_encoder("conv6", 1, 8, 16, head="mlp", head_width=24, **given).head
    assert described(head) == expected
    assert head.out_features == 16
    assert head(torch.rand(5, 512)).shape == (5, 16)
    assert all(module.out_features == 24 for module in list(head)[:-2] if isinstance(module, nn.Linear))
    if given.get("head_output_batch_norm"):
        assert list(head[-1].parameters()) == [], "the embedding is neither scaled nor shifted"


def test_a_head_that_is_a_network_without_the_attribute_gets_its_width():
    assert make_encoder("conv6", 1, 8, 16, head="mlp").head.out_features == 16


@pytest.mark.parametrize("usl_type", ["ae_parallel", "vicreg"])
@pytest.mark.parametrize("layerwise", ["greedy", "random"])
def test_local_heads_are_of_the_chosen_kind_and_are_trained(usl_type, layerwise):
    settings = Settings(
        usl_type=usl_type, emb_loss="vicreg", layerwise=layerwise, head="mlp", head_width=8, embedding_dim=4,
        usl_epochs=2, batch_size=20, precision="fp32",
    )  # fmt: skip
    state = fresh_state(settings, 1, 8, CPU)
    assert len(state.heads) == 5
    assert all(described(head) == ["Linear", "BatchNorm1d", "ReLU", "Linear+"] for head in state.heads)
    assert state.heads[-1] is state.encoder.head
    images = torch.randint(256, (60, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in state.heads.state_dict().items()}
    for _ in pretrain(settings, state, images):
        pass
    moved = {
        name.split(".")[0] for name, value in state.heads.state_dict().items() if not torch.equal(value, before[name])
    }
    assert moved == set("01234") or layerwise == "random"
    assert moved


def test_a_measure_changes_no_statistic_of_a_local_head():
    settings = Settings(layerwise="greedy", head="mlp", embedding_dim=4, usl_epochs=1)
    state = fresh_state(settings, 1, 8, CPU)
    before = {name: value.clone() for name, value in state.heads.state_dict().items()}
    images = torch.rand(6, 1, 8, 8)
    one, all_together = state.embed(settings, images[:1]), state.embed(settings, images)
    torch.testing.assert_close(one, all_together[:1], msg="the embedding depends on the other images")
    assert all(torch.equal(before[name], value) for name, value in state.heads.state_dict().items())
    assert all(head.training for head in state.heads)


def test_an_encoder_with_another_head_is_loaded_from_a_checkpoint(tmp_path):
    settings = Settings(usl_type="byol", head="mlp", head_layers=2, head_width=12, embedding_dim=5)
    state = fresh_state(settings, 1, 8, CPU)
    save_checkpoint(tmp_path, {"settings": settings.model_dump(), "state": state.state_dict()})
    loaded, encoder = portable.load(tmp_path / "checkpoints" / "00000001.pt"), state.encoder.eval()
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(loaded.head(loaded(images)), encoder.head(encoder(images)))


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ({"usl_type": "byol"}, "method byol has batch norm"),
        ({"usl_type": "simsiam"}, "method simsiam has batch norm"),
        ({"usl_type": "simclr", "head": "mlp"}, "head mlp has batch norm"),
        ({"usl_type": "simclr", "head": "mlp", "head_batch_norm": False, "head_output_batch_norm": True}, "head mlp"),
        ({"usl_type": "simclr", "encoder": "resnet18"}, "encoder resnet18 has batch norm"),
        ({"usl_type": "simclr", "head": "mlp", "head_batch_norm": False}, None),
        ({"usl_type": "byol", "predictor_batch_norm": False}, None),
    ],
)
def test_batch_norm_in_several_processes_on_cpus_is_refused(base, words):
    sweep = {"base": base, "resources": {"workers": 2}}
    if words is None:
        space.build(sweep, {}, "test")
        return
    with pytest.raises(InputError, match=words):
        space.build(sweep, {}, "test")


def test_undeclared_batch_norm_is_noticed():
    networks = [nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))]
    with pytest.raises(InputError, match="head linear has batch normalisation: declare it by @head"):
        check_batch_norm(parts.head["linear"], networks, Settings())
    check_batch_norm(parts.head["mlp"], networks, Settings(head="mlp"))


def test_a_random_encoder_with_a_head_with_batch_norm_is_built():
    settings = Settings(usl_type="simclr", head="mlp", usl_epochs=0)
    assert described(fresh_state(settings, 1, 8, CPU).encoder.head)[1] == "BatchNorm1d"
