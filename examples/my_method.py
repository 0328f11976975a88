"""A method of one's own: a student predicts the embeddings of a slowly moving teacher.

It is a small BYOL (Grill et al. 2020, arXiv 2006.07733) with a linear predictor. Sweep the inertia of its teacher:

    raysweep sweep --plugin examples/my_method.py --usl_type teacher --set 'inertia=[0.9,0.99]' --set 'seed=[0,1,2]'
"""

import copy
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

import raysweep


class Teacher(nn.Module):
    """The module that is trained. Parameters that require a gradient are optimised.

    Args:
        encoder: The encoder with its projection head, `encoder.head`.
        inertia: How much of the teacher stays in each step, in [0, 1].
    """

    reads_clean = False  # the images without augmentation are not needed

    def __init__(self, encoder: Any, inertia: float) -> None:
        super().__init__()
        self.encoder, self.inertia, self.shard = encoder, inertia, None
        self.teacher = copy.deepcopy(encoder).requires_grad_(False)
        width = encoder.head.out_features
        self.predictor = nn.Linear(width, width)

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> embeddings (B, D)."""
        embeddings: Tensor = self.encoder.head(self.encoder(images))
        return embeddings

    def forward(self, views: Tensor, clean: Tensor) -> raysweep.Losses:
        """The loss of a batch. `views` are all first views, then all second views, (2·B, C, H, W)."""
        with torch.no_grad():
            target = self.teacher.head(self.teacher(views.roll(len(views) // 2, 0)))  # the other view of each image
        loss = (1 - F.cosine_similarity(self.predictor(self.embed(views)), target)).mean()
        if self.shard is not None:  # each of several workers has some of the images, and returns its share of the loss
            loss = loss * self.shard.fraction
        return raysweep.Losses(loss, {"prediction_loss": loss.detach()})

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the teacher a little towards the student; `progress` is the fraction that was done before the step."""
        for slow, fast in zip(self.teacher.parameters(), self.encoder.parameters(), strict=True):
            slow.lerp_(fast, 1 - self.inertia)


@raysweep.method(
    views=2, metrics={"pretrain/prediction_loss": raysweep.Metric("Distance from the teacher.", better="min")}
)
def teacher(
    encoder: Any,
    *,
    inertia: Annotated[float, Field(ge=0, le=1), "Fraction of the `teacher`'s weights that stays in each step."] = 0.99,
) -> nn.Module:
    """A student that predicts the embeddings of a slowly moving teacher."""
    return Teacher(encoder, inertia)
