"""An encoder of one's own: two linear layers on the pixels.

Sweep its width:

    raysweep sweep --plugin examples/my_encoder.py --encoder mlp --set 'width=[64,256]' --set 'seed=[0,1,2]'
"""

from typing import Annotated

from pydantic import Field
from torch import nn

import raysweep


@raysweep.encoder
def mlp(
    channels: int,
    image_size: int,
    *,
    width: Annotated[int, Field(ge=1), "Number of features, and of hidden units, of the `mlp` encoder."] = 256,
) -> nn.Module:
    """Two linear layers: images (B, C, H, W) in [0, 1] -> features (B, width)."""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, width), nn.ReLU(), nn.Linear(width, width))
