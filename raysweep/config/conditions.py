"""The conditions under which settings have an effect."""

from __future__ import annotations

from raysweep.config.description import Condition

PRETRAINED = Condition("`usl_epochs` > 0", lambda s: s.usl_epochs > 0)
AUTOENCODER = Condition(
    "`usl_type: ae_single` or `ae_parallel`, with `strength` > 0",
    lambda s: s.usl_type != "simclr" and s.strength > 0 and PRETRAINED.holds(s),
)
PARALLEL = Condition("`usl_type: ae_parallel`", lambda s: s.usl_type == "ae_parallel" and PRETRAINED.holds(s))
EMBEDDING = Condition("`ae_parallel` with `alpha` > 0", lambda s: PARALLEL.holds(s) and s.alpha > 0)
NT_XENT = Condition(
    "`usl_type: simclr`, or `ae_parallel` with `emb_loss: simclr`",
    lambda s: (s.usl_type == "simclr" and PRETRAINED.holds(s)) or (EMBEDDING.holds(s) and s.emb_loss == "simclr"),
)
BARLOW = Condition("`ae_parallel` with `emb_loss: barlow`", lambda s: EMBEDDING.holds(s) and s.emb_loss == "barlow")
HINGE = Condition("`ae_parallel` with `emb_loss: hinge`", lambda s: EMBEDDING.holds(s) and s.emb_loss == "hinge")
LAYERED = Condition("`encoder: conv6`", lambda s: s.encoder == "conv6")
BLOCKWISE = Condition("`encoder: conv6`", lambda s: s.encoder == "conv6" and PRETRAINED.holds(s))
AUGMENTED = Condition("`strength` > 0", lambda s: s.strength > 0 and PRETRAINED.holds(s))
BLURRED = Condition("`policy` with `simclr`, `strength` > 0", lambda s: AUGMENTED.holds(s) and "simclr" in s.policies)
VALIDATED = Condition("`val_fraction` > 0", lambda s: s.val_fraction > 0)
METHOD_EFFECTS = (PARALLEL, EMBEDDING, NT_XENT, BARLOW, HINGE)
"""Of the settings that some methods lack altogether: giving one that no trial reads is a mistake. That of `denoising`
is not among them, so that any sweep of autoencoders may be turned to SimCLR by `--usl_type simclr`."""
HEAD = Condition(
    "`usl_epochs` > 0, or a probe on the embedding",
    lambda s: PRETRAINED.holds(s) or "embedding" in (s.probe_layer, *(head.layer for head in s.heads)),
)
BANKLESS_LR = Condition("no `lr` in `probe_bank`, or `per_layer`", lambda s: s.per_layer or "lr" not in s.banked)
BANKLESS_DECAY = Condition(
    "no `weight_decay` in `probe_bank`, or `per_layer`", lambda s: s.per_layer or "weight_decay" not in s.banked
)
