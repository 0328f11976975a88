"""Suggestions for users of other tools, who write other names of settings or several values at once."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from raysweep.config import SETTINGS, Settings, about, default_of, is_number
from raysweep.config.values import NUMBER
from raysweep.space.expansion import distinct
from raysweep.space.model import Resources, Sweep, Tune
from raysweep.space.race_settings import Race

SECTIONS: Mapping[str, type[BaseModel]] = {"tune": Tune, "seeds": Race, "resources": Resources}
"""The sections of a search space whose entries `--set` overrides as `SECTION.NAME`."""
LONG_EPOCHS = ("usl_epochs", "le_epochs")
"""The numbers of epochs, on which the time of a trial depends most."""
OTHER_NAMES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("lr", "learning_rate"), ("usl_lr", "le_lr")),
    **dict.fromkeys(("epochs", "epoch", "n_epochs", "num_epochs", "max_epochs"), ("usl_epochs", "le_epochs")),
    **dict.fromkeys(("wd", "l2"), ("weight_decay", "le_weight_decay")),
    **dict.fromkeys(("bs", "batch", "batchsize"), ("batch_size", "le_batch_size")),
    **dict.fromkeys(("arch", "backbone", "model", "network"), ("encoder",)),
    **dict.fromkeys(("method", "algorithm"), ("usl_type",)),
    **dict.fromkeys(("loss", "criterion"), ("emb_loss",)),
    **dict.fromkeys(("optim", "optimiser"), ("optimizer",)),
    **dict.fromkeys(("lr_schedule", "lr_scheduler"), ("schedule",)),
    **dict.fromkeys(("augment", "augmentation", "augmentations", "transform", "transforms"), ("policy", "strength")),
    "scheduler": ("schedule", "tune.scheduler"),
    **dict.fromkeys(("data", "data_path", "dataset_path", "train_dir"), ("dataset",)),
    **dict.fromkeys(("seeds", "random_seed", "random_state"), ("seed",)),
    **dict.fromkeys(("gpus", "num_gpus", "n_gpus", "devices"), ("resources.gpu",)),
    **dict.fromkeys(("cpus", "num_cpus", "n_cpus", "threads", "cores"), ("resources.cpu",)),
    **dict.fromkeys(("samples", "trials", "n_trials", "num_trials"), ("tune.num_samples",)),
}
"""For a name that other tools use: the names of the settings here, the most likely one first."""


def names_here(given: str) -> tuple[str, ...]:
    """Return the names that a setting called `given` elsewhere has here. The result is empty if none is known.

    Example:
        `names_here("lr")` gives `("usl_lr", "le_lr")`, and `names_here("gpu")` gives `("resources.gpu",)`.
    """
    name = given.strip().lower().replace("-", "_")
    if name in OTHER_NAMES:
        return OTHER_NAMES[name]
    return tuple(f"{section}.{name}" for section in ("tune", "resources") if name in SECTIONS[section].model_fields)


def settable() -> list[str]:
    """Return the names that `--set` takes."""
    return [*SETTINGS, "baseline", *(f"{name}.{entry}" for name in SECTIONS for entry in SECTIONS[name].model_fields)]


def suggest_setting(given: str, value: object = None) -> str:
    """Return the end of a message about an unknown setting: what the user may mean, or where all settings are listed.

    Args:
        given: The unknown name.
        value: Its value if it was given with `--set`.
    """
    valid = SETTINGS if value is None else settable()
    names = names_here(given) or difflib.get_close_matches(given.lower(), valid, n=1)
    if not names:
        return "; raysweep sweep --help lists all settings"
    written = [repr(name) if value is None or name in SETTINGS else f"--set {name}={as_text(value)}" for name in names]
    return f", did you mean {' or '.join(written)}?"


def as_text(value: object) -> str:
    """Return a value as `--set` takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def suggest_flag(given: str, value: str, flags: Iterable[str]) -> str:
    """Return the end of a message about an unknown flag: what to write instead, or where to look.

    Args:
        given: The flag as the user wrote it.
        value: The word after it; empty if there is none.
        flags: The flags of the command.
    """
    flags = list(flags)
    others = [f"--{name}" for name in settable() if f"--{name}" not in flags] if "--set" in flags else []
    names = [f"--{name}" for name in names_here(given.lstrip("-"))]
    meant = [flag for flag in names if flag in (*flags, *others)]
    meant = meant or difflib.get_close_matches(given, [*flags, *others], n=1)
    written = [f"--set {flag[2:]}={value or 'VALUE'}" if flag in others else flag for flag in meant]
    return f", did you mean {' or '.join(written)}?" if written else "; --help lists all arguments"


def grid_instead(name: str, values: Sequence[str]) -> str:
    """Return the end of a message about several values where one belongs: how a grid is written."""
    grid = f"{name}=[{','.join(values)}]"
    return f"one value expected, not {len(values)}; for one trial with each value, write --set '{grid}'"


def values_in(name: str, text: str) -> list[str]:
    """Return the values in a text such as `0,1,2`; empty if the text is not several values of a setting."""
    if name not in SETTINGS or not about(name).search:
        return []
    values = [value.strip() for value in text.split(",")]
    return values if len(values) > 1 and all(can_be(name, value) for value in values) else []


def leading_values(name: str, words: Sequence[str]) -> list[str]:
    """Return the words at the beginning of `words` that can be values of the setting."""
    return list(itertools.takewhile(lambda word: can_be(name, word), words))


def can_be(name: str, text: str) -> bool:
    """Return whether the text can be one value of a setting that is a number or has a list of valid names."""
    kind: Any = Settings.model_fields[name].annotation
    if is_number(name):
        return NUMBER.fullmatch(text) is not None
    if kind is bool:
        return text.lower() in ("true", "false")
    return get_origin(kind) is Literal and text in get_args(kind)


def long_defaults(sweep: Sweep) -> str:
    """Return a sentence that names the numbers of epochs if pretraining has the default number; else an empty text.

    The time of a trial depends most on these settings, and their defaults are long.
    """
    trained = [trial.settings for trial in sweep.examples if trial.source is None and trial.settings.pretrain_epochs]
    names = [name for name in LONG_EPOCHS if all(getattr(each, name) == default_of(name) for each in trained)]
    if not trained or "usl_epochs" not in names:
        return ""
    values = " and ".join(f"{name}: {default_of(name)}" for name in names)
    return f"{values} {'is a default' if len(names) == 1 else 'are defaults'}; fewer epochs take less time."


def seeds_apart(sweep: Sweep) -> str:
    """Return a sentence if a sub-space searches only seeds, and another one no seed; else an empty text.

    Both are valid. But `search: [{alpha: [1, 10]}, {seed: [0, 1, 2]}]` may be meant as one sub-space of six trials.
    """
    repeats = any(set(space) == {"seed"} and distinct(space["seed"]) > 1 for space in sweep.search)
    if not repeats or all("seed" in space for space in sweep.search):
        return ""
    return (
        "Only one point is repeated with several seeds, because a sub-space searches nothing but seed; to repeat all "
        "points, put their settings and seed into one sub-space."
    )
