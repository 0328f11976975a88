"""The settings of one experiment: their types, checks, and the conditions under which they have an effect.

The class below has the settings of the experiment as a whole. The parts (see `raysweep.parts`) add their own settings.
The flags of the command line, the checks of a search space, the fingerprint of the evaluation protocol, TensorBoard's
hyperparameters and `docs/search_space_reference.md` are derived from this one class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo

from raysweep import parts
from raysweep.config.conditions import AUGMENTED, EMBEDDED, HEADED, LABELLED, LAYERED, PRETRAINED, TRAINABLE, VALIDATED
from raysweep.config.consistency import check_combination
from raysweep.config.description import About
from raysweep.config.part_settings import ANCHORS, field_of_parameter, in_a_family, make_field, one_of
from raysweep.config.validation import ALONE, check_model, check_type
from raysweep.config.values import NUMBERS, suggest
from raysweep.errors import InputError
from raysweep.system.places import expanded

FOLDER = "folder:"
"""The name of an image folder as a dataset begins with this."""


class Settings(BaseModel):
    """One experiment: self-supervised pretraining of an encoder, then its evaluation.

    The specification that raysweep implements (see `docs/readings.md`) uses the same names on its command line.
    raysweep uses the defaults of the specification.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    usl_type: Annotated[
        str,
        About(
            "Method. `ae_single`: autoencoder on one view. `ae_parallel`: autoencoder on two views, with an embedding "
            "loss between them. `simclr`, `barlow_twins`, `vicreg`, `byol`, `simsiam`: the methods of these names. "
            "`supervised`: training with the labels of `dataset`.",
            PRETRAINED,
            objective=True,
        ),
        parts.Chooses("method"),
    ] = "ae_parallel"
    encoder: Annotated[
        str,
        About(
            "Encoder. `conv6`: five convolutions. `resnet18`: torchvision's ResNet-18, untrained, with a first layer "
            "for small images. `timm/NAME`: a model of the package timm, untrained. `pixels`, `pca`: the pixels or "
            "their principal components, which are not pretrained."
        ),
        parts.Chooses("encoder"),
    ] = "conv6"
    layerwise: Annotated[
        Literal["none", "greedy", "random"],
        About(
            "`none`: training end to end. `greedy`: one block after the other, `usl_epochs` for each, with a head and "
            "a decoder of its own. `random`: each batch trains one block, drawn at random.",
            LAYERED & PRETRAINED,
            objective=True,
        ),
    ] = "none"
    head: Annotated[
        str, About("Projection head: maps the encoder's features to the embedding z.", HEADED), parts.Chooses("head")
    ] = "linear"
    embedding_dim: Annotated[
        int,
        Field(ge=1),
        About(
            "Width of the embedding z (the head's output), or the number of components of `pca`.",
            EMBEDDED,
            objective=True,
        ),
    ] = 64
    usl_epochs: Annotated[
        int,
        Field(ge=0),
        About("Pretraining epochs; with `layerwise`, for each block. 0 keeps the random encoder.", TRAINABLE),
    ] = 400
    optimizer: Annotated[
        str,
        About("Optimiser of pretraining: Adam, AdamW, SGD, or LARS (which needs the package timm).", PRETRAINED),
        parts.Chooses("optimizer"),
    ] = "adam"
    usl_lr: Annotated[
        float, Field(gt=0), About("Learning rate of pretraining; its maximum if `schedule` varies it.", PRETRAINED)
    ] = 1e-4
    schedule: Annotated[
        str,
        About(
            "Schedule of the learning rate: constant; a cosine after a linear warm-up; or `wsd`, warm-up, stable phase "
            "and decay, both slopes linear. In layerwise training `greedy` runs it once for each block, `random` once.",
            PRETRAINED,
        ),
        parts.Chooses("schedule"),
    ] = "constant"
    batch_size: Annotated[
        int,
        Field(ge=2),
        About(
            "Images per pretraining step. An incomplete last batch of an epoch is left out.", PRETRAINED, objective=True
        ),
    ] = 250
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        About(
            "Arithmetic of the encoder and decoder in pretraining; losses are always in fp32. `auto` uses bf16 if the "
            "processor or GPU has it in hardware, and fp32 otherwise. The results name the precision.",
            PRETRAINED,
        ),
    ] = "auto"
    seed: Annotated[
        int, Field(ge=0, le=2**31 - 1), About("Seed of the initial weights and of every random draw of the trial.")
    ] = 0

    strength: Annotated[
        float,
        Field(ge=0, le=100),
        About(
            "Augmentation strength s. 0 means no augmentation; 1 is the published form of `simclr` and of `affine`.",
            PRETRAINED,
            "Augmentation",
            objective=True,
        ),
    ] = 0.5
    policy: Annotated[
        str,
        About(
            "Augmentation: `simclr`, `affine`, `noise` or `mask`. Several are applied in the given order: "
            "`simclr+noise`, or `[simclr, noise]` under `base`.",
            AUGMENTED,
            "Augmentation",
            composed=True,
            objective=True,
        ),
    ] = "simclr"
    dataset: Annotated[
        str,
        About(
            "Images to pretrain on: `digits`, `digits_m`, `mnist`, `fashion_mnist`, `cifar10`, `cifar100`, `svhn`, "
            "`stl10`, or `folder:PATH`.",
            group="Data",
        ),
    ] = "digits"
    probe_dataset: Annotated[
        str | None, About("Images for the evaluation. None means `dataset`.", group="Data", protocol=True)
    ] = None
    probe_labels: Annotated[
        bool,
        About(
            "Whether the evaluation reads labels. raysweep sets it to false for images without labels; then only "
            "probes that need no labels run.", group="Data", protocol=True, search=False,
        ),
    ] = True  # fmt: skip
    image_size: Annotated[
        int | None,
        Field(ge=8, le=512),
        About(
            "Side in pixels to which the images of both datasets are scaled. None means the side of `dataset`: 8 for "
            "digits, 16 for digits_m, 28 for mnist and fashion_mnist, 96 for stl10, 32 for the others and for folders.",
            group="Data",
        ),
    ] = None
    data_dir: Annotated[
        str, Field(validate_default=True), About("Folder of downloaded datasets.", group="Data", search=False)
    ] = "data"
    skip_bad_images: Annotated[
        bool, About("Skip unreadable files of an image folder instead of stopping.", group="Data", search=False)
    ] = False

    val_fraction: Annotated[
        float,
        Field(ge=0, lt=1),
        About(
            "Fraction of each class of the train split that is kept for validation; 0 means no validation. A dataset "
            "with a `val/` folder is validated on that folder, unless this is 0.",
            LABELLED, "Evaluation", protocol=True,
        ),
    ] = 0.1  # fmt: skip
    split_seed: Annotated[
        int,
        Field(ge=0, le=2**31 - 1),
        About(
            "Seed of the division of the train split into fit and validation images; independent of `seed`.",
            VALIDATED,
            "Evaluation",
            protocol=True,
        ),
    ] = 0
    probe_every: Annotated[
        int,
        Field(ge=0),
        About(
            "Epochs between two evaluations during pretraining (kNN accuracy, spread and rank of the embedding). 0 "
            "means none.",
            PRETRAINED,
            "Evaluation",
            search=False,
        ),
    ] = 10
    images_every: Annotated[
        int,
        Field(ge=0),
        About("Epochs between two pictures in TensorBoard. 0 means none.", PRETRAINED, "Evaluation", search=False),
    ] = 50

    keep: Annotated[
        Literal["encoder", "final_state"],
        About(
            "What a finished trial keeps: its encoder, or also the final state of its training, so that a trial with "
            "more `usl_epochs` can continue it.", PRETRAINED, search=False,
        ),
    ] = "encoder"  # fmt: skip

    projector_images: Annotated[
        int,
        Field(ge=0),
        About("Test images in TensorBoard's projector, which needs labels. 0: none.", group="Evaluation", search=False),
    ] = 500

    cache_gb: Annotated[
        float,
        Field(ge=0),
        About(
            "Largest size in GB of the features that `raysweep evaluate` keeps in `$RAYSWEEP_CACHE/features` (default "
            "`~/.cache/raysweep`) on each machine. 0 keeps none.", group="Evaluation", search=False,
        ),
    ] = 10.0  # fmt: skip

    @field_validator("policy", mode="before")
    @classmethod
    def _one_policy(cls, value: Any) -> Any:
        """Return the policies in their order, as one text. Raise ValueError for an unknown policy."""
        names = value.split("+") if isinstance(value, str) else value if isinstance(value, list) else [value]
        for name in names:
            if not isinstance(name, str):
                raise ValueError('must be a string, or a list of strings (put it in quotes, such as "mask")')
            if name not in parts.policy and name.lower() == "none":
                raise ValueError("write strength: 0 for no augmentation")
            if name not in parts.policy:
                raise ValueError(f"unknown policy {name!r}{suggest(str(name), parts.policy)}")
        if len(set(names)) < len(names) or not names:
            raise ValueError("give at least one policy, and none twice")
        return "+".join(names)

    # Pydantic runs the last "before" validator first. So `none` is read here, before the validators above run.
    _types = field_validator("*", mode="before")(check_type)

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> Settings:
        """Check the rules that concern several settings.

        `make_base` skips this check, because it checks each value by itself.
        """
        parts.encoder[self.encoder]  # the part of a family may not exist
        if not (info.context or {}).get(ALONE):
            check_combination(self)
        return self

    @field_validator("dataset", "probe_dataset", "data_dir")
    @classmethod
    def _absolute(cls, value: str | None, info: ValidationInfo) -> str | None:
        """Make a path absolute, so that a sweep can be resumed from any directory."""
        if info.field_name == "data_dir":
            return absolute(str(value))
        if value is not None and value.startswith(FOLDER) and value != FOLDER:
            return FOLDER + absolute(value.removeprefix(FOLDER))
        return value

    def __hash__(self) -> int:
        # pydantic hashes only the fields in this class body and leaves out the parameters of parts. All points of a
        # grid of alpha would then have the same hash, and a table of n points would need n² comparisons.
        return hash(tuple(self.__dict__.values()))

    @property
    def evaluated_dataset(self) -> str:
        """The dataset that the encoder is evaluated on."""
        return self.probe_dataset or self.dataset

    @property
    def views(self) -> int:
        """The number of augmented views of each image in a step."""
        return int(parts.method[self.usl_type].traits["views"])

    @property
    def policies(self) -> tuple[str, ...]:
        """The augmentation policies, in the order in which they are applied."""
        return tuple(self.policy.split("+"))

    @property
    def pretrain_epochs(self) -> int:
        """The epochs of pretraining: `usl_epochs`, times the number of blocks if training is layer by layer."""
        blocks = 1 if self.layerwise == "none" else int(parts.encoder[self.encoder].traits["blocks"])
        return self.usl_epochs * blocks


@cache  # expanding a sweep of many trials asks for each description thousands of times
def about(name: str) -> About:
    """Return the description of the setting `name`."""
    return next(item for item in Settings.model_fields[name].metadata if isinstance(item, About))


def complete_settings() -> None:
    """Give `Settings` a field for every parameter that a part declares, and the valid names of the parts."""
    declared = parts.declared_parameters()
    taken = next((name for name in declared if name in CORE_FIELDS), None)
    if taken is not None:
        raise InputError(f"{taken}: is a setting already; give the parameter another name")
    fields: dict[str, FieldInfo] = {}
    for name, core in CORE_FIELDS.items():
        chosen = next((mark.kind for mark in core.metadata if isinstance(mark, parts.Chooses)), None)
        fields[name] = core
        if chosen is not None:
            table = parts.TABLES[chosen]
            fields[name] = make_field(one_of(table), [*core.metadata, in_a_family(table)], core.default)
        for kind in ANCHORS.get(name, ()):
            for parameter in parts.declared_parameters((kind,)).values():
                fields.setdefault(parameter.name, field_of_parameter(declared[parameter.name]))
    Settings.model_fields.clear()
    Settings.model_fields.update(fields)
    Settings.model_rebuild(force=True)
    about.cache_clear()


CORE_FIELDS: Mapping[str, FieldInfo] = dict(Settings.model_fields)
complete_settings()
parts.watchers.append(complete_settings)


class SettingNames(Sequence[str]):
    """The names of all settings, in the order of the class, including parts that are declared later."""

    def __getitem__(self, index: Any) -> Any:
        return list(Settings.model_fields)[index]

    def __iter__(self) -> Iterator[str]:
        return iter(Settings.model_fields)

    def __contains__(self, name: object) -> bool:
        return name in Settings.model_fields

    def __len__(self) -> int:
        return len(Settings.model_fields)


SETTINGS = SettingNames()


def absolute(path: str) -> str:
    """Return the absolute path, with `~` replaced; raises InputError if the user has no home directory."""
    return str(Path(expanded(path)).absolute())


def default_of(name: str) -> Any:
    """Return the default of the setting `name`."""
    return Settings.model_fields[name].default


def is_number(name: str) -> bool:
    """Return whether the setting `name` is a number."""
    return Settings.model_fields[name].annotation in NUMBERS


def has_effect(name: str, settings: Settings) -> bool:
    """Return whether the setting `name` can change anything in an experiment with these settings."""
    return about(name).effect.holds(settings)


def make_settings(values: Mapping[str, Any], where: str, typed: Mapping[str, str] | None = None) -> Settings:
    """Check `values` and fill in the defaults; see `check_model`.

    Raises:
        InputError: a value is wrong; the message begins with `where`.
    """
    return check_model(Settings, values, where, typed)


def make_base(values: Mapping[str, Any], where: str, typed: Mapping[str, str] | None = None) -> Settings:
    """Check each of `values` by itself and fill in the defaults. Trials change some of them before `make_settings`.

    Raises:
        InputError: a value is wrong, whatever the other values are; the message begins with `where`.
    """
    return check_model(Settings, values, where, typed, {ALONE: True})
