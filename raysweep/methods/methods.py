"""The table of methods. A method is added here, as a function that builds the module that is trained.

The module has what `raysweep.methods.method.Method` lists. The autoencoders, SimCLR, Barlow Twins and VICReg are one
objective with different terms:

    L = Σ_v rec(decoder(z_v), target_v) + α · E(z_1, z_2)

where z_v is the embedding of view v, and the target is the view itself or the clean image. BYOL and SimSiam have
modules of their own. Modules are imported inside the functions, because this module is also read to print the help of a
command.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from raysweep import parts
from raysweep.methods import losses
from raysweep.methods.losses import BarlowLambda, Temperature, VicregCovariance, VicregInvariance, VicregVariance
from raysweep.parts import Chooses, Condition, Metric, Remark, method

if TYPE_CHECKING:
    from torch import nn

REC_LOSS = Metric("Reconstruction part of the loss, summed over the views.", better="min")
EMB_LOSS = Metric("Embedding part of the loss, before the weight α.", better="min")
VICREG_LOSSES = {
    "pretrain/invariance_loss": Metric(
        "VICReg's mean squared difference of the views, without weight.", better="min", lowest=0.0
    ),
    "pretrain/variance_loss": Metric(
        "VICReg's hinge on the standard deviations, without weight.", better="min", lowest=0.0
    ),
    "pretrain/covariance_loss": Metric("VICReg's squared covariances, without weight.", better="min", lowest=0.0),
}

Denoising = Annotated[
    bool,
    "Reconstruct the clean image instead of the augmented view itself.",
    Condition("`strength` > 0", lambda s: s.strength > 0),
    Remark(may_be_unused=True),  # so that a sweep of autoencoders may be turned to SimCLR by one flag
]


PredictorWidth = Annotated[int, Field(ge=1), "Width of the predictor's hidden layer; BYOL published 4096, SimSiam 512."]
PredictorBatchNorm = Annotated[bool, "Whether the predictor's hidden layer has batch normalisation, as published."]


def can_act(settings: Any) -> bool:
    """Whether the embedding loss can differ from zero. At strength 0 it cannot if it is zero for equal views.

    Dropout gives equal views different embeddings. The built-in encoders and heads have none, but models of timm and
    parts of plugins may have it.
    """
    if settings.strength > 0 or not parts.loss[settings.emb_loss].traits["zero_on_equal_views"]:
        return True
    encoder, head = parts.encoder[settings.encoder], parts.head[settings.head]
    return bool(encoder.plugin or head.plugin) or parts.encoder.is_in_family(encoder.name)


TRAINING = Condition(
    "`strength` > 0 (at 0 both views are equal), an `emb_loss` that is not zero for equal views, or an encoder or head "
    "that may have dropout (timm, plugins)",
    can_act,
)


@method(views=1, layerwise=True, reads_total=False, metrics={"pretrain/rec_loss": REC_LOSS})
def ae_single(encoder: Any, *, denoising: Denoising = False) -> nn.Module:
    """An autoencoder on one view of each image."""
    from raysweep.methods.method import ReconstructionAndEmbedding

    return ReconstructionAndEmbedding(encoder, views=1, reconstructs=True, denoising=denoising)


@method(
    views=2, layerwise=True, reads_total=False, metrics={"pretrain/rec_loss": REC_LOSS, "pretrain/emb_loss": EMB_LOSS}
)
def ae_parallel(
    encoder: Any,
    *,
    denoising: Denoising = False,
    alpha: Annotated[float, Field(ge=0), "Weight α of the embedding loss between the two views.", TRAINING] = 0.1,
    emb_loss: Annotated[
        str,
        Chooses("loss"),
        "Embedding loss: mean squared or absolute difference, NT-Xent, Barlow Twins, VICReg, or contrastive hinge.",
        Condition("`alpha` > 0", lambda s: s.alpha > 0),
    ] = "mse",
) -> nn.Module:
    """Autoencoders on two views of each image, with an embedding loss between the views."""
    from raysweep.methods.method import ReconstructionAndEmbedding

    loss: Callable[..., Any] = emb_loss  # type: ignore[assignment]  # the part that the name chooses
    return ReconstructionAndEmbedding(encoder, views=2, reconstructs=True, denoising=denoising, loss=loss, alpha=alpha)


@method(views=2, layerwise=True, reads_total=False, metrics={"pretrain/emb_loss": EMB_LOSS})
def simclr(encoder: Any, *, temperature: Temperature = 0.5) -> nn.Module:
    """SimCLR (Chen et al. 2020, arXiv 2002.05709): NT-Xent alone, without reconstruction."""
    from raysweep.methods.method import ReconstructionAndEmbedding

    return ReconstructionAndEmbedding(encoder, views=2, loss=partial(losses.nt_xent, temperature=temperature))


@method(views=2, layerwise=True, reads_total=False, metrics={"pretrain/emb_loss": EMB_LOSS})
def barlow_twins(encoder: Any, *, barlow_lambda: BarlowLambda = 0.005) -> nn.Module:
    """Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230): its loss alone, without reconstruction."""
    from raysweep.methods.method import ReconstructionAndEmbedding

    loss = partial(losses.barlow_twins, barlow_lambda=barlow_lambda)
    return ReconstructionAndEmbedding(encoder, views=2, loss=loss, separate_views=True)


@method(views=2, layerwise=True, reads_total=False, metrics={"pretrain/emb_loss": EMB_LOSS, **VICREG_LOSSES})
def vicreg(
    encoder: Any,
    *,
    vicreg_invariance: VicregInvariance = 25.0,
    vicreg_variance: VicregVariance = 25.0,
    vicreg_covariance: VicregCovariance = 1.0,
) -> nn.Module:
    """VICReg (Bardes, Ponce & LeCun 2022, arXiv 2105.04906): its loss alone, without reconstruction."""
    from raysweep.methods.method import ReconstructionAndEmbedding
    from raysweep.methods.vicreg import vicreg_losses

    loss = partial(
        vicreg_losses,
        vicreg_invariance=vicreg_invariance,
        vicreg_variance=vicreg_variance,
        vicreg_covariance=vicreg_covariance,
    )
    return ReconstructionAndEmbedding(encoder, views=2, loss=loss, separate_views=True)


@method(
    views=2,
    metrics={"pretrain/emb_loss": EMB_LOSS},
    batch_norm=lambda s: s.predictor_batch_norm,
    reads_total=lambda s: s.teacher_momentum < 1,  # the momentum rises to 1 over all epochs
)
def byol(
    encoder: Any,
    *,
    teacher_momentum: Annotated[
        float,
        Field(ge=0, le=1),
        "Momentum τ of the teacher's weights in the first step; it rises to 1 along half a cosine.",
    ] = 0.996,
    predictor_width: PredictorWidth = 512,
    predictor_batch_norm: PredictorBatchNorm = True,
) -> nn.Module:
    """BYOL (Grill et al. 2020, arXiv 2006.07733): a predictor of a slowly moving teacher's embedding."""
    from raysweep.methods.byol import Byol

    return Byol(encoder, momentum=teacher_momentum, width=predictor_width, batch_norm=predictor_batch_norm)


@method(
    views=2, metrics={"pretrain/emb_loss": EMB_LOSS}, batch_norm=lambda s: s.predictor_batch_norm, reads_total=False
)
def simsiam(
    encoder: Any, *, predictor_width: PredictorWidth = 512, predictor_batch_norm: PredictorBatchNorm = True
) -> nn.Module:
    """SimSiam (Chen & He 2021, arXiv 2011.10566): a predictor of the other view's embedding, without a teacher."""
    from raysweep.methods.simsiam import SimSiam

    return SimSiam(encoder, width=predictor_width, batch_norm=predictor_batch_norm)


@method(views=1, reads_labels=True, reads_total=False)
def supervised(encoder: Any, classes: int) -> nn.Module:
    """Training with labels: the cross-entropy of a linear classifier on the features. The head is not trained."""
    from raysweep.methods.supervised import Supervised

    return Supervised(encoder, classes)
