"""SimSiam: a predictor learns to predict the embedding of the other view, without a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from raysweep.methods.method import Losses
from raysweep.methods.precision import fp32_region
from raysweep.methods.predictor import build_predictor, mean_cosine

if TYPE_CHECKING:
    from raysweep.training.distributed import BatchShard


class SimSiam(nn.Module):
    """SimSiam (Chen & He 2021, arXiv 2011.10566).

    The loss is −(cos(q(z_1), z_2) + cos(q(z_2), z_1)) / 2, where q is the predictor and z_v the embedding of view v. No
    gradient flows through the second argument (algorithm 1). Each view is embedded by itself, so batch normalisation
    uses the statistics of one view.

    Args:
        encoder: Images -> features; its `head` maps features to embeddings.
        width: Width of the predictor's hidden layer.
        batch_norm: Whether the predictor has batch normalisation.
    """

    reads_clean = False

    def __init__(self, encoder: Any, *, width: int, batch_norm: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.predictor = build_predictor(encoder.head.out_features, width, batch_norm)
        self.shard: BatchShard | None = None

    def forward(self, views: Tensor, clean: Tensor) -> Losses:
        """See `Method`."""
        z1, z2 = (self.embed(view) for view in views.chunk(2))
        prediction1, prediction2 = self.predictor(z1), self.predictor(z2)
        with fp32_region(views):
            loss = -(mean_cosine(prediction1, z2.detach()) + mean_cosine(prediction2, z1.detach())) / 2
        if self.shard is not None:
            loss = loss * self.shard.fraction
        return Losses(loss, {"emb_loss": loss})

    def embed(self, images: Tensor) -> Tensor:
        """See `Method`."""
        z: Tensor = self.encoder.head(self.encoder(images))
        return z
