"""A projection head of one's own: one hidden layer, as in SimCLR (Chen et al. 2020, section 4.2).

Sweep its width:

    raysweep sweep --plugin examples/my_head.py --usl_type simclr --head two_layers --set 'hidden=[64,256]'
"""

from typing import Annotated

from pydantic import Field
from torch import nn

import raysweep


@raysweep.head
def two_layers(
    feature_dim: int,
    embedding_dim: int,
    *,
    hidden: Annotated[int, Field(ge=1), "Hidden units of the `two_layers` head."] = 256,
) -> nn.Module:
    """One hidden layer: features (B, feature_dim) -> embeddings (B, embedding_dim)."""
    return nn.Sequential(nn.Linear(feature_dim, hidden), nn.ReLU(), nn.Linear(hidden, embedding_dim))
