"""The one objective of every method: L = Σ_v rec(p(z_v), t_v) + α · E(z_1, z_2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raysweep import losses
from raysweep.config import Settings


@dataclass(frozen=True)
class Losses:
    """One step's losses, scalars on the training device; None where the method has no such part."""

    total: Tensor
    rec: Tensor | None
    emb: Tensor | None


def embedding_loss(settings: Settings, z1: Tensor, z2: Tensor) -> Tensor:
    """E(z1, z2) of embeddings (B, D): NT-Xent for `simclr`, else what `emb_loss` names."""
    name = "simclr" if settings.usl_type == "simclr" else settings.emb_loss
    if name == "mse":
        return losses.mse(z1, z2)
    if name == "l1":
        return losses.l1(z1, z2)
    if name == "simclr":
        return losses.nt_xent(z1, z2, settings.temperature)
    assert name == "barlow"
    return losses.barlow_twins(z1, z2, settings.barlow_lambda)


def objective(
    settings: Settings, encoder: nn.Module, decoder: nn.Module | None, views: Tensor, clean: Tensor
) -> Losses:
    """The losses of one batch.

    Args:
        settings: the method (`usl_type`, `denoising`, `alpha`, `emb_loss`, …).
        encoder: images -> embeddings.
        decoder: embeddings -> images; None for `simclr`.
        views: (V·B, C, H, W) float32 in [0, 1]: all first views, then all second ones.
        clean: (B, C, H, W) float32 in [0, 1], not augmented; read only where `denoising`.
    """
    bf16 = settings.precision == "bf16"
    with torch.autocast(views.device.type, dtype=torch.bfloat16, enabled=bf16):
        z = encoder(views)
        images = decoder(z) if decoder is not None else None
    # Losses in fp32: bf16 keeps 8 bits of mantissa, too few for a similarity over τ or a mean of small squares.
    z = z.float()
    rec = emb = None
    if images is not None:
        target = clean.repeat(settings.views, 1, 1, 1) if settings.denoising else views
        rec = F.mse_loss(images.float(), target) * settings.views  # the sum over views of their means
    if settings.views == 2:
        emb = embedding_loss(settings, *z.chunk(2))
    if rec is None:
        assert emb is not None, "a method has a reconstruction, two views, or both"
        return Losses(emb, None, emb)
    return Losses(rec if emb is None else rec + settings.alpha * emb, rec, emb)
