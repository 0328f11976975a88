"""The losses of one block of an encoder that is trained block by block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raysweep.methods.method import Losses, ReconstructionAndEmbedding
from raysweep.methods.precision import to_fp32
from raysweep.models.conv6 import flattened


def block_losses(
    method: ReconstructionAndEmbedding,
    block: int,
    head: nn.Module,
    inverse: nn.Module | None,
    views: Tensor,
    clean: Tensor,
) -> Losses:
    """The losses of one batch for one block of the encoder alone; no gradient goes below the block.

    The block reads h, the output of the blocks below it for the views, and gives h'. Its head embeds h'. Its inverse
    restores h from h'. If the method denoises, it restores the h of the clean image instead. The blocks read each view
    by itself if the method does so end to end, which matters for batch normalisation.

    Args:
        method: the method; its encoder has blocks.
        block: which block, from 0.
        head: (B, width of h') -> embeddings.
        inverse: h' -> h; None for a method without reconstruction.
        views: see `Method`.
        clean: see `Method`.
    """
    encoder = method.encoder
    with torch.no_grad():
        below = method.apply_to_views(lambda images: encoder.up_to(images, block), views)
        target = below
        if method.denoising and inverse is not None:
            target = encoder.up_to(clean, block).repeat(method.views, 1, 1, 1)
    above = method.apply_to_views(encoder.blocks[block], below)
    z = method.apply_to_views(head, flattened(above)) if method.loss is not None else None
    restored = inverse(above) if inverse is not None else None
    return method.combine(z, restored, to_fp32(target))
