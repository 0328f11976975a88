"""The module that a method trains: its interface, and the one module behind all built-in methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raysweep.methods.precision import fp32_region, to_fp32
from raysweep.models.decoders import Decoder

if TYPE_CHECKING:
    from raysweep.training.distributed import BatchShard


@dataclass(frozen=True)
class Losses:
    """The losses of one batch, scalars on the training device.

    If several processes share the batch, these are this process's shares of the losses; see `Method.shard`.

    Example:
        >>> Losses(total, {"prediction_loss": total.detach()})
    """

    total: Tensor
    """The loss that is minimised."""
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    """Its parts by name. A part called `x_loss` becomes the metric `pretrain/x_loss`, which the method declares."""


class Method(Protocol):
    """The interface of a method for the training loop: an `nn.Module` with these attributes and methods.

    The parameters that require a gradient are optimised. These are optional:

    - `after_step(progress)` is called after each optimiser step, for example to move a teacher. `progress` is k/K after
      step k of K steps, where k counts from 0. So it is 0 after the first step.
    - With the trait `reads_labels`, a call gets a third argument: the labels (B,) int64 of the images.
    - `reads_clean = False` says that the method never reads the clean images, which saves converting them.
    - `reconstruct(views)` gives images (B, C, H, W) for the pictures in TensorBoard.
    """

    encoder: Any
    """The encoder that is evaluated, with its `head`."""
    shard: BatchShard | None
    """The rows of the batch that this process holds, set by the training loop; None: all of them.

    The shares of all processes must add up to the loss of the whole batch; see `BatchShard`.
    """

    def __call__(self, views: Tensor, clean: Tensor) -> Losses:
        """The losses of a batch. The call is made under autocast if the trial computes in bf16.

        Args:
            views: (V·B, C, H, W) float32 in [0, 1]: all first views, then all second views.
            clean: (B, C, H, W) float32 in [0, 1], the images without augmentation.
        """

    def embed(self, images: Tensor) -> Tensor:
        """Embeddings (B, D) of images (B, C, H, W) in [0, 1], for the online measures."""


class ReconstructionAndEmbedding(nn.Module):
    """L = Σ_v rec(decoder(z_v), target_v) + α · E(z_1, z_2), or one of its two terms alone.

    Args:
        encoder: images -> features; its `head` maps features to embeddings.
        views: 1 or 2 views of each image.
        reconstructs: whether there is a decoder, and with it the reconstruction term.
        denoising: whether the target of the reconstruction is the clean image. False: the view itself.
        loss: E, of the embeddings of both views; needs two views. It may return `Losses`, whose parts are then reported
            beside E.
        alpha: the weight α; without reconstruction the loss is E itself.
        separate_views: whether each view is embedded by itself, so that batch normalisation uses the statistics of one
            view. False: it uses the statistics of both views together.
    """

    def __init__(
        self,
        encoder: Any,
        *,
        views: int,
        reconstructs: bool = False,
        denoising: bool = False,
        loss: Callable[[Tensor, Tensor], Tensor | Losses] | None = None,
        alpha: float = 1.0,
        separate_views: bool = False,
    ) -> None:
        super().__init__()
        assert reconstructs or loss is not None
        self.encoder = encoder
        self.views, self.reconstructs, self.denoising, self.alpha = views, reconstructs, denoising, alpha
        self.loss, self.reads_clean, self.separate_views = loss, denoising, separate_views
        self.shard: BatchShard | None = None
        self.decoder: nn.Module | None = None
        if reconstructs:
            decoder = Decoder(encoder.channels, encoder.image_size, encoder.head.out_features)
            self.decoder = decoder.to(memory_format=torch.channels_last)

    def forward(self, views: Tensor, clean: Tensor) -> Losses:
        """See `Method`."""
        z = self.apply_to_views(self.embed, views)
        images = self.decoder(z) if self.decoder is not None else None
        target = clean.repeat(self.views, 1, 1, 1) if self.denoising else views
        return self.combine(z, images, target)

    def embed(self, images: Tensor) -> Tensor:
        """See `Method`."""
        z: Tensor = self.encoder.head(self.encoder(images))
        return z

    def apply_to_views(self, network: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """Apply a network to inputs (V·B, …): to each view by itself if `separate_views`, else to all views at once."""
        if not self.separate_views:
            return network(inputs)
        return torch.cat([network(view) for view in inputs.chunk(self.views)])

    def reconstruct(self, views: Tensor) -> Tensor | None:
        """Images (B, C, H, W) from views (B, C, H, W); None without a decoder."""
        return self.decoder(self.embed(views)) if self.decoder is not None else None

    def combine(self, z: Tensor | None, restored: Tensor | None, target: Tensor) -> Losses:
        """The losses from embeddings (V·B, D) and reconstructions (V·B, …); None for what the method does not read.

        They are computed in fp32, whatever the precision of the networks.
        """
        with fp32_region(target):
            return self._combine(z, restored, target)

    def _combine(self, z: Tensor | None, restored: Tensor | None, target: Tensor) -> Losses:
        shard, losses = self.shard, {}
        if restored is not None:
            rec = F.mse_loss(to_fp32(restored), target) * self.views  # the sum over views of their means
            losses["rec_loss"] = rec if shard is None else rec * shard.fraction
        if self.loss is not None:
            assert z is not None
            z1, z2 = to_fp32(z).chunk(2)
            if shard is None:
                losses |= embedding_losses(self.loss(z1, z2))
            else:  # every process computes the loss of the whole batch
                whole = embedding_losses(self.loss(shard.gather(z1), shard.gather(z2)))
                losses |= {name: value / shard.processes for name, value in whole.items()}
        if "rec_loss" not in losses:
            return Losses(losses["emb_loss"], losses)
        if "emb_loss" not in losses:
            return Losses(losses["rec_loss"], losses)
        return Losses(losses["rec_loss"] + self.alpha * losses["emb_loss"], losses)


def embedding_losses(loss: Tensor | Losses) -> dict[str, Tensor]:
    """Return the losses by name, from the value that an embedding loss has returned.

    The embedding loss itself is called `emb_loss`.
    """
    return {"emb_loss": loss.total, **loss.parts} if isinstance(loss, Losses) else {"emb_loss": loss}
