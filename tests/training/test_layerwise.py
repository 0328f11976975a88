"""Layer-wise training: each stage trains the right weights, minimises the right loss, and changes nothing else."""

import copy

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits
from torch.nn import functional as F

from raysweep.config import Settings
from raysweep.methods import losses
from raysweep.methods.layerwise import block_losses
from raysweep.models.building import build_symmetric_decoder
from raysweep.models.decoders import SymmetricDecoder
from raysweep.training.loop import pretrain
from raysweep.training.state import fresh_state, state_of
from tests.support.networks import conv6_with_head, make_encoder, method_of

CPU = torch.device("cpu")
POOLS = (False, True, False, True, True)
METHODS = {
    "autoencoder": {"usl_type": "ae_single"},
    "denoising autoencoder": {"usl_type": "ae_single", "denoising": True},
    "parallel autoencoder": {"usl_type": "ae_parallel"},
    "parallel denoising autoencoder": {"usl_type": "ae_parallel", "denoising": True},
    "parallel autoencoder with hinge": {"usl_type": "ae_parallel", "emb_loss": "hinge"},
    "simclr": {"usl_type": "simclr"},
}


def digit_images(count=60):
    images = load_digits().images[:count]
    return torch.from_numpy((images * 255 / 16).round().astype(np.uint8)[:, None])


def settings_of(**given):
    return Settings(**{"precision": "fp32", "usl_epochs": 2, "batch_size": 20, "usl_lr": 1e-3, **given})


def weights(state):
    """Return every weight of encoder blocks, local heads and decoder blocks by its block's number, from 0."""
    values = {}
    for name, module in (("block", state.encoder.blocks), ("head", state.heads)):
        for k, part in enumerate(module):
            values.update({(k, name, key): value.clone() for key, value in part.state_dict().items()})
    if state.decoder is not None:
        for k, part in enumerate(state.decoder.blocks):
            values.update({(k, "decoder", key): value.clone() for key, value in part.state_dict().items()})
    return values


def moved(before, after):
    return {key for key in before if not torch.equal(before[key], after[key])}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_greedy_stage_moves_its_block_decoder_block_and_head_and_nothing_else(method):
    settings = settings_of(layerwise="greedy", **method)
    state = fresh_state(settings, 1, 8, CPU)
    before, epochs = weights(state), 0
    for _ in pretrain(settings, state, digit_images()):
        after = weights(state)
        stage = epochs // settings.usl_epochs
        expected = {key for key in before if key[0] == stage}
        if method["usl_type"] == "ae_single":
            expected = {key for key in expected if key[1] != "head"}  # no loss reads the embedding of a single view
        assert moved(before, after) == expected
        before, epochs = after, epochs + 1
    assert epochs == state.epoch == 5 * settings.usl_epochs == settings.pretrain_epochs


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_random_layerwise_training_moves_one_block_a_batch_drawn_uniformly(method):
    settings = settings_of(layerwise="random", usl_epochs=12, batch_size=20, **method)
    state = fresh_state(settings, 1, 8, CPU)
    before, drawn = weights(state), []
    for _ in pretrain(settings, state, digit_images(20)):  # one batch per epoch
        after = weights(state)
        (block,) = {key[0] for key in moved(before, after)}  # momentum must not move an idle block either
        drawn.append(block)
        before = after
    assert len(drawn) == 60
    assert stats.chisquare(np.bincount(drawn, minlength=5)).pvalue > 1e-3


def test_a_block_that_was_trained_before_does_not_coast_on_its_momentum():
    settings = settings_of(layerwise="random", usl_epochs=4, batch_size=20)
    state = fresh_state(settings, 1, 8, CPU)
    last = {}
    for _ in pretrain(settings, state, digit_images(20)):
        for key, value in weights(state).items():
            steps = state.optimizers[key[0]].state
            count = max((int(entry["step"]) for entry in steps.values()), default=0)
            if (key, count) in last:
                assert torch.equal(last[key, count], value), "a block's weights depend only on the block's own steps"
            last[key, count] = value


@pytest.mark.parametrize("usl_type", ["simclr", "barlow_twins", "vicreg"])
def test_greedy_with_one_block_is_ordinary_training(usl_type):
    images = digit_images()
    states = {}
    for layerwise in ("none", "greedy"):
        torch.manual_seed(0)
        encoder = conv6_with_head(1, 8, 16, depth=1)
        encoder.blocks[0].append(torch.nn.BatchNorm2d(32))
        settings = settings_of(usl_type=usl_type, layerwise=layerwise, usl_epochs=3, head="mlp")
        states[layerwise] = state_of(settings, encoder, CPU)
        assert len(list(pretrain(settings, states[layerwise], images))) == 3
    plain, greedy = (states[name].encoder.state_dict() for name in ("none", "greedy"))
    assert all(torch.equal(plain[name], greedy[name]) for name in plain)


def test_the_decoder_blocks_mirror_the_encoder_and_compose_into_a_decoder():
    encoder = make_encoder("conv6", 3, 12, 8, seed=0)
    decoder = build_symmetric_decoder(encoder, seed=0)
    x = torch.rand(2, 3, 12, 12)
    h = [F.pad(x, (2, 2, 2, 2))]
    for block in encoder.blocks:
        h.append(block(h[-1]))
    for k, block in enumerate(decoder.blocks):
        assert block(h[k + 1]).shape == h[k].shape, f"block {k + 1} leads back to what the encoder's block {k + 1} read"
    image = h[5]
    for k in (4, 3, 2, 1, 0):
        weight, bias = (decoder.state_dict()[f"blocks.{k}.{int(POOLS[k])}.{part}"] for part in ("weight", "bias"))
        image = F.interpolate(image, scale_factor=2, mode="nearest") if POOLS[k] else image
        image = F.conv2d(image, weight, bias, padding=1)
        image = image.clamp(-1, 1) if k in (1, 3) else image  # where the encoder block's input is a Hardtanh's output
    torch.testing.assert_close(decoder(encoder.up_to(x, 5), 5), image[..., 2:14, 2:14])
    assert decoder(encoder.up_to(x, 5), 5).shape == x.shape
    assert decoder(encoder.up_to(x, 2), 2).shape == x.shape, "the decoder works from any block"


@pytest.mark.parametrize("denoising", [False, True])
@pytest.mark.parametrize("block", range(5))
def test_reference_local_objective_is_the_formula(block, denoising):
    encoder = make_encoder("conv6", 1, 8, 8, seed=0)
    decoder = SymmetricDecoder(encoder)
    head = torch.nn.Linear(encoder.width(block), 8, bias=False)
    clean, views = torch.rand(6, 1, 8, 8), torch.rand(12, 1, 8, 8)
    settings = Settings(usl_type="ae_parallel", denoising=denoising, alpha=0.3, layerwise="greedy", precision="fp32")
    got = block_losses(method_of(settings, encoder), block, head, decoder.blocks[block], views, clean)
    got.total.backward()
    trained = {id(p) for part in (encoder.blocks[block], decoder.blocks[block], head) for p in part.parameters()}
    for p in (*encoder.parameters(), *decoder.parameters(), *head.parameters()):
        assert (p.grad is not None) == (id(p) in trained), "only weights of the block get a gradient"

    def below(x):
        for module in encoder.blocks[:block]:
            x = module(x)
        return x

    total = 0
    z = []
    for view in views.chunk(2):
        target = below(clean if denoising else view)
        h = encoder.blocks[block](below(view))
        total = total + ((decoder.blocks[block](h) - target) ** 2).mean()
        z.append(head(h.flatten(1)))
    torch.testing.assert_close(got.total, total + 0.3 * ((z[0] - z[1]) ** 2).mean())
    simclr = Settings(usl_type="simclr", temperature=0.2, layerwise="greedy", precision="fp32")
    torch.testing.assert_close(
        block_losses(method_of(simclr, encoder), block, head, None, views, clean).total,
        losses.nt_xent(*z, temperature=0.2),
    )


@pytest.mark.parametrize(("usl_type", "alone"), [("simclr", False), ("barlow_twins", True), ("vicreg", True)])
def test_every_block_normalises_the_views_as_end_to_end(usl_type, alone):
    encoder, sizes = make_encoder("timm/resnet18", 3, 16, 8, seed=0), []
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(lambda module, given, output: sizes.append(len(given[0])))
    method, views = method_of(settings_of(usl_type=usl_type), encoder), torch.rand(12, 3, 16, 16)
    method(views, views)
    end_to_end = set(sizes)
    sizes.clear()
    head = torch.nn.Linear(encoder.width(1), 8)
    block_losses(method, 1, head, None, views, views)
    assert set(sizes) == end_to_end == ({6} if alone else {12})


@pytest.mark.parametrize("layerwise", ["greedy", "random"])
def test_saved_in_the_middle_of_a_stage_it_goes_on_bit_for_bit(layerwise):
    settings, images = settings_of(layerwise=layerwise, usl_epochs=3), digit_images()
    whole = fresh_state(settings, 1, 8, CPU)
    losses_of = []
    for metrics in pretrain(settings, whole, images):
        losses_of.append(metrics["pretrain/loss"])
        if whole.epoch == 7:
            saved = copy.deepcopy(whole.state_dict())
    rest = fresh_state(settings, 1, 8, CPU)
    rest.load_state_dict(saved)
    assert [metrics["pretrain/loss"] for metrics in pretrain(settings, rest, images)] == losses_of[7:]
    assert not moved(weights(whole), weights(rest))


@pytest.mark.parametrize(("layerwise", "epochs"), [("greedy", 8), ("random", 30)])
def test_every_block_learns_to_reconstruct(layerwise, epochs):
    """The composed decoder, trained one block at a time, reconstructs the digits better than their mean does."""
    settings = settings_of(usl_type="ae_single", strength=0.0, layerwise=layerwise, usl_epochs=epochs, usl_lr=3e-3)
    images = digit_images(200)
    state = fresh_state(settings, 1, 8, CPU)
    for _ in pretrain(settings, state, images):
        pass
    x = images.float() / 255
    with torch.no_grad():
        error = F.mse_loss(state.reconstruct(settings, x), x)
    assert error < 0.5 * F.mse_loss(x.mean(0, keepdim=True).expand_as(x), x)
