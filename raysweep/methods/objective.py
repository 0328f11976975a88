"""The one objective of every method: L = Σ_v rec(p(z_v), t_v) + α · E(z_1, z_2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raysweep.config import Settings
from raysweep.methods import losses
from raysweep.methods.precision import autocast_for, to_fp32
from raysweep.models.conv6 import Conv6, flattened

if TYPE_CHECKING:
    from raysweep.training.distributed import BatchShard


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
    if name == "barlow":
        return losses.barlow_twins(z1, z2, settings.barlow_lambda)
    assert name == "hinge"
    return losses.hinge(z1, z2, settings.hinge_m, settings.hinge_delta)


def objective(
    settings: Settings,
    encoder: nn.Module,
    decoder: nn.Module | None,
    views: Tensor,
    clean: Tensor,
    share: BatchShard | None = None,
) -> Losses:
    """The losses of one batch, for the whole network.

    Args:
        settings: the method (`usl_type`, `denoising`, `alpha`, `emb_loss`, …).
        encoder: images -> embeddings.
        decoder: embeddings -> images; None for `simclr`.
        views: (V·B, C, H, W) float32 in [0, 1]: all first views, then all second ones.
        clean: (B, C, H, W) float32 in [0, 1], not augmented; read only where `denoising`.
        share: of the batch, where `views` and `clean` are one of several processes' part; the losses are then shares.
    """
    with autocast_for(settings, views):
        z = encoder(views)
        images = decoder(z) if decoder is not None else None
    target = clean.repeat(settings.views, 1, 1, 1) if settings.denoising else views
    return combine(settings, z, images, target, share)


def local_objective(
    settings: Settings,
    encoder: Conv6,
    block: int,
    head: nn.Module,
    decoder_block: nn.Module | None,
    views: Tensor,
    clean: Tensor,
    share: BatchShard | None = None,
) -> Losses:
    """The losses of one batch for one block of the encoder alone; no gradient goes below it.

    The block reads h, the output of the blocks below it for the views, and gives h'. Its head embeds h'; its decoder
    block restores from h' what the block read of the view, or, if `denoising`, would have read of the clean image.

    Args:
        settings: as for `objective`.
        encoder: whose blocks are trained.
        block: which of them, from 0.
        head: (B, width of h') -> embeddings.
        decoder_block: h' -> h; None for `simclr`.
        views: as for `objective`.
        clean: as for `objective`.
        share: as for `objective`.
    """
    with autocast_for(settings, views):
        with torch.no_grad():
            below = encoder.up_to(views, block)
            target = below
            if settings.denoising and decoder_block is not None:
                target = encoder.up_to(clean, block).repeat(settings.views, 1, 1, 1)
        above = encoder.blocks[block](below)
        z = head(flattened(above)) if settings.views == 2 else None  # else no loss would read it
        restored = decoder_block(above) if decoder_block is not None else None
    return combine(settings, z, restored, to_fp32(target), share)


def combine(
    settings: Settings, z: Tensor | None, restored: Tensor | None, target: Tensor, share: BatchShard | None = None
) -> Losses:
    """The objective from embeddings (V·B, D), read with two views, and reconstructions (V·B, …), None for none."""
    rec = emb = None
    if restored is not None:
        rec = F.mse_loss(to_fp32(restored), target) * settings.views  # the sum over views of their means
        if share is not None:
            rec = rec * share.fraction
    if settings.views == 2:
        assert z is not None
        z1, z2 = to_fp32(z).chunk(2)
        if share is None:
            emb = embedding_loss(settings, z1, z2)
        else:  # of the whole batch, in every process
            emb = embedding_loss(settings, share.gather(z1), share.gather(z2)) / share.processes
    if rec is None:
        assert emb is not None, "a method has a reconstruction, two views, or both"
        return Losses(emb, None, emb)
    return Losses(rec if emb is None else rec + settings.alpha * emb, rec, emb)
