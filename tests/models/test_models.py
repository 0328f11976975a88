"""Conv6 and the decoder: shapes, the published number of weights, and initial weights."""

import pytest
import torch
import torchvision

from raysweep.config import Settings
from raysweep.models.building import build_encoder, build_head, seeded
from raysweep.models.conv6 import Conv6, flattened
from tests.support.networks import conv6_with_head, embed, make_decoder, make_encoder


def test_conv6_has_the_published_weights():
    encoder = make_encoder("conv6", 3, 32, 64, seed=0)
    assert sum(p.numel() for p in encoder.blocks.parameters()) == 360_288
    assert encoder.feature_dim == 8192
    assert encoder.head.weight.shape == (64, 8192)
    assert encoder.head.bias is None


def test_conv6_is_the_network_of_the_paper_written_out():
    encoder = make_encoder("conv6", 3, 16, 8, seed=1)
    x = torch.rand(2, 3, 16, 16)
    w = [block[0].weight for block in encoder.blocks]
    conv, pool, clip = torch.nn.functional.conv2d, torch.nn.functional.max_pool2d, torch.nn.functional.hardtanh
    h = clip(conv(x, w[0], padding=1))
    h = pool(conv(h, w[1], padding=1), 2)
    h = clip(conv(h, w[2], padding=1))
    h = pool(conv(h, w[3], padding=1), 2)
    h = pool(conv(h, w[4], padding=1), 2)
    torch.testing.assert_close(encoder(x), h.flatten(1))
    torch.testing.assert_close(embed(encoder, x), h.flatten(1) @ encoder.head.weight.T)


@pytest.mark.parametrize("size", [8, 28, 32, 37])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_goes_in_and_comes_out(size, channels):
    encoder, decoder = make_encoder("conv6", channels, size, 64, seed=0), make_decoder(channels, size, 64, seed=0)
    x = torch.rand(2, channels, size, size)
    z = embed(encoder, x)
    assert encoder(x).shape == (2, encoder.feature_dim)
    assert z.shape == (2, 64)
    assert decoder(z).shape == x.shape


def test_gradients_of_feature_maps_keep_their_memory_format():
    h = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    maps, weights, came = h * 2, torch.randn(2, 48), []
    maps.grad_fn.register_prehook(lambda gradients: came.extend(gradients))
    (flattened(maps) * weights).sum().backward()
    assert torch.equal(came[0], weights.view(2, 3, 4, 4))
    assert came[0].is_contiguous(memory_format=torch.channels_last)


def test_padding_is_zeros_around_the_image():
    x = torch.rand(1, 1, 28, 28)
    padded, plain = conv6_with_head(1, 28, 4), conv6_with_head(1, 32, 4)
    plain.load_state_dict(padded.state_dict())
    torch.testing.assert_close(padded(x), plain(torch.nn.functional.pad(x, (2, 2, 2, 2))))


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = make_encoder("conv6", 1, 8, 64, seed=5).state_dict()
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    make_decoder(1, 8, 64, seed=5)
    second = make_encoder("conv6", 1, 8, 64, seed=5).state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = make_encoder("conv6", 1, 8, 64, seed=6).state_dict()
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_reference_resnet18_is_torchvisions_with_the_small_stem():
    encoder = make_encoder("resnet18", 3, 32, 16, seed=0).eval()
    reference = torchvision.models.resnet18(weights=None)
    reference.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    reference.maxpool, reference.fc = torch.nn.Identity(), torch.nn.Identity()
    reference.load_state_dict(encoder.body.state_dict())
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(encoder(x), reference.eval()(x))
    assert encoder(x).shape == (2, encoder.feature_dim) == (2, 512)
    torch.testing.assert_close(embed(encoder, x), encoder(x) @ encoder.head.weight.T)
    h = reference.layer1(reference.relu(reference.bn1(reference.conv1(x))))
    assert h.shape == (2, 64, 32, 32), "no stride and no pooling before the first stage"
    assert sum(p.numel() for p in encoder.body.parameters()) == 11_168_832  # CIFAR's ResNet-18 without a classifier


@pytest.mark.parametrize(("init", "variance"), [("pytorch", 1 / 3), ("kaiming", 2)])
def test_variance_of_the_initial_convolutions_over_fan_in(init, variance):
    encoder = make_encoder("conv6", 3, 32, 64, seed=0, init=init)
    for block in encoder.blocks[1:]:  # the first has too few weights for a sharp estimate
        weight = block[0].weight
        assert weight.var().item() * weight[0].numel() == pytest.approx(variance, rel=0.05)
    assert torch.equal(encoder.head.weight, make_encoder("conv6", 3, 32, 64, seed=0).head.weight)


KAIMING = [0.7749096, 0.02933975, 0.05786722, -0.04668756, 0.02940441]
"""The first weight of each convolution for seed 3, as the results in the docs have them."""


def test_reference_kaiming_weights_follow_the_default_head():
    encoder = make_encoder("conv6", 1, 8, 64, seed=3, init="kaiming")
    assert [block[0].weight.flatten()[0].item() for block in encoder.blocks] == pytest.approx(KAIMING, rel=1e-5)
    with seeded(3, "encoder"):
        reference = conv6_with_head(1, 8, 64, init="kaiming")
        reference.draw_weights()
    assert all(map(torch.equal, encoder.parameters(), reference.parameters()))


@pytest.mark.parametrize("init", ["pytorch", "kaiming"])
@pytest.mark.parametrize("head", [{"head": "linear"}, {"head": "mlp"}, {"head": "mlp", "head_width": 8}], ids=str)
def test_initial_weights_are_the_same_whatever_head_follows(init, head):
    control, point = (Settings(init=init, seed=3), Settings(init=init, seed=3, embedding_dim=16, **head))
    default, encoder = build_encoder(control, 1, 8), build_encoder(point, 1, 8)
    assert all(map(torch.equal, default.blocks.parameters(), encoder.blocks.parameters()))
    with seeded(3, "encoder"):  # the head is drawn after PyTorch's own weights
        expected = build_head(point, Conv6(1, 8).feature_dim)
    assert all(map(torch.equal, expected.parameters(), encoder.head.parameters()))
