"""The settings of one experiment: typed, checked, and each with the condition under which it has an effect.

The class below has the settings that belong to the experiment as a whole. The parts (see `raysweep.parts`) add theirs.
The flags of the command line, the checks of a search space, the fingerprint of the evaluation protocol, TensorBoard's
hyperparameters and `docs/search-space.md` are derived from this one class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo

from raysweep import parts
from raysweep.config.conditions import AUGMENTED, EMBEDDED, HEADED, LAYERED, PRETRAINED, TRAINABLE, VALIDATED
from raysweep.config.description import About
from raysweep.config.part_settings import ANCHORS, field_of_parameter, make_field, one_of
from raysweep.config.validation import check_model, check_type
from raysweep.config.values import NUMBERS, suggest
from raysweep.system.places import expanded

FOLDER = "folder:"
"""The name of a dataset that is an image folder begins with this."""
TRUNK, EMBEDDING = "trunk", "embedding"
"""The layers that probes can read of every encoder: its features, and the output of the head."""


class Settings(BaseModel):
    """One experiment: self-supervised pretraining of an encoder, then its evaluation.

    The names are those of the reference implementation's command line; its defaults are kept where it states one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    usl_type: Annotated[
        str,
        About(
            "Method: autoencoder on one view, on two views with an embedding loss between them, SimCLR, or training "
            "with the labels of `dataset`.",
            PRETRAINED,
            objective=True,
        ),
        parts.Chooses("method"),
    ] = "ae_parallel"
    encoder: Annotated[
        str,
        About(
            "Encoder: Conv6; torchvision's ResNet-18, untrained, with a stem for small images; or the pixels or their "
            "principal components, which are not pretrained."
        ),
        parts.Chooses("encoder"),
    ] = "conv6"
    layerwise: Annotated[
        Literal["none", "greedy", "random"],
        About(
            "End-to-end training; or block by block, `usl_epochs` for each, with a local head and a decoder block: one "
            "after the other, or one drawn for each batch.",
            LAYERED & PRETRAINED,
            objective=True,
        ),
    ] = "none"
    head: Annotated[
        str, About("Projection head, from the encoder's features to the embedding z.", HEADED), parts.Chooses("head")
    ] = "linear"
    embedding_dim: Annotated[
        int,
        Field(ge=1),
        About(
            "Width of the embedding z, the head's output; or number of components of `pca`.", EMBEDDED, objective=True
        ),
    ] = 64
    usl_epochs: Annotated[
        int, Field(ge=0), About("Pretraining epochs, of each block if `layerwise`; 0: a random encoder.", TRAINABLE)
    ] = 400
    usl_lr: Annotated[float, Field(gt=0), About("Adam's learning rate in pretraining.", PRETRAINED)] = 1e-4
    batch_size: Annotated[
        int,
        Field(ge=2),
        About(
            "Images per pretraining step; an incomplete last batch of an epoch is left out.", PRETRAINED, objective=True
        ),
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
            objective=True,
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
        str | None, About("Labelled images to evaluate on; none means `dataset`.", group="Data", protocol=True)
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
        int, Field(ge=0), About("Test images in TensorBoard's projector; 0 is none.", group="Evaluation", search=False)
    ] = 500

    @field_validator("policy", mode="before")
    @classmethod
    def _one_policy(cls, value: Any) -> Any:
        """The policies in their order, as one text."""
        names = value.split("+") if isinstance(value, str) else value if isinstance(value, list) else [value]
        for name in names:
            if not isinstance(name, str):
                raise ValueError('must be a string, or a list of strings (put it in quotes, such as "mask")')
            if name not in parts.policy:
                raise ValueError(f"unknown policy {name!r}{suggest(str(name), parts.policy)}")
        if len(set(names)) < len(names) or not names:
            raise ValueError(f"each policy at most once, and at least one, not {value!r}")
        return "+".join(names)

    # The last "before" validator is the first to run: it reads `none`, which those above then need not know.
    _types = field_validator("*", mode="before")(check_type)

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        """What no setting can say of itself."""
        encoder = parts.encoder[self.encoder]
        if self.layerwise != "none" and encoder.traits["trains"]:
            able = [name for name, other in parts.encoder.items() if other.traits["blocks"]]
            if not encoder.traits["blocks"]:
                raise ValueError(
                    f"layerwise: {self.layerwise} needs an encoder that is made of blocks, which {self.encoder} is "
                    f"not; use encoder: {' or '.join(able)}"
                )
            if not parts.method[self.usl_type].traits["layerwise"]:
                raise ValueError(f"layerwise: {self.layerwise}: usl_type {self.usl_type} cannot train block by block")
        for part in parts.in_use(self):
            for parameter in part.parameters.values():
                if parameter.is_layer:
                    self.check_layer(parameter.name, getattr(self, parameter.name))
            if part.traits.get("check") is not None:
                part.traits["check"](self)
        return self

    def check_layer(self, name: str, layer: str) -> None:
        """Raise ValueError if the encoder has no such layer; `name` is the setting that asks for it."""
        if not parts.trains(self):
            return  # each layer stands for its features
        layers = (TRUNK, EMBEDDING, *parts.encoder[self.encoder].traits["layers"])
        if layer not in layers:
            raise ValueError(f"{name}: {self.encoder} has no layer {layer!r}; it has {', '.join(layers)}")

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
    def evaluated_dataset(self) -> str:
        """The dataset that the encoder is evaluated on."""
        return self.probe_dataset or self.dataset

    @property
    def views(self) -> int:
        """Augmented views of each image in a step."""
        return int(parts.method[self.usl_type].traits["views"])

    @property
    def policies(self) -> tuple[str, ...]:
        """The augmentation policies, in the order in which they are applied."""
        return tuple(self.policy.split("+"))

    @property
    def pretrain_epochs(self) -> int:
        """Epochs of pretraining: `usl_epochs`, or as many for each block if training is layer by layer."""
        blocks = 1 if self.layerwise == "none" else int(parts.encoder[self.encoder].traits["blocks"])
        return self.usl_epochs * blocks


def complete_settings() -> None:
    """Give `Settings` a field for every parameter that a part declares, and the valid names of the parts."""
    declared = parts.declared_parameters()
    taken = next((name for name in declared if name in CORE_FIELDS), None)
    if taken is not None:
        raise ValueError(f"{taken}: is a setting already; give the parameter another name")
    fields: dict[str, FieldInfo] = {}
    for name, core in CORE_FIELDS.items():
        chosen = next((mark.kind for mark in core.metadata if isinstance(mark, parts.Chooses)), None)
        fields[name] = core
        if chosen is not None:
            fields[name] = make_field(one_of(parts.TABLES[chosen]), core.metadata, core.default)
        for kind in ANCHORS.get(name, ()):
            for parameter in parts.declared_parameters((kind,)).values():
                fields.setdefault(parameter.name, field_of_parameter(declared[parameter.name]))
    Settings.model_fields.clear()
    Settings.model_fields.update(fields)
    Settings.model_rebuild(force=True)


CORE_FIELDS: Mapping[str, FieldInfo] = dict(Settings.model_fields)
complete_settings()
parts.watchers.append(complete_settings)


class SettingNames(Sequence[str]):
    """The names of all settings, in the order of the class. Settings of parts that are declared later are included."""

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
    """The path from the root on, with `~` replaced by the home directory; raises InputError where there is none."""
    return str(Path(expanded(path)).absolute())


def default_of(name: str) -> Any:
    """The default of the setting `name`."""
    return Settings.model_fields[name].default


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
