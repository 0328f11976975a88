"""The table of projection heads. To add a head, add a function here that builds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from raysweep.parts import head

if TYPE_CHECKING:
    from torch import nn


@head
def linear(feature_dim: int, embedding_dim: int) -> nn.Module:
    """A linear map without biases, from the features (B, `feature_dim`) to the embedding (B, `embedding_dim`)."""
    from torch import nn

    return nn.Linear(feature_dim, embedding_dim, bias=False)


@head(batch_norm=lambda s: s.head_batch_norm or s.head_output_batch_norm)
def mlp(
    feature_dim: int,
    embedding_dim: int,
    *,
    head_layers: Annotated[int, Field(ge=1, le=16), "Number of hidden layers of the head."] = 1,
    head_width: Annotated[int, Field(ge=1), "Width of the head's hidden layers."] = 512,
    head_batch_norm: Annotated[bool, "Whether the head's hidden layers have batch normalisation."] = True,
    head_output_batch_norm: Annotated[
        bool, "Whether the embedding is batch-normalised, without scale and shift, as SimSiam published it."
    ] = False,
) -> nn.Module:
    """A multilayer perceptron with ReLUs. Linear layers before batch normalisation have no biases.

    It maps the features (B, `feature_dim`) to the embedding (B, `embedding_dim`), as in SimCLR (Chen et al. 2020, arXiv
    2002.05709, section 2.1).
    """
    from torch import nn

    layers: list[nn.Module] = []
    for width in [feature_dim, *[head_width] * (head_layers - 1)]:
        layers.append(nn.Linear(width, head_width, bias=not head_batch_norm))
        layers += [nn.BatchNorm1d(head_width)] if head_batch_norm else []
        layers.append(nn.ReLU(inplace=True))
    layers.append(nn.Linear(head_width, embedding_dim, bias=not head_output_batch_norm))
    layers += [nn.BatchNorm1d(embedding_dim, affine=False)] if head_output_batch_norm else []
    return nn.Sequential(*layers)
