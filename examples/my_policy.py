"""An augmentation of one's own: each image gets a random brightness.

Sweep its largest change:

    raysweep sweep --plugin examples/my_policy.py --policy brightness --set 'largest=[0.1,0.4]' --set 'seed=[0,1,2]'
"""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

import raysweep


@raysweep.policy
def brightness(
    images: Tensor,
    strength: float,
    generator: torch.Generator,
    part: Any,
    *,
    largest: Annotated[float, Field(gt=0, le=1), "Largest change of the brightness at strength 1."] = 0.4,
) -> Tensor:
    """Add one number to all pixels of an image: images (B, C, H, W) -> views (B, C, H, W) in [0, 1]."""
    views = raysweep.to_float(images)
    if strength == 0:
        return views
    # In a trial in several processes each process holds only a part of the batch. All draw the numbers of the whole
    # batch, so that the trial does not depend on the number of processes.
    count = len(images) if part is None else part.batch
    change = (2 * torch.rand(count, generator=generator) - 1) * largest * strength
    if part is not None and part.index is not None:
        change = change[part.index]
    return (views + change.to(views.device)[:, None, None, None]).clamp(0, 1)
