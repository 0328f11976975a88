"""Conversion of checkpoints that older versions of raysweep wrote."""

from __future__ import annotations

from typing import Any

from raysweep import parts
from raysweep.config import Settings


def from_older_version(saved: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Convert a checkpoint to the present form.

    Older versions had one entry for each network, and recorded less about an evaluation.
    """
    defaults = {"collapsed": 0, "losses": [], "warnings": [], "precision": None, **saved}
    state = {"step": 0, "order": None, "sums": None, **saved["state"]}
    if "method" not in state:
        names = ["encoder"] if settings.layerwise != "none" or state["decoder"] is None else ["encoder", "decoder"]
        state["method"] = {f"{name}.{key}": value for name in names for key, value in state[name].items()}
        if state["sums"] is not None:  # total, reconstruction and embedding loss; zero where there is no such loss
            losses = [name.removeprefix("pretrain/") for name in parts.method[settings.usl_type].metrics]
            state["sums"] = state["sums"][[0, *(1 if name == "rec_loss" else 2 for name in losses)]]
    evaluation = saved.get("evaluation")
    if evaluation is None:
        passes, at_work = saved.get("probed"), saved.get("probes")
        evaluation = {"is_scored": passes is not None, "done": [], "at_work": None}
        evaluation["best_linear_probe"] = saved.get("linear_probe", "")
        if passes is not None:
            evaluation["at_work"] = {"finished_passes": passes, "probes": at_work, "progress": 0.0}
    return {**defaults, "state": state, "evaluation": evaluation}
