"""BYOL: a predictor learns to predict a slowly moving teacher's embedding of the other view."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from raysweep.methods.method import Losses
from raysweep.methods.precision import fp32_region
from raysweep.methods.predictor import build_predictor, mean_cosine

if TYPE_CHECKING:
    from raysweep.training.distributed import BatchShard


class Byol(nn.Module):
    """BYOL (Grill et al. 2020, arXiv 2006.07733).

    The loss is the sum over both views of 2 − 2·cos(q(z_v), z'_w), where q is the predictor, z_v the embedding of view
    v, and z'_w the teacher's embedding of the other view (equation 2, symmetrised). The teacher starts as a copy of
    encoder and head. After each step it moves towards them; no gradient reaches it.

    Each view is embedded by itself, so batch normalisation uses the statistics of one view. The teacher's batch
    normalisation uses the statistics of the batch as well, and the teacher's moving averages are its own, as in the
    published code.

    Args:
        encoder: Images -> features; its `head` maps features to embeddings.
        momentum: The teacher's momentum τ in the first step, in [0, 1]; it rises to 1.
        width: Width of the predictor's hidden layer.
        batch_norm: Whether the predictor has batch normalisation.
    """

    reads_clean = False

    def __init__(self, encoder: Any, *, momentum: float, width: int, batch_norm: bool) -> None:
        super().__init__()
        self.encoder, self.momentum = encoder, momentum
        self.predictor = build_predictor(encoder.head.out_features, width, batch_norm)
        self.teacher = copy.deepcopy(encoder).requires_grad_(False)
        self.shard: BatchShard | None = None

    def forward(self, views: Tensor, clean: Tensor) -> Losses:
        """See `Method`."""
        first, second = views.chunk(2)
        with torch.no_grad():
            target1, target2 = self.teacher.head(self.teacher(first)), self.teacher.head(self.teacher(second))
        prediction1, prediction2 = self.predictor(self.embed(first)), self.predictor(self.embed(second))
        with fp32_region(views):
            loss = 4 - 2 * (mean_cosine(prediction1, target2) + mean_cosine(prediction2, target1))
        if self.shard is not None:
            loss = loss * self.shard.fraction
        return Losses(loss, {"emb_loss": loss})

    def embed(self, images: Tensor) -> Tensor:
        """See `Method`."""
        z: Tensor = self.encoder.head(self.encoder(images))
        return z

    def momentum_at(self, progress: float) -> float:
        """Return the teacher's momentum 1 − (1 − τ)·(cos(π·progress) + 1)/2, as in the paper.

        Args:
            progress: k/K in step k of K steps, where k counts from 0. So the first step has the momentum τ.
        """
        return 1 - (1 - self.momentum) * (math.cos(math.pi * progress) + 1) / 2

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move each weight of the teacher towards the student's weight; see `Method`."""
        step = 1 - self.momentum_at(progress)
        for slow, fast in zip(self.teacher.parameters(), self.encoder.parameters(), strict=True):
            slow.lerp_(fast, step)
