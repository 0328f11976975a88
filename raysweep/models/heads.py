"""The table of projection heads. To add a head, add a function here that builds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysweep.parts import head

if TYPE_CHECKING:
    from torch import nn


@head
def linear(feature_dim: int, embedding_dim: int) -> nn.Module:
    """A linear map without biases."""
    from torch import nn

    return nn.Linear(feature_dim, embedding_dim, bias=False)
