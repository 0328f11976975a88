"""Each of the five rows in the table of objectives is compared with its written-out formula."""

from pathlib import Path

import pytest
import torch

from raysweep.config import Settings
from raysweep.methods import losses
from raysweep.methods.precision import precision_of
from tests.support.networks import embed, losses_of, make_decoder, make_encoder

B = 6
HINGE = {"hinge_m": 1.5, "hinge_delta": 0.7}


@pytest.fixture
def batch():
    draws = torch.Generator().manual_seed(0)
    clean = torch.rand(B, 1, 8, 8, generator=draws)
    views = torch.rand(2 * B, 1, 8, 8, generator=draws)
    return make_encoder("conv6", 1, 8, 16, seed=0), make_decoder(1, 8, 16, seed=0), views, clean


def mse(a, b):
    return ((a - b) ** 2).mean()


def test_ae_single(batch):
    encoder, decoder, views, clean = batch
    views = views[:B]
    out = decoder(embed(encoder, views))
    plain = losses_of(Settings(usl_type="ae_single", denoising=False, precision="fp32"), encoder, decoder, views, clean)
    torch.testing.assert_close(plain.total, mse(out, views))
    assert set(plain.parts) == {"rec_loss"}
    denoising = losses_of(
        Settings(usl_type="ae_single", denoising=True, precision="fp32"), encoder, decoder, views, clean
    )
    torch.testing.assert_close(denoising.total, mse(out, clean))


@pytest.mark.parametrize("denoising", [False, True])
@pytest.mark.parametrize("emb_loss", ["mse", "l1", "simclr", "barlow", "vicreg", "hinge"])
def test_ae_parallel(batch, denoising, emb_loss):
    encoder, decoder, views, clean = batch
    chosen = {"denoising": denoising, "emb_loss": emb_loss, "alpha": 0.3, "temperature": 0.2, **HINGE}
    settings = Settings(usl_type="ae_parallel", precision="fp32", **chosen)
    z1, z2 = embed(encoder, views[:B]), embed(encoder, views[B:])
    targets = (clean, clean) if denoising else (views[:B], views[B:])
    emb = {
        "mse": mse(z1, z2),
        "l1": (z1 - z2).abs().mean(),
        "simclr": losses.nt_xent(z1, z2, temperature=0.2),
        "barlow": losses.barlow_twins(z1, z2, barlow_lambda=0.005),
        "vicreg": losses.vicreg(z1, z2, vicreg_invariance=25.0, vicreg_variance=25.0, vicreg_covariance=1.0),
        "hinge": losses.hinge(z1, z2, hinge_m=1.5, hinge_delta=0.7),
    }[emb_loss]
    rec = mse(decoder(z1), targets[0]) + mse(decoder(z2), targets[1])
    got = losses_of(settings, encoder, decoder, views, clean)
    torch.testing.assert_close(got.parts["rec_loss"], rec)
    torch.testing.assert_close(got.parts["emb_loss"], emb, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(got.total, rec + 0.3 * emb, rtol=1e-4, atol=1e-6)


def test_simclr_has_no_reconstruction_and_ignores_alpha(batch):
    encoder, _, views, clean = batch
    got = losses_of(
        Settings(usl_type="simclr", alpha=9.0, temperature=0.5, precision="fp32"), encoder, None, views, clean
    )
    torch.testing.assert_close(
        got.total, losses.nt_xent(embed(encoder, views[:B]), embed(encoder, views[B:]), temperature=0.5)
    )
    assert set(got.parts) == {"emb_loss"}


def test_auto_is_what_the_processor_has_in_hardware(batch):
    encoder, decoder, views, clean = batch
    flags = set(Path("/proc/cpuinfo").read_text().split())
    expected = "bf16" if flags & {"avx512_bf16", "amx_bf16"} else "fp32"
    assert precision_of(Settings(), "cpu") == expected
    auto, same = (losses_of(Settings(precision=p), encoder, decoder, views, clean).total for p in ("auto", expected))
    assert auto.item() == same.item()


def test_bf16_is_near_fp32_and_keeps_the_losses_in_fp32(batch):
    encoder, decoder, views, clean = batch
    got = [losses_of(Settings(precision=p), encoder, decoder, views, clean).total for p in ("fp32", "bf16")]
    assert got[1].dtype == torch.float32
    assert got[1].item() == pytest.approx(got[0].item(), rel=0.05)
    assert got[0].item() != got[1].item()
