"""Encoders and heads of the user's own: faults that would only show after pretraining are refused before it."""

import copy
from typing import Annotated

import pytest
import torch
from pydantic import Field
from torch import nn

import raysweep
from raysweep import parts, plugins
from raysweep.config import Settings
from raysweep.models.building import build_encoder, fit_encoder
from raysweep.part_checks import check_blocks, check_layers
from raysweep.probes.cached_features import CachedFeatures
from raysweep.probes.features import read_layers
from raysweep.probes.label_free import LIDAR_WIDEST, check_lidar
from raysweep.results.encoders import describe
from raysweep.results.feature_cache import FeatureCache
from raysweep.space.evaluation import same_network

pytestmark = pytest.mark.usefixtures("no_figures")
QUICK = {"usl_epochs": 1, "le_epochs": 1, "probe_every": 0, "images_every": 0, "projector_images": 0}
PIXELS = 3 * 8 * 8


@pytest.fixture(autouse=True)
def _only_built_in_parts():
    yield
    plugins.activate(())


@pytest.fixture
def refused(few, tmp_path):
    """Return what a sweep with a part of one's own says that refuses the part."""

    def run(part, **settings):
        space = {"name": "s", "base": {**QUICK, "precision": "fp32", **few, **settings}}
        with pytest.raises(raysweep.RaysweepError) as refusal:
            raysweep.run(space, parts=[part], local=True, output=tmp_path / "runs")
        assert not (tmp_path / "runs").exists(), "nothing has started"
        assert "\n" not in str(refusal.value)
        return str(refusal.value)

    return run


class Clash(nn.Module):
    """An encoder with an attribute of a name that raysweep sets."""

    def __init__(self, name, value):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 16))
        self.last = name if isinstance(value, nn.Module) else "body"
        setattr(self, name, value)

    def forward(self, images):
        features = self.body(images)
        return features if self.last == "body" else getattr(self, self.last)(features)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("head", nn.Linear(16, 32), "encoder own has an attribute head, but raysweep sets head to the projection head"),
        ("head", nn.Identity(), "encoder own has an attribute head"),
        ("channels", 32, "encoder own has channels=32, but raysweep uses channels for the images, whose value is 3;"),
        ("image_size", (8, 8), "encoder own has image_size=(8, 8), but raysweep uses image_size for the images"),
        ("feature_dim", 32, "features of an encoder with feature_dim 32 have the shape (8, 16); it must be (8, 32)"),
    ],
)
def test_an_encoder_that_uses_a_name_of_raysweep_for_something_else_is_refused(refused, name, value, words):
    @raysweep.encoder(name="own")
    def own(channels, image_size):
        return Clash(name, copy.deepcopy(value))

    assert words in refused(own, encoder="own")


def test_a_head_that_says_a_wrong_width_is_refused(refused):
    @raysweep.head(name="own")
    def own(feature_dim, embedding_dim):
        network = nn.Sequential(nn.Linear(feature_dim, embedding_dim))
        network.out_features = 3
        return network

    assert "head own: has out_features=3; it must be 64" in refused(own, head="own", usl_type="byol")


def test_an_encoder_may_say_the_sizes_of_the_images_itself():
    class Sized(Clash):
        channels = property(lambda self: 3)

    @raysweep.encoder(name="own")
    def own(channels, image_size):
        return Sized("image_size", image_size)

    plugins.activate(plugins.given((), [own]))
    encoder = build_encoder(Settings(encoder="own"), 3, 8)
    assert (encoder.channels, encoder.image_size, encoder.feature_dim) == (3, 8, 16)
    assert encoder(torch.zeros(2, 3, 8, 8)).shape == (2, 16)


class Stack(nn.Sequential):
    """An `nn.Sequential` with optional methods of an encoder."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(PIXELS, 16), nn.Linear(16, 8))
        self.register_buffer("mean", torch.zeros(3, 8, 8))

    def fit(self, images):
        self.mean.copy_(images.float().mean(0))

    def layer_outputs(self, images):
        first = self[1](self[0](images))
        return {"layer1": first, "trunk": self[2](first)}


def test_a_class_derived_from_sequential_keeps_its_optional_methods():
    @raysweep.encoder(name="own", layers=("layer1",))
    def own(channels, image_size):
        return Stack()

    plugins.activate(plugins.given((), [own]))
    encoder = build_encoder(Settings(encoder="own"), 3, 8)
    images = torch.arange(2 * PIXELS).remainder(251).to(torch.uint8).reshape(2, 3, 8, 8)
    fit_encoder(encoder, images, seed=0)
    assert encoder.state_dict()["layers.mean"].equal(images.float().mean(0))
    copied = copy.deepcopy(encoder)
    layer, embedding = read_layers(copied, images.float() / 255, ("layer1", "embedding"))
    assert layer.shape == (2, 16)
    assert embedding.equal(encoder.head(encoder(images.float() / 255))), "the head is no layer of the encoder"


class Blocks(nn.Module):
    """An encoder of two blocks, with all that layer-wise training and its probes read."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2)), nn.Sequential(nn.Flatten(), nn.ReLU())]
        )

    def up_to(self, images, k):
        for block in self.blocks[:k]:
            images = block(images)
        return images

    def width(self, k):
        return 64

    def inverse_block(self, k):
        if k:
            return nn.Unflatten(1, (4, 4, 4))
        return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(4, 3, 3, padding=1))

    def layer_outputs(self, images):
        first = self.blocks[0](images)
        return {"layer1": first, "trunk": self.blocks[1](first)}

    def forward(self, images):
        return self.blocks[1](self.blocks[0](images))


def lacks(name):
    """Return a class of encoders without one of the attributes of `Blocks`."""
    return type("Lacking", (Blocks,), {name: property(lambda self: (_ for _ in ()).throw(AttributeError(name)))})


def changed(name, function):
    """Return a class of encoders in which a method returns something else."""
    return type("Changed", (Blocks,), {name: function})


def declared(cls, **traits):
    @raysweep.encoder(name="own", **{"blocks": 2, **traits})
    def own(channels, image_size):
        return cls()

    return own


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        *(
            (lacks(name), f"the module has no attribute '{name}', which")
            for name in ("up_to", "width", "inverse_block")
        ),
        (lacks("layer_outputs"), "the module has no attribute 'layer_outputs', whose layers the probes read"),
        (
            changed("layer_outputs", lambda self, images: {"trunk": self(images)}),
            "layer_outputs lacks the layer 'layer1'",
        ),
        (
            changed("layer_outputs", lambda self, images: {"layer1": self(images), "trunk": self.blocks[0](images)}),
            "layer_outputs: values of 'trunk' have the shape (8, 4, 4, 4); it must be (8, 64)",
        ),
        (
            changed("layer_outputs", lambda self, images: {"layer1": self(images).mean(1), "trunk": self(images)}),
            "layer_outputs: 'layer1' is (8,); it must be a tensor (8, …)",
        ),
        (
            changed("up_to", lambda self, images, k: self(images) if k else images),
            "outputs of up_to(images, 1) have the shape (8, 64); it must be (8, 4, 4, 4)",
        ),
        (
            changed("up_to", lambda self, images, k: Blocks.up_to(self, images, k).flatten(1)),
            "outputs of up_to(images, 0) have the shape (8, 192); it must be (8, 3, D, D)",
        ),
        (changed("width", lambda self, k: 16), "width(0) is 16, but the block's output has 64 numbers"),
        (
            changed("inverse_block", lambda self, k: nn.Identity()),
            "outputs of inverse_block(0) have the shape (8, 4, 4, 4); it must be (8, 3, 8, 8)",
        ),
        (
            changed("forward", lambda self, images: Blocks.forward(self, images)[:, :8]),
            "layer_outputs: values of 'trunk' have the shape (8, 64); it must be (8, 8)",
        ),
    ],
)
def test_an_encoder_of_blocks_without_what_layer_wise_training_reads_is_refused(refused, cls, words):
    assert words in refused(declared(cls), encoder="own", layerwise="greedy")


def test_an_encoder_that_declares_another_number_of_blocks_is_refused(refused):
    assert "own: declares 3 blocks, but has 2" in refused(
        declared(changed("layer_outputs", lambda s, x: {**Blocks.layer_outputs(s, x), "layer2": s(x)}), blocks=3),
        encoder="own",
    )


@pytest.mark.parametrize("size", [8, 28])
@pytest.mark.parametrize("name", ["conv6", "timm/resnet18"])
def test_the_encoders_of_blocks_of_the_package_have_what_is_asked_of_others(name, size):
    encoder, part = build_encoder(Settings(encoder=name), 3, size).eval(), parts.encoder[name]
    images = torch.rand(8, 3, size, size)
    with torch.no_grad():
        check_layers(part, encoder, images)
        check_blocks(part.traits["blocks"], encoder, images)


def test_a_layer_wise_sweep_of_an_encoder_of_blocks_runs_with_a_probe_on_each_block(few, tmp_path):
    space = {"name": "s", "base": {**QUICK, "precision": "fp32", **few, "encoder": "own", "layerwise": "greedy"}}
    results = raysweep.run(space, parts=[declared(Blocks)], local=True, output=tmp_path / "runs")
    row = results.frame().iloc[0]
    assert row["status"] == "finished"
    assert row["linear/layer1/test_accuracy"] > 0
    assert row["linear/layer2/test_accuracy"] == row["linear/test_accuracy"], "the last block is the features"


@raysweep.encoder(name="narrow", blocks=2)
def narrow(channels, image_size, *, narrow_width: Annotated[int, Field(ge=1), "Number of features."] = 16):
    """A linear map of the pixels, which says that it consists of blocks."""
    return nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, narrow_width))


@raysweep.encoder(name="wrapped")
def wrapped(channels, image_size, *, wraps: Annotated[str, raysweep.Chooses("encoder"), "Encoder."] = "narrow"):
    """Another encoder with a ReLU."""
    return nn.Sequential(wraps(channels, image_size), nn.ReLU())


@raysweep.head(name="normed", batch_norm=True)
def normed(feature_dim, embedding_dim, *, normed_head: Annotated[str, raysweep.Chooses("head"), "Head."] = "mlp"):
    """Another head after batch normalisation."""
    return nn.Sequential(nn.BatchNorm1d(feature_dim), normed_head(feature_dim, embedding_dim))


CHOOSING = [narrow, wrapped, normed]
CHOSEN = {"encoder": "wrapped", "narrow_width": 24, "head": "normed", "head_width": 48}
"""Settings in which an encoder and a head choose parts with parameters that have other values than the defaults."""


def test_an_encoder_whose_parts_choose_other_parts_is_read_again(few, tmp_path):
    space = {"name": "s", "base": {**QUICK, "precision": "fp32", **few, **CHOSEN}}
    results = raysweep.run(space, parts=CHOOSING, local=True, output=tmp_path)
    encoder = results.encoder(results.trials[0])
    assert encoder.feature_dim == 24
    assert 48 in {len(weight) for weight in encoder.head.parameters()}
    checkpoint = {"settings": Settings(**CHOSEN).model_dump(), "images": (3, 8)}
    assert describe(checkpoint, {})["arguments"].items() >= {"narrow_width": 24, "head_width": 48}.items()


@pytest.mark.parametrize("change", [{"narrow_width": 25}, {"head_width": 49}, {"head_output_batch_norm": True}])
def test_parameters_of_chosen_parts_belong_to_the_network(tmp_path, change):
    plugins.activate(plugins.given((), CHOOSING))
    one, other = Settings(**CHOSEN), Settings(**{**CHOSEN, **change})
    assert same_network(one, one.model_copy())
    assert not same_network(one, other)
    encoder, images = build_encoder(one, 3, 8).eval(), torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    for settings in (one, other):
        cached = CachedFeatures(FeatureCache(tmp_path, 10**6), settings, "data")
        cached.extract("fit", encoder, images, torch.arange(4), ("trunk",))
    assert len(list(tmp_path.iterdir())) == 2, "the same weights may give other features"


def test_lidar_of_an_encoder_that_a_chosen_part_makes_too_wide_is_refused():
    plugins.activate(plugins.given((), CHOOSING))
    trials = [(Settings(encoder="wrapped", narrow_width=width), (3, 8)) for width in (8, LIDAR_WIDEST + 1)]
    with pytest.raises(raysweep.RaysweepError, match=f"the trunk of wrapped has {LIDAR_WIDEST + 1:,}"):
        check_lidar("label_free/trunk_lidar", trials)
