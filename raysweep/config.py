"""The settings of one experiment: typed, checked, and each with the condition under which it has an effect.

Everything that has to know the settings is derived from this one class: the flags of the command line, the checks of a
search space, the evaluation protocol's fingerprint, TensorBoard's hyperparameters and `docs/search-space.md`.
"""

from __future__ import annotations

import datetime
import difflib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from raysweep.errors import InputError
from raysweep.places import expanded

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
HINGE = Effect("`ae_parallel` with `emb_loss: hinge`", lambda s: EMBEDDING.holds(s) and s.emb_loss == "hinge")
LAYERED = Effect("`encoder: conv6`", lambda s: s.encoder == "conv6")
BLOCKWISE = Effect("`encoder: conv6`", lambda s: s.encoder == "conv6" and PRETRAINED.holds(s))
AUGMENTED = Effect("`strength` > 0", lambda s: s.strength > 0 and PRETRAINED.holds(s))
BLURRED = Effect("`policy` with `simclr`, `strength` > 0", lambda s: AUGMENTED.holds(s) and "simclr" in s.policies)
VALIDATED = Effect("`val_fraction` > 0", lambda s: s.val_fraction > 0)
METHOD_EFFECTS = (PARALLEL, EMBEDDING, NT_XENT, BARLOW, HINGE)
"""Of the settings that some methods lack altogether: giving one that no trial reads is a mistake. That of `denoising`
is not among them, so that any sweep of autoencoders may be turned to SimCLR by `--usl_type simclr`."""
HEAD = Effect(
    "`usl_epochs` > 0, or a probe on the embedding",
    lambda s: PRETRAINED.holds(s) or "embedding" in (s.probe_layer, *(head.layer for head in s.heads)),
)
BANKLESS_LR = Effect("no `lr` in `probe_bank`, or `per_layer`", lambda s: s.per_layer or "lr" not in s.banked)
BANKLESS_DECAY = Effect(
    "no `weight_decay` in `probe_bank`, or `per_layer`", lambda s: s.per_layer or "weight_decay" not in s.banked
)


@dataclass(frozen=True)
class About:
    """What a setting is, beside its type and range."""

    text: str
    effect: Effect = ALWAYS
    group: str = "Pretraining"
    composed: bool = False
    """A list or mapping given for it is one value, not several; it is kept as text."""
    protocol: bool = False
    """Part of the evaluation protocol: scores that differ in it are not comparable."""
    search: bool = True
    """May be swept (False: it says where files lie, which are left out, or what is shown)."""


BLOCKS = 5
"""Blocks of Conv6."""

POLICIES = ("simclr", "affine", "noise", "mask")

Layer = Literal["trunk", "embedding", "layer1", "layer2", "layer3", "layer4", "layer5"]


@dataclass(frozen=True)
class Head:
    """One linear probe: what it reads, and how it is trained."""

    layer: str
    lr: float
    weight_decay: float

    def __str__(self) -> str:
        """`layer=trunk,lr=0.001,weight_decay=0.0`."""
        return f"layer={self.layer},lr={self.lr},weight_decay={self.weight_decay}"


@dataclass(frozen=True)
class Collapse:
    """When a trial's embedding counts as collapsed for good."""

    evaluations: int
    """In a row, ≥ 1."""
    rankme: float
    """Collapsed below this effective rank,"""
    std: float
    """or below this mean standard deviation."""

    def holds(self, metrics: Mapping[str, float]) -> bool:
        """Whether an evaluation found the embedding collapsed."""
        return metrics["pretrain/rankme"] < self.rankme or metrics["pretrain/embedding_std"] < self.std

    def words(self, metrics: Mapping[str, float], epoch: int) -> str:
        """The reason for a trial's end."""
        rank, std = metrics["pretrain/rankme"], metrics["pretrain/embedding_std"]
        return (
            f"the embedding collapsed: RankMe {rank:.3g}, standard deviation {std:.3g} in pretraining epoch {epoch}, "
            f"under {self.rankme:g} or {self.std:g} in {self.evaluations} evaluation(s) in a row"
        )


MAX_DIGITS = 300
"""Most digits of a whole number that is kept exactly. A longer one becomes a float, whose maximum has 309 digits."""
WHOLE_NUMBER = re.compile(r"[+-]?[0-9]+")
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


def read_number(text: str) -> int | float:
    """The number that `text` writes in decimal, the only notation there is: `010` is ten, as `seq -w` means it.

    Raises:
        ValueError: `text` is something else, such as `0x10`, `1_000`, `1:30` or digits of another script.
    """
    text = text.strip()
    if not NUMBER.fullmatch(text):
        raise ValueError("must be a number in decimal, such as 16, 0.5 or 1e-3")
    if WHOLE_NUMBER.fullmatch(text) and len(text) <= MAX_DIGITS:
        return int(text)
    return float(text) + 0.0  # -0.0 becomes 0.0: a trial of the two would have two names


Number = Annotated[float, BeforeValidator(lambda value: read_number(value) if isinstance(value, str) else value)]


class Bank(BaseModel):
    """Linear probes to train together: every combination of these; an empty list is the one setting's own value."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    lr: tuple[Annotated[Number, Field(gt=0)], ...] = ()
    weight_decay: tuple[Annotated[Number, Field(ge=0)], ...] = ()
    layer: tuple[Layer, ...] = ()

    @classmethod
    def read(cls, value: Any) -> Bank:
        """A bank from a mapping of lists, or from `lr=1e-4+1e-3,layer=trunk`; raises ValueError."""
        if isinstance(value, str):
            parts = [part.partition("=") for part in value.split(",")]
            value = {name.strip(): items.split("+") for name, _, items in parts}
        if not isinstance(value, dict) or not value:
            raise ValueError("expected lists of lr, weight_decay, layer, such as {lr: [1.0e-4, 1.0e-3]}")
        given: dict[str, Any] = {}
        for name, items in value.items():
            if name not in cls.model_fields:
                raise ValueError(f"unknown key {name!r}{suggest(str(name), cls.model_fields)}")
            given[name] = items = items if isinstance(items, list) else [items]
            if not items or any(isinstance(item, bool) for item in items):
                raise ValueError(f"{name}: {items!r} is no list of values")
        try:
            bank = cls(**given)
        except ValidationError as fault:
            first = fault.errors()[0]
            problem = first["msg"].removeprefix("Value error, ")
            raise ValueError(f"{first['loc'][0]}: {first['input']!r}: {problem}") from None
        for name in cls.model_fields:
            items = getattr(bank, name)
            if len(set(items)) < len(items):
                raise ValueError(f"{name}: a value stands there twice")
        return bank

    def text(self) -> str:
        """The one way to write it, which `read` understands."""
        lists = {name: getattr(self, name) for name in type(self).model_fields}
        return ",".join(f"{name}={'+'.join(map(str, items))}" for name, items in lists.items() if items)


NUMBERS = (int, float, int | None, float | None)
OPTIONAL = (int | None, float | None, str | None)
TEXTS = (str, str | None)


def check_type(cls: type[BaseModel], value: Any, info: ValidationInfo) -> Any:
    """Check what pydantic would let pass: text as a number in any notation, true as a number, 1 as true."""
    field = cls.model_fields[str(info.field_name)]
    kind, composed = field.annotation, any(isinstance(item, About) and item.composed for item in field.metadata)
    if isinstance(value, str) and value.strip().lower() in ("none", "null") and kind in OPTIONAL:
        return None  # as the documentation writes it; YAML's own word is null
    if kind in NUMBERS and isinstance(value, bool):
        raise ValueError("expected a number")
    if kind in NUMBERS and isinstance(value, str) and re.search(r"\d", value):
        return read_number(value)
    if kind in TEXTS and not composed and value is not None and not isinstance(value, (str, list, dict)):
        raise ValueError('must be a string (put it in quotes, such as "12")')
    if kind is bool and not isinstance(value, bool):
        raise ValueError("expected True or False")
    return value


class Settings(BaseModel):
    """One experiment: self-supervised pretraining of an encoder, then its evaluation.

    The names are those of the reference implementation's command line; its defaults are kept where it states one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    usl_type: Annotated[
        Literal["ae_single", "ae_parallel", "simclr"],
        About(
            "Method: autoencoder on one view, on two views with an embedding loss between them, or SimCLR.", PRETRAINED
        ),
    ] = "ae_parallel"
    encoder: Annotated[
        Literal["conv6", "resnet18"],
        About("Encoder: Conv6, or torchvision's ResNet-18, untrained, with a stem for small images."),
    ] = "conv6"
    init: Annotated[
        Literal["pytorch", "kaiming"],
        About(
            "Initial weights of Conv6's blocks: PyTorch's own, uniform with variance 1/(3·fan-in), or Kaiming (He et "
            "al. 2015), normal with variance 2/fan-in, with which SimCLR's loss falls sooner. The random encoder has "
            "the same.",
            LAYERED,
        ),
    ] = "pytorch"
    layerwise: Annotated[
        Literal["none", "greedy", "random"],
        About(
            "End-to-end training; or block by block, `usl_epochs` for each, with a local head and a decoder block: one "
            "after the other, or one drawn for each batch.",
            BLOCKWISE,
        ),
    ] = "none"
    denoising: Annotated[
        bool, About("Reconstruct the clean image instead of the augmented view itself.", AUTOENCODER)
    ] = False
    alpha: Annotated[float, Field(ge=0), About("Weight α of the embedding loss between the two views.", PARALLEL)] = 0.1
    emb_loss: Annotated[
        Literal["mse", "l1", "simclr", "barlow", "hinge"],
        About(
            "Embedding loss: mean squared or absolute difference, NT-Xent, Barlow Twins, or contrastive hinge.",
            EMBEDDING,
        ),
    ] = "mse"
    temperature: Annotated[float, Field(gt=0), About("Temperature τ of NT-Xent.", NT_XENT)] = 0.5
    barlow_lambda: Annotated[
        float, Field(ge=0), About("Weight λ of Barlow Twins' redundancy-reduction term.", BARLOW)
    ] = 0.005
    hinge_m: Annotated[
        float, Field(gt=0), About("Threshold m of the contrastive hinge's distances, its decision boundary.", HINGE)
    ] = 2.0
    hinge_delta: Annotated[
        float, Field(ge=0), About("Margin δ of the contrastive hinge on both sides of m.", HINGE)
    ] = 1.0
    embedding_dim: Annotated[int, Field(ge=1), About("Width of the embedding z, the head's output.", HEAD)] = 64
    usl_epochs: Annotated[
        int, Field(ge=0), About("Pretraining epochs, of each block if `layerwise`; 0: a random encoder.")
    ] = 400
    usl_lr: Annotated[float, Field(gt=0), About("Adam's learning rate in pretraining.", PRETRAINED)] = 1e-4
    batch_size: Annotated[
        int,
        Field(ge=2),
        About("Images per pretraining step; an incomplete last batch of an epoch is left out.", PRETRAINED),
    ] = 250
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        About(
            "Arithmetic of the encoder and decoder in pretraining (bf16: autocast; losses stay fp32); `auto` is bf16 "
            "where the processor or GPU has it in hardware, else fp32, and results say which.",
            PRETRAINED,
        ),
    ] = "auto"
    seed: Annotated[
        int, Field(ge=0, le=2**31 - 1), About("Seed of the initial weights and of every draw of the trial.")
    ] = 0

    strength: Annotated[
        float,
        Field(ge=0),
        About(
            "Augmentation strength s: 0 is no augmentation, 1 SimCLR's published policy (for ImageNet).",
            PRETRAINED,
            "Augmentation",
        ),
    ] = 0.5
    policy: Annotated[
        str,
        About(
            "Augmentation: `simclr`, `affine`, `noise`, `mask`, or several, applied in their order: `simclr+noise`, or "
            "`[simclr, noise]` under `base`.",
            AUGMENTED,
            "Augmentation",
            composed=True,
        ),
    ] = "simclr"
    blur: Annotated[
        bool, About("`simclr`: add Gaussian blur, with probability min(s, 1)/2.", BLURRED, "Augmentation")
    ] = False

    dataset: Annotated[
        str,
        About(
            "Images to pretrain on: `digits`, `digits_m`, `mnist`, `fashion_mnist`, `cifar10`, `cifar100`, `svhn`, "
            "`stl10`, or `folder:PATH`.",
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
            "16 for digits_m, 28 for the MNISTs, 96 for stl10, 32 for the others and for folders).",
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
        float,
        Field(gt=0),
        About("Adam's learning rate in the linear probe.", BANKLESS_LR, "Evaluation", protocol=True),
    ] = 1e-3
    le_batch_size: Annotated[
        int, Field(ge=1), About("Batch size of the linear probe.", group="Evaluation", protocol=True)
    ] = 250
    le_weight_decay: Annotated[
        float,
        Field(ge=0),
        About(
            "Weight decay (an L2 penalty, as in Adam) of the linear probe.", BANKLESS_DECAY, "Evaluation", protocol=True
        ),
    ] = 0.0
    probe_bank: Annotated[
        str | None,
        About(
            "Linear probes that are trained together, every combination of what is listed, the best on val counting: "
            "`lr=1e-4+1e-3,weight_decay=0+1e-4,layer=trunk+embedding`, or as a mapping of lists under `base`; what is "
            "not listed is `le_lr`, `le_weight_decay`, `probe_layer`. None is that one probe alone.",
            group="Evaluation",
            protocol=True,
            composed=True,
        ),
    ] = None
    per_layer: Annotated[
        bool,
        About(
            "Also train a linear probe on every block's output, average-pooled by 2 until it is no wider than the "
            "trunk's. A sweep with layer-wise trials has it unless told otherwise.",
            LAYERED,
            "Evaluation",
            search=False,
        ),
    ] = False
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
        Layer,
        About(
            "Features that the probes read: the flattened trunk, the embedding z, or the output of one of Conv6's "
            "blocks, pooled as for `per_layer`.",
            group="Evaluation",
            protocol=True,
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
            "Share of the train split kept for validation, stratified; 0 is none. A dataset with a `val/` folder is "
            "validated on that, whatever the share, unless it is 0.",
            group="Evaluation",
            protocol=True,
        ),
    ] = 0.1
    split_seed: Annotated[
        int,
        Field(ge=0, le=2**31 - 1),
        About(
            "Seed of the fit/val division, apart from `seed`; a `val/` folder needs none.",
            VALIDATED,
            "Evaluation",
            protocol=True,
        ),
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

    projector_images: Annotated[
        int,
        Field(ge=0),
        About("Test images in TensorBoard's projector; 0 is none.", group="Evaluation", search=False),
    ] = 500

    @field_validator("policy", mode="before")
    @classmethod
    def _one_policy(cls, value: Any) -> Any:
        """The policies in their order, as one text."""
        names = value.split("+") if isinstance(value, str) else value if isinstance(value, list) else [value]
        for name in names:
            if not isinstance(name, str):
                raise ValueError('must be a string, or a list of strings (put it in quotes, such as "mask")')
            if name not in POLICIES:
                raise ValueError(f"unknown policy {name!r}{suggest(str(name), POLICIES)}")
        if len(set(names)) < len(names) or not names:
            raise ValueError(f"each policy at most once, and at least one, not {value!r}")
        return "+".join(names)

    @field_validator("probe_bank", mode="before")
    @classmethod
    def _one_bank(cls, value: Any) -> Any:
        """The probes' settings as one text, whichever way they were given."""
        return None if value is None else Bank.read(value).text()

    # The last "before" validator is the first to run: it reads `none`, which those above then need not know.
    _types = field_validator("*", mode="before")(check_type)

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        """What no setting can say of itself."""
        if self.encoder != "conv6":
            if self.layerwise != "none":
                raise ValueError(
                    f"layerwise: {self.layerwise} needs an encoder that is made of blocks, which {self.encoder} is "
                    "not; use encoder: conv6"
                )
            for name, layers in (("probe_layer", [self.probe_layer]), ("probe_bank", [h.layer for h in self.heads])):
                block = next((layer for layer in layers if layer.startswith("layer")), None)
                if block is not None:
                    raise ValueError(f"{name}: {block} is a block of conv6; {self.encoder} has trunk and embedding")
        if len(self.heads) > 1 and self.val_fraction == 0:
            raise ValueError("probe_bank: its best probe is chosen on val images, and val_fraction is 0")
        return self

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

    @property
    def policies(self) -> tuple[str, ...]:
        """The augmentation policies, in the order in which they are applied."""
        return tuple(self.policy.split("+"))

    @property
    def pretrain_epochs(self) -> int:
        """Epochs of pretraining in all: `usl_epochs`, for each block if layer by layer."""
        return self.usl_epochs * (1 if self.layerwise == "none" else BLOCKS)

    @property
    def _bank(self) -> Bank:
        return Bank() if self.probe_bank is None else Bank.read(self.probe_bank)

    @property
    def banked(self) -> tuple[str, ...]:
        """What `probe_bank` lists."""
        return tuple(name for name in Bank.model_fields if getattr(self._bank, name))

    @property
    def heads(self) -> tuple[Head, ...]:
        """The linear probes among which the best on val counts; one, without `probe_bank`."""
        bank = self._bank
        return tuple(
            Head(layer, lr, weight_decay)
            for layer in bank.layer or (self.probe_layer,)
            for lr in bank.lr or (self.le_lr,)
            for weight_decay in bank.weight_decay or (self.le_weight_decay,)
        )


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
    **{
        f"linear/layer{number}/{split}_accuracy": f"Linear probe on block {number}, {words}."
        for number in range(1, BLOCKS + 1)
        for split, words in (("val", "validation split"), ("test", "test split"))
    },
    "kmeans/accuracy": "k-means on the test features: accuracy under the best one-to-one assignment.",
    "kmeans/nmi": "k-means: normalised mutual information.",
    "kmeans/ari": "k-means: adjusted Rand index.",
    "knn/val_accuracy": "Weighted kNN, bank from the fit split, validation split.",
    "knn/test_accuracy": "Weighted kNN, bank from the fit split, test split.",
}
"""Every metric, in words; steps are epochs, each metric's own."""

# What a sweep may choose by: nothing that has seen a test label.
CHOICES = tuple(name for name in METRICS if not name.endswith("test_accuracy") and not name.startswith("kmeans/"))

ONLINE = tuple(name for name in METRICS if name.startswith(("pretrain/", "online/")))
"""What is reported while pretraining."""


def absolute(path: str) -> str:
    """The path from the root on, with `~` replaced by the home directory; raises InputError where there is none."""
    return str(Path(expanded(path)).absolute())


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
    if name.startswith("linear/layer") and not (settings.per_layer and LAYERED.holds(settings)):
        return False
    return settings.usl_epochs > 0 or not name.startswith(("pretrain/", "online/"))


@cache
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
    chosen = {
        name: getattr(settings, name) if has_effect(name, settings) else Settings.model_fields[name].default
        for name in SETTINGS
        if about(name).protocol
    }
    chosen["probe_dataset"] = settings.probes.split(":")[0]  # a folder counts by its content, not by where it lies
    # Version 1 lost the kNN votes at temperatures below 0.02: exp(-2 / temperature), the least vote, is 0 in float32.
    version = PROTOCOL_VERSION if settings.knn_temperature >= 0.02 else max(PROTOCOL_VERSION, 2)
    return {**chosen, "probe_data": probe_digest, "version": version}


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
        problem = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        problem = re.sub(r"valid (number|integer), (unable|got) .*", r"valid \1", problem)
        if not error["loc"]:  # of several settings together; it names them
            raise InputError(f"{where}: {problem}") from None
        key = error["loc"][0]
        raise InputError(f"{where}: {key}: {problem}, not {shown(error['input'])}") from None


def shown(value: object) -> str:
    """A value in a message: as Python writes it, a date as YAML writes it."""
    return str(value) if isinstance(value, datetime.date) else repr(value)
