"""The module that trains an encoder with labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional as F

from raysweep.methods.method import Losses
from raysweep.methods.precision import fp32_region, to_fp32

if TYPE_CHECKING:
    from raysweep.training.distributed import BatchShard


class Supervised(nn.Module):
    """An encoder with a linear classifier on its features, trained by cross-entropy.

    The head keeps its initial weights, because no loss reads the embedding.

    Args:
        encoder: images -> features; its `head` maps features to embeddings.
        classes: the number of classes.
    """

    reads_clean = False

    def __init__(self, encoder: Any, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.classifier = nn.Linear(encoder.feature_dim, classes)
        self.shard: BatchShard | None = None
        encoder.head.requires_grad_(False)

    def forward(self, views: Tensor, clean: Tensor, labels: Tensor) -> Losses:
        """See `Method`."""
        scores = self.classifier(self.encoder(views))
        with fp32_region(views):
            loss = F.cross_entropy(to_fp32(scores), labels)
        return Losses(loss if self.shard is None else loss * self.shard.fraction)

    def embed(self, images: Tensor) -> Tensor:
        """See `Method`."""
        z: Tensor = self.encoder.head(self.encoder(images))
        return z
