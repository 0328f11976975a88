"""A learning-rate schedule of one's own: the rate is divided every few epochs.

Sweep its factor:

    raysweep sweep --plugin examples/my_schedule.py --schedule stairs --set 'drop=[0.1,0.5]' --set 'seed=[0,1,2]'
"""

from typing import Annotated

from pydantic import Field

import raysweep
from raysweep.training.schedules import RATE


# With this metric, `pretrain/lr` is in TensorBoard and in the tables.
@raysweep.schedule(metrics=RATE)
def stairs(
    step: int,
    steps: int,
    epoch_steps: int,
    *,
    drop: Annotated[float, Field(gt=0, le=1), "Factor of the learning rate after each stair of `stairs`."] = 0.1,
    stair_epochs: Annotated[int, Field(ge=1), "Epochs of one stair of `stairs`."] = 1,
) -> float:
    """The factor of the learning rate for a step, counted from 0."""
    return drop ** (step // (epoch_steps * stair_epochs))
