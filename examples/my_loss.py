"""An embedding loss of one's own: the distance of each embedding to its partner, in cosine.

Sweep its exponent:

    raysweep sweep --plugin examples/my_loss.py --emb_loss cosine --set 'sharpness=[0.5,1,2]' --set 'seed=[0,1,2]'
"""

from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

import raysweep


# The loss is zero where both views have the same embedding. With this trait, a sweep of alpha without augmentation is
# refused, because the loss would train nothing.
@raysweep.loss(zero_on_equal_views=True)
def cosine(
    z1: Tensor, z2: Tensor, *, sharpness: Annotated[float, Field(gt=0), "Exponent of the cosine distance."] = 1.0
) -> Tensor:
    """Cosine distance between the embeddings (B, D) of both views, in [0, 1]."""
    return ((1 - F.cosine_similarity(z1, z2)) / 2).clamp_min(1e-8).pow(sharpness).mean()
