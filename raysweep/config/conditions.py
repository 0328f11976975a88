"""The conditions under which the settings of the experiment as a whole have an effect."""

from __future__ import annotations

from raysweep import parts
from raysweep.parts import Condition

TRAINABLE = Condition("an encoder that is a network", parts.trains)
PRETRAINED = Condition("`usl_epochs` > 0", lambda s: s.usl_epochs > 0)
AUGMENTED = Condition("`strength` > 0", lambda s: s.strength > 0 and s.usl_epochs > 0)
LABELLED = Condition("`probe_labels`", lambda s: s.probe_labels)
VALIDATED = Condition("`val_fraction` > 0", lambda s: s.val_fraction > 0) & LABELLED
LAYERED = Condition("an encoder made of blocks", lambda s: parts.encoder[s.encoder].traits["blocks"] > 0)
HEADED = Condition("`usl_epochs` > 0, or a probe on the embedding", parts.has_head)
EMBEDDED = Condition(
    "`usl_epochs` > 0, a probe on the embedding, or "
    + " or ".join(f"`encoder: {part.name}`" for part in parts.encoder.values() if part.traits["takes_dim"]),
    lambda s: parts.has_head(s) or bool(parts.encoder[s.encoder].traits["takes_dim"]),
)
