"""The settings of one experiment: typed, checked, and each with the condition under which it has an effect.

Everything that has to know the settings is derived from this one class: the flags of the command line, the checks of a
search space, the evaluation protocol's fingerprint, TensorBoard's hyperparameters and `docs/search-space.md`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from raysweep.errors import InputError

FOLDER = "folder:"
"""What the name of an image folder as a dataset begins with."""

PROTOCOL_VERSION = 1
"""Raised whenever the same settings would give another score, so that old and new scores are never compared."""


@dataclass(frozen=True)
class Effect:
    """When a setting has an effect: in words, for messages and docs, and as a test on the settings."""

    words: str
    holds: Callable[[Settings], bool]


ALWAYS = Effect("always", lambda s: True)
PRETRAINED = Effect("`usl_epochs` > 0", lambda s: s.usl_epochs > 0)
AUTOENCODER = Effect(
    "`usl_type: ae_single` or `ae_parallel`, with `strength` > 0",
    lambda s: s.usl_type != "simclr" and s.strength > 0 and PRETRAINED.holds(s),
)
PARALLEL = Effect("`usl_type: ae_parallel`", lambda s: s.usl_type == "ae_parallel" and PRETRAINED.holds(s))
EMBEDDING = Effect("`ae_parallel` with `alpha` > 0", lambda s: PARALLEL.holds(s) and s.alpha > 0)
NT_XENT = Effect(
    "`usl_type: simclr`, or `ae_parallel` with `emb_loss: simclr`",
    lambda s: (s.usl_type == "simclr" and PRETRAINED.holds(s)) or (EMBEDDING.holds(s) and s.emb_loss == "simclr"),
)
BARLOW = Effect("`ae_parallel` with `emb_loss: barlow`", lambda s: EMBEDDING.holds(s) and s.emb_loss == "barlow")
AUGMENTED = Effect("`strength` > 0", lambda s: s.strength > 0 and PRETRAINED.holds(s))
VALIDATED = Effect("`val_fraction` > 0", lambda s: s.val_fraction > 0)
HEAD = Effect(
    "`usl_epochs` > 0, or `probe_layer: embedding`", lambda s: PRETRAINED.holds(s) or s.probe_layer == "embedding"
)


@dataclass(frozen=True)
class About:
    """What a setting is, beside its type and range."""

    text: str
    effect: Effect = ALWAYS
    group: str = "Pretraining"
    protocol: bool = False
    """Part of the evaluation protocol: scores that differ in it are not comparable."""
    search: bool = True
    """May be swept (False: it says where files lie, which are left out, or what is shown)."""


NUMBERS = (int, float, int | None, float | None)
NUMBER = re.compile(r"[+-]?(\d[\d_]*)?\.?\d+([eE][+-]?\d+)?|[+-]?\d+\.([eE][+-]?\d+)?")


def check_type(cls: type[BaseModel], value: Any, info: ValidationInfo) -> Any:
    """Where pydantic is lenient: `1e-5`, which YAML 1.1 reads as text, is a number; true is none, and 1 is not true."""
    kind = cls.model_fields[str(info.field_name)].annotation
    if kind in NUMBERS and isinstance(value, bool):
        raise ValueError("expected a number")
    if kind in NUMBERS and isinstance(value, str) and NUMBER.fullmatch(value.strip()):
        return float(value)
    if kind is bool and not isinstance(value, bool):
        raise ValueError("expected True or False")
    return value


class Settings(BaseModel):
    """One experiment: self-supervised pretraining of a Conv6 encoder, then its evaluation.

    The names are those of the reference implementation's command line; its defaults are kept where it states one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    usl_type: Annotated[
        Literal["ae_single", "ae_parallel", "simclr"],
        About(
            "Method: autoencoder on one view, on two views with an embedding loss between them, or SimCLR.", PRETRAINED
        ),
    ] = "ae_parallel"
    denoising: Annotated[
        bool, About("Reconstruct the clean image instead of the augmented view itself.", AUTOENCODER)
    ] = False
    alpha: Annotated[float, Field(ge=0), About("Weight α of the embedding loss between the two views.", PARALLEL)] = 0.1
    emb_loss: Annotated[
        Literal["mse", "l1", "simclr", "barlow"],
        About("Embedding loss: mean squared or absolute difference, NT-Xent, or Barlow Twins.", EMBEDDING),
    ] = "mse"
    temperature: Annotated[float, Field(gt=0), About("Temperature τ of NT-Xent.", NT_XENT)] = 0.5
    barlow_lambda: Annotated[
        float, Field(ge=0), About("Weight λ of Barlow Twins' redundancy-reduction term.", BARLOW)
    ] = 0.005
    embedding_dim: Annotated[int, Field(ge=1), About("Width of the embedding z, the head's output.", HEAD)] = 64
    usl_epochs: Annotated[int, Field(ge=0), About("Pretraining epochs; 0 leaves the encoder random.")] = 400
    usl_lr: Annotated[float, Field(gt=0), About("Adam's learning rate in pretraining.", PRETRAINED)] = 1e-4
    batch_size: Annotated[
        int,
        Field(ge=2),
        About("Images per pretraining step; an incomplete last batch of an epoch is left out.", PRETRAINED),
    ] = 250
    precision: Annotated[
        Literal["fp32", "bf16"],
        About("Arithmetic of the encoder and decoder in pretraining (bf16: autocast; losses stay fp32).", PRETRAINED),
    ] = "fp32"
    seed: Annotated[
        int, Field(ge=0, le=2**31 - 1), About("Seed of the initial weights and of every draw of the trial.")
    ] = 0

    strength: Annotated[
        float,
        Field(ge=0),
        About(
            "Augmentation strength s: 0 is no augmentation, 1 SimCLR's published policy.", PRETRAINED, "Augmentation"
        ),
    ] = 0.5
    blur: Annotated[bool, About("Add Gaussian blur, with probability min(s, 1)/2.", AUGMENTED, "Augmentation")] = False

    dataset: Annotated[
        str,
        About(
            "Images to pretrain on: `digits`, `mnist`, `fashion_mnist`, `cifar10`, `cifar100`, `svhn`, `stl10`, or "
            "`folder:PATH`.",
            group="Data",
        ),
    ] = "digits"
    probe_dataset: Annotated[
        str | None,
        About("Labelled images to evaluate on; none means `dataset`.", group="Data", protocol=True),
    ] = None
    image_size: Annotated[
        int | None,
        Field(ge=8, le=512),
        About(
            "Side in pixels to which the images of both datasets are scaled; none means `dataset`'s own (8 for digits, "
            "28 for the MNISTs, 96 for stl10, 32 for the others and for folders).",
            group="Data",
        ),
    ] = None
    data_dir: Annotated[
        str, Field(validate_default=True), About("Where downloaded datasets lie.", group="Data", search=False)
    ] = "data"
    skip_bad_images: Annotated[
        bool, About("Leave unreadable files of an image folder out instead of stopping.", group="Data", search=False)
    ] = False

    le_epochs: Annotated[int, Field(ge=1), About("Epochs of the linear probe.", group="Evaluation", protocol=True)] = (
        300
    )
    le_lr: Annotated[
        float, Field(gt=0), About("Adam's learning rate in the linear probe.", group="Evaluation", protocol=True)
    ] = 1e-3
    le_batch_size: Annotated[
        int, Field(ge=1), About("Batch size of the linear probe.", group="Evaluation", protocol=True)
    ] = 250
    standardize: Annotated[
        bool,
        About(
            "Scale the linear probe's features to mean 0 and variance 1 over the fit split.",
            group="Evaluation",
            protocol=True,
        ),
    ] = True
    labels_per_class: Annotated[
        int | None,
        Field(ge=1),
        About(
            "Train the linear probe on this many labelled images a class, drawn by `seed`; none means all.",
            group="Evaluation",
            protocol=True,
        ),
    ] = None
    probe_layer: Annotated[
        Literal["trunk", "embedding"],
        About(
            "Features that the probes read: the flattened trunk, or the embedding z.", group="Evaluation", protocol=True
        ),
    ] = "trunk"
    knn_k: Annotated[int, Field(ge=1), About("Neighbours of the kNN probes.", group="Evaluation", protocol=True)] = 20
    knn_temperature: Annotated[
        float, Field(gt=0), About("Temperature of the kNN votes' weights.", group="Evaluation", protocol=True)
    ] = 0.07
    val_fraction: Annotated[
        float,
        Field(ge=0, lt=1),
        About(
            "Share of the train split kept for validation, stratified; 0 is none.", group="Evaluation", protocol=True
        ),
    ] = 0.1
    split_seed: Annotated[
        int,
        Field(ge=0, le=2**31 - 1),
        About("Seed of the fit/val division, apart from `seed`.", VALIDATED, "Evaluation", protocol=True),
    ] = 0
    probe_every: Annotated[
        int,
        Field(ge=0),
        About(
            "Epochs between two evaluations while pretraining (online kNN, embedding spread and rank); 0 is none.",
            PRETRAINED,
            "Evaluation",
            search=False,
        ),
    ] = 10
    images_every: Annotated[
        int,
        Field(ge=0),
        About("Epochs between two image grids in TensorBoard; 0 is none.", PRETRAINED, "Evaluation", search=False),
    ] = 50

    _types = field_validator("*", mode="before")(check_type)

    @field_validator("dataset", "probe_dataset", "data_dir")
    @classmethod
    def _absolute(cls, value: str | None, info: ValidationInfo) -> str | None:
        """Relative paths are the current directory's; made absolute, a sweep can be resumed from anywhere."""
        if info.field_name == "data_dir":
            return absolute(str(value))
        if value is not None and value.startswith(FOLDER) and value != FOLDER:
            return FOLDER + absolute(value.removeprefix(FOLDER))
        return value

    @property
    def probes(self) -> str:
        """The dataset that is evaluated on."""
        return self.probe_dataset or self.dataset

    @property
    def views(self) -> int:
        """Augmented views per image and step."""
        return 1 if self.usl_type == "ae_single" else 2


SETTINGS: tuple[str, ...] = tuple(Settings.model_fields)

METRICS: dict[str, str] = {
    "pretrain/loss": "The objective, mean over the epoch's steps.",
    "pretrain/rec_loss": "Its reconstruction part, summed over the views.",
    "pretrain/emb_loss": "Its embedding part, before the weight α.",
    "pretrain/embedding_std": "Mean standard deviation of the embedding's dimensions, on 1,024 fixed images.",
    "pretrain/rankme": "RankMe, the effective rank of the same embeddings (Garrido et al. 2023).",
    "pretrain/images_per_s": "Training images per second.",
    "online/knn_val_accuracy": "kNN on fixed subsets while pretraining: bank from the fit split, queries from val.",
    "linear/train_accuracy": "Linear probe on its own training images, while they train it.",
    "linear/val_accuracy": "Linear probe, validation split.",
    "linear/test_accuracy": "Linear probe, test split; computed once, at the end.",
    "kmeans/accuracy": "k-means on the test features: accuracy under the best one-to-one assignment.",
    "kmeans/nmi": "k-means: normalised mutual information.",
    "kmeans/ari": "k-means: adjusted Rand index.",
    "knn/val_accuracy": "Weighted kNN, bank from the fit split, validation split.",
    "knn/test_accuracy": "Weighted kNN, bank from the fit split, test split.",
}
"""Every metric, in words; steps are epochs, each metric's own."""

# What a sweep may choose by: nothing that has seen a test label.
CHOICES = tuple(name for name in METRICS if not name.endswith("test_accuracy") and not name.startswith("kmeans/"))


def absolute(path: str) -> str:
    """The path from the root on, `~` resolved; raises ValueError for the home of nobody."""
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError as fault:
        raise ValueError(f"cannot be resolved ({fault})") from None


def has_metric(name: str, settings: Settings) -> bool:
    """Whether an experiment with these settings reports the metric `name`."""
    if "val_accuracy" in name and settings.val_fraction == 0:
        return False
    if name in ("online/knn_val_accuracy", "pretrain/embedding_std", "pretrain/rankme") and not settings.probe_every:
        return False
    if name == "pretrain/rec_loss" and settings.usl_type == "simclr":
        return False
    if name == "pretrain/emb_loss" and settings.views == 1:
        return False
    return settings.usl_epochs > 0 or not name.startswith(("pretrain/", "online/"))


def about(name: str) -> About:
    """The description of the setting `name`."""
    return next(item for item in Settings.model_fields[name].metadata if isinstance(item, About))


def is_number(name: str) -> bool:
    """Whether the setting `name` is a number."""
    return Settings.model_fields[name].annotation in NUMBERS


def has_effect(name: str, settings: Settings) -> bool:
    """Whether the value of the setting `name` can change anything in an experiment with these settings."""
    return about(name).effect.holds(settings)


def make_settings(values: Mapping[str, Any], where: str) -> Settings:
    """Check `values` and fill in the defaults; `where` opens the message of the InputError that a fault raises."""
    return check_model(Settings, values, where)


def protocol(settings: Settings, probe_digest: str) -> dict[str, Any]:
    """All that decides whether two scores may be compared: settings of the evaluation, its data, the code's version.

    `probe_digest` identifies the pixels and labels of the probe dataset (`Dataset.digest`).
    """
    chosen = {name: getattr(settings, name) for name in SETTINGS if about(name).protocol}
    chosen["probe_dataset"] = settings.probes.split(":")[0]  # a folder counts by its content, not by where it lies
    return {**chosen, "probe_data": probe_digest, "version": PROTOCOL_VERSION}


def fingerprint(of: Mapping[str, Any]) -> str:
    """A protocol in 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:12]


def suggest(given: object, valid: Iterable[str]) -> str:
    """`, did you mean X?` where something valid is close to what was given, else what is valid."""
    valid = list(valid)
    close = difflib.get_close_matches(str(given), valid, n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else f"; valid: {', '.join(valid)}"


Model = TypeVar("Model", bound=BaseModel)


def check_model(model: type[Model], values: Mapping[str, Any], where: str) -> Model:
    """Build `model` from `values`; the first fault becomes one line, as an InputError."""
    unknown = [key for key in values if key not in model.model_fields]
    if unknown:
        raise InputError(f"{where}: unknown key {str(unknown[0])!r}{suggest(unknown[0], model.model_fields)}")
    try:
        return model(**values)
    except ValidationError as fault:
        error = fault.errors()[0]
        key = error["loc"][0] if error["loc"] else ""
        problem = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        raise InputError(f"{where}: {key}: {problem}, not {error['input']!r}") from None
