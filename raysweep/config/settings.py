"""The settings of one experiment: typed, checked, and each with the condition under which it has an effect.

Everything that has to know the settings is derived from this one class: the flags of the command line, the checks of a
search space, the evaluation protocol's fingerprint, TensorBoard's hyperparameters and `docs/search-space.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from raysweep.config.conditions import (
    AUGMENTED,
    AUTOENCODER,
    BANKLESS_DECAY,
    BANKLESS_LR,
    BARLOW,
    BLOCKWISE,
    BLURRED,
    EMBEDDING,
    HEAD,
    HINGE,
    LAYERED,
    NT_XENT,
    PARALLEL,
    PRETRAINED,
    VALIDATED,
)
from raysweep.config.description import About
from raysweep.config.linear_probes import Layer, ProbeGrid, ProbeSpec
from raysweep.config.validation import check_model, check_type
from raysweep.config.values import NUMBERS, suggest
from raysweep.system.places import expanded

FOLDER = "folder:"
"""What the name of an image folder as a dataset begins with."""
BLOCKS = 5
"""Blocks of Conv6."""
POLICIES = ("simclr", "affine", "noise", "mask")


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
        return None if value is None else ProbeGrid.read(value).text()

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
    def _bank(self) -> ProbeGrid:
        return ProbeGrid() if self.probe_bank is None else ProbeGrid.read(self.probe_bank)

    @property
    def banked(self) -> tuple[str, ...]:
        """What `probe_bank` lists."""
        return tuple(name for name in ProbeGrid.model_fields if getattr(self._bank, name))

    @property
    def heads(self) -> tuple[ProbeSpec, ...]:
        """The linear probes among which the best on val counts; one, without `probe_bank`."""
        bank = self._bank
        return tuple(
            ProbeSpec(layer, lr, weight_decay)
            for layer in bank.layer or (self.probe_layer,)
            for lr in bank.lr or (self.le_lr,)
            for weight_decay in bank.weight_decay or (self.le_weight_decay,)
        )


SETTINGS: tuple[str, ...] = tuple(Settings.model_fields)


def absolute(path: str) -> str:
    """The path from the root on, with `~` replaced by the home directory; raises InputError where there is none."""
    return str(Path(expanded(path)).absolute())


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
