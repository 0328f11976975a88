"""Checks of the parts of plugins on a small batch, before anything starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raysweep import parts
from raysweep.augment.operations import BatchPart, all_views, to_float
from raysweep.config import Settings, metrics_by_name, outside_range
from raysweep.data.dataset import Dataset
from raysweep.data.selection import Datasets, TrialData, data_of
from raysweep.errors import InputError
from raysweep.methods.method import Losses
from raysweep.models.building import build_encoder, fit_encoder, seeded
from raysweep.part_functions import explained
from raysweep.parts import Part
from raysweep.probes.evaluation import Evaluation
from raysweep.randomness import generator
from raysweep.space import Sweep
from raysweep.training.compute import resident
from raysweep.training.loop import check_synchronisable
from raysweep.training.state import state_of

BATCH = 8
"""Number of images in the small batch."""
PROBED, LEAST = (256, 4096), 4
"""Number of images of each split with which a probe is checked, and the least number of images of a class.

A probe that raises on the first number of images is tried on the second number, because it may need more images.
"""
EVALUATE = ("probe", "dataset")
"""The kinds of parts that take part in an evaluation of a trained encoder."""
NETWORKS = ("encoder", "head", "method")
"""The kinds of parts that are networks. Their batch normalisation is synchronised between the processes of a trial."""
ZERO = 1e-3
"""Largest loss on equal views that counts as zero: the square root of a rounding error in fp32 is about 2e-4."""


def check_parts(sweep: Sweep, datasets: Datasets) -> None:
    """Check each part of a plugin that a trial uses, once, with the settings and the data of the first such trial.

    Raises:
        InputError: A part raises, or returns the wrong type or shape; the message names its file and line.
    """
    checked, synchronised = set(), set()
    for trial in sweep.examples:
        chosen = list(parts.chosen_by_settings(trial.settings))
        is_divided = sweep.resources.workers > 1 and trial.settings.pretrain_epochs > 0  # a control is not trained
        for part in parts.in_use(trial.settings):
            if trial.source is not None and part.kind not in EVALUATE:  # its encoder is read and checked already
                continue
            if part.kind in NETWORKS and part not in chosen:  # the network that contains it is checked as a whole
                continue
            if part.plugin and (part.kind, part.name) not in checked:
                checked.add((part.kind, part.name))
                data = data_of(trial, datasets)
                with explained(part, f", in a check on {PROBED[-1]:,} images" if part.kind == "probe" else ""):
                    CHECKS[part.kind](part, trial.settings, data)
                    if part.kind == "policy" and sweep.resources.workers > 1:
                        check_rows(part, trial.settings, data)
            if part.plugin and is_divided and part.kind in NETWORKS and (part.kind, part.name) not in synchronised:
                synchronised.add((part.kind, part.name))
                with explained(part):
                    check_batch_norms(part, trial.settings, data_of(trial, datasets))


def check_policies(policies: Iterable[Part], settings: Settings, dataset: Dataset) -> None:
    """Check policies of plugins before a picture of their views is drawn; see `check_parts`."""
    for part in policies:
        with explained(part):
            check_policy(part, settings, TrialData(dataset.pretrain_images, dataset))


def check_encoder(part: Part, settings: Settings, data: TrialData) -> None:
    """Check that an encoder is a module that returns features (B, D), and has the declared layers and blocks."""
    channels, size = data.pretrain.shape[1:3]
    sizes = (channels, size, *([settings.embedding_dim] if part.traits["takes_dim"] else []))
    with seeded(settings.seed, "encoder"):
        network = part.function(*sizes, **part.arguments(settings))
    need_module(network)
    network.eval()
    if hasattr(network, "fit"):
        network.fit(batch_of(data))
    images = to_float(batch_of(data))
    with torch.no_grad():
        need_shape("features", network(images), (len(images), None))
    encoder = build_encoder(settings, channels, size)  # with its head, as the trials train and probe it
    fit_encoder(encoder, batch_of(data), settings.seed)
    encoder.eval()
    with torch.no_grad():
        what = f"features of an encoder with feature_dim {encoder.feature_dim}"
        need_shape(what, encoder(images), (len(images), encoder.feature_dim))
        check_layers(part, encoder, images)
        if part.traits["blocks"]:
            check_blocks(part.traits["blocks"], encoder, images)


def check_layers(part: Part, encoder: Any, images: Tensor) -> None:
    """Check that an encoder has its declared layers, and the layer of each block but the last, for the linear probe."""
    names = {*part.traits["layers"], *(f"layer{block}" for block in range(1, part.traits["blocks"]))}
    if names:
        need_attributes(encoder, ("layer_outputs",), "whose layers the probes read")
    if not hasattr(encoder, "layer_outputs"):
        return
    outputs = encoder.layer_outputs(images)
    for name in (*sorted(names), "trunk"):
        if name not in outputs:
            raise InputError(f"layer_outputs lacks the layer {name!r}")
        output = outputs[name]
        if not isinstance(output, Tensor) or output.ndim < 2 or len(output) != len(images):
            given = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise InputError(f"layer_outputs: {name!r} is {given}; it must be a tensor ({len(images)}, …)")
    need_shape("layer_outputs: values of 'trunk'", outputs["trunk"], (len(images), encoder.feature_dim))


def check_blocks(declared: int, encoder: Any, images: Tensor) -> None:
    """Check the blocks of an encoder, and the methods with which layer-wise training trains each block by itself."""
    need_attributes(encoder, ("blocks", "up_to", "width", "inverse_block"), "which layer-wise training needs")
    if len(encoder.blocks) != declared:
        raise InputError(f"declares {declared} blocks, but has {len(encoder.blocks)}")
    below = encoder.up_to(images, 0)
    need_shape("outputs of up_to(images, 0)", below, (*images.shape[:2], None, None))
    for number, block in enumerate(encoder.blocks):
        above = block(below)
        need_shape(f"outputs of up_to(images, {number + 1})", encoder.up_to(images, number + 1), tuple(above.shape))
        width = above.flatten(1).shape[1]
        if encoder.width(number) != width:
            raise InputError(
                f"width({number}) is {encoder.width(number)!r}, but the block's output has {width} numbers"
            )
        restored = encoder.inverse_block(number)(above)
        need_shape(f"outputs of inverse_block({number})", restored, tuple(below.shape))
        below = above
    if width != encoder.feature_dim:
        raise InputError(f"has {encoder.feature_dim} features, but the output of its last block has {width} numbers")


def check_head(part: Part, settings: Settings, data: TrialData) -> None:
    """Check that a head is a module that returns embeddings (B, embedding_dim)."""
    encoder = build_encoder(settings, *data.pretrain.shape[1:3])
    need_module(encoder.head)
    with torch.no_grad():
        embeddings = encoder.head.eval()(torch.randn(BATCH, encoder.feature_dim, generator=generator(0, "check")))
    need_shape("embeddings", embeddings, (BATCH, settings.embedding_dim))
    if encoder.head.out_features != settings.embedding_dim:
        raise InputError(f"has out_features={encoder.head.out_features!r}; it must be {settings.embedding_dim}")


def check_policy(part: Part, settings: Settings, data: TrialData) -> None:
    """Check that a policy returns views in [0, 1] with the shape of the images, and the images at strength 0."""
    images = batch_of(data)
    whole = all_views(1, len(images))
    views = part.function(images, settings.strength, generator(0, "check"), whole, **part.arguments(settings))
    need_shape("views", views, tuple(images.shape))
    if not views.dtype.is_floating_point:
        raise InputError(f"views are {views.dtype}; they must be float32")
    low, high = float(views.min()), float(views.max())
    if not (low >= 0 and high <= 1):
        raise InputError(f"views are in [{low:g}, {high:g}]; they must be in [0, 1]")
    plain = part.function(images, 0.0, generator(0, "check"), whole, **part.arguments(settings))
    need_shape("views", plain, tuple(images.shape))
    if not torch.equal(to_float(plain), to_float(images)):
        raise InputError("changes the images at strength 0; it must return them as they are")


def check_rows(part: Part, settings: Settings, data: TrialData) -> None:
    """Check that a policy draws the same numbers for some images of a batch as for the whole batch."""
    images, index = batch_of(data), torch.arange(1, BATCH, 2)
    index = index[index < len(images)]
    arguments = part.arguments(settings)
    views = part.function(images, settings.strength, generator(0, "check"), None, **arguments)
    rows = BatchPart(len(images), index)
    some = part.function(images[index], settings.strength, generator(0, "check"), rows, **arguments)
    if not torch.allclose(views[index], some, atol=1e-5):
        raise InputError(
            "draws other numbers for a part of a batch than for the whole batch; draw for `part.batch` images and "
            "select the rows `part.index`"
        )


def check_batch_norms(part: Part, settings: Settings, data: TrialData) -> None:
    """Check that the batch normalisation of a part that is trained can be synchronised between processes."""
    encoder = build_encoder(settings, *data.pretrain.shape[1:3])
    if part.kind == "encoder":
        networks = [module for name, module in encoder.named_children() if name != "head"]
    elif part.kind == "head":
        networks = [encoder.head]
    else:
        networks = [state_of(settings, encoder, torch.device("cpu"), data.classes).method]
    for network in networks:
        check_synchronisable(network)


def check_loss(part: Part, settings: Settings, data: TrialData) -> None:
    """Check that a loss is a scalar with a gradient. NaN on some views is allowed."""
    draws = generator(0, "check")
    z1, z2 = (torch.randn(BATCH, settings.embedding_dim, generator=draws).requires_grad_() for _ in range(2))
    arguments = part.arguments(settings)
    value = part.function(z1, z2, **arguments)
    need_loss("the loss", value)
    if part.traits["zero_on_equal_views"]:
        equal = part.function(z1, z1, **arguments).item()
        if abs(equal) > ZERO:
            raise InputError(f"declares zero_on_equal_views, but is {equal:g} on equal views")


def check_method(part: Part, settings: Settings, data: TrialData) -> None:
    """Check that a method is a module that returns `Losses`, with metrics that it declares, and embeddings (B, D)."""
    encoder = build_encoder(settings, *data.pretrain.shape[1:3])
    fit_encoder(encoder, batch_of(data), settings.seed)
    state = state_of(settings, encoder, torch.device("cpu"), data.classes)
    module = state.method
    need_module(module)
    missing = [name for name in ("encoder", "embed") if not hasattr(module, name)]
    if missing:
        raise InputError(f"the module has no attribute {missing[0]!r}")
    images = batch_of(data)
    clean = to_float(images)
    if settings.layerwise == "none":
        targets = () if data.labels is None else (torch.from_numpy(data.labels[: len(images)]),)
        module.shard = None
        losses = module(clean.repeat(settings.views, 1, 1, 1), clean, *targets)
        if not isinstance(losses, Losses):
            raise InputError(f"a call returns {type(losses).__name__}; it must return raysweep.Losses")
        need_loss("total", losses.total)
        for name, value in losses.parts.items():
            if f"pretrain/{name}" not in metrics_by_name():
                raise InputError(f"returns the part {name!r}, but declares no metric pretrain/{name}")
            need_range(f"pretrain/{name}", float(value.detach()))
    if hasattr(module, "after_step"):
        module.after_step(0.5)
    with torch.no_grad():
        need_shape("embeddings", module.eval().embed(clean), (len(images), None))


def check_optimizer(part: Part, settings: Settings, data: TrialData) -> None:
    """Check that an optimiser changes weights, and that its state can be saved in a checkpoint."""
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = part.function([weight], settings.usl_lr, **part.arguments(settings))
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InputError(f"returns {type(optimizer).__name__}; it must return a torch.optim.Optimizer")
    weight.square().sum().backward()
    optimizer.step()
    saved = BytesIO()
    torch.save(optimizer.state_dict(), saved)
    saved.seek(0)
    optimizer.load_state_dict(torch.load(saved, weights_only=True))


def check_schedule(part: Part, settings: Settings, data: TrialData) -> None:
    """Check that a schedule returns a factor of at least 0 in its first and its last step."""
    steps = max(1, data.count // settings.batch_size)
    total = steps * max(1, settings.usl_epochs)
    for step in (0, total - 1):
        factor = part.function(step, total, steps, **part.arguments(settings))
        if not isinstance(factor, float | int) or not 0 <= factor < float("inf"):
            raise InputError(f"returns {factor!r} for step {step} of {total}; it must return a number of at least 0")


def check_probe(part: Part, settings: Settings, data: TrialData) -> None:
    """Check that a probe yields pairs of a declared metric and a number, on a small part of the images."""
    for most in PROBED:
        probed = few(data.probe, most, settings)
        try:
            pairs = scores_of(part, settings, probed)
            break
        except Exception:
            if most == PROBED[-1] or len(probed.train_images) == len(data.probe.train_images):
                raise
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], float)):
            raise InputError(f"yields {pair!r}; it must yield pairs of a metric's name and a float")
        if pair[0] not in part.metrics:
            raise InputError(f"yields {pair[0]!r}, which it does not declare among its metrics")
        need_range(*pair)


def scores_of(part: Part, settings: Settings, probed: Dataset) -> list[Any]:
    """Return what a probe yields on the images of a dataset; a probe that trains runs until its first metrics."""
    encoder = build_encoder(settings, *probed.train_images.shape[1:3]).eval()
    images = resident(probed.train_images, torch.device("cpu"))
    fit_encoder(encoder, images, settings.seed)
    evaluation = Evaluation(settings, encoder, probed, (probed.train_images, images), torch.device("cpu"))
    result = part.function(evaluation, **part.arguments(settings))
    if part.traits["trains"]:
        needed = ("progress", "step", "run", "state_dict", "load_state_dict")
        missing = [name for name in needed if not hasattr(result, name)]
        if missing:
            raise InputError(f"returns {type(result).__name__}, which has no {missing[0]!r}; it must be a TrainedProbe")
        return list(next(iter(result.run())).items())
    if not isinstance(result, Iterator):
        raise InputError(f"returns {type(result).__name__}; it must yield pairs of a metric's name and its value")
    return list(result)


def check_dataset(part: Part, settings: Settings, data: TrialData) -> None:
    """Check nothing, because a dataset is checked when it is loaded."""


CHECKS: Mapping[str, Callable[[Part, Settings, TrialData], None]] = {
    "encoder": check_encoder,
    "head": check_head,
    "policy": check_policy,
    "loss": check_loss,
    "method": check_method,
    "optimizer": check_optimizer,
    "schedule": check_schedule,
    "probe": check_probe,
    "dataset": check_dataset,
}


def batch_of(data: TrialData) -> Tensor:
    """Return a small batch of the pretraining images, (B, C, H, W) uint8."""
    return torch.from_numpy(np.array(data.pretrain[:BATCH]))


def few(dataset: Dataset, most: int, settings: Settings) -> Dataset:
    """Return a dataset with about `most` images in each split, but with as many of each class as the probes draw."""
    changes: dict[str, Any] = {}
    drawn = getattr(settings, "labels_per_class") or 0  # noqa: B009  # a part declares it
    each = max(LEAST, most // max(1, len(dataset.classes)), math.ceil((drawn + 1) / (1 - settings.val_fraction)))
    for split in ("train", "test", "val"):
        images, labels = getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")
        if images is not None and labels is not None:
            chosen = np.sort(np.concatenate([np.flatnonzero(labels == label)[:each] for label in np.unique(labels)]))
            changes |= {f"{split}_images": images[chosen], f"{split}_labels": labels[chosen]}
        elif images is not None:
            changes[f"{split}_images"] = images[:most]
    return replace(dataset, **changes)


def need_range(name: str, value: float) -> None:
    """Raise InputError if the value of a metric is outside of its declared range. NaN on a few images is allowed."""
    fault = None if math.isnan(value) else outside_range({name: value})
    if fault is not None:
        raise InputError(f"{fault}; declare its lowest and highest value in raysweep.Metric")


def need_module(network: object) -> None:
    """Raise InputError unless `network` is a module."""
    if not isinstance(network, nn.Module):
        raise InputError(f"returns {type(network).__name__}; it must return a torch.nn.Module")


def need_attributes(network: object, names: Iterable[str], reason: str) -> None:
    """Raise InputError unless a module has these attributes or methods."""
    missing = [name for name in names if not hasattr(network, name)]
    if missing:
        raise InputError(f"the module has no attribute {missing[0]!r}, {reason}")


def need_shape(what: str, tensor: object, shape: tuple[int | None, ...]) -> None:
    """Raise InputError unless `tensor` has this shape; None stands for any number."""
    expected = ", ".join("D" if size is None else str(size) for size in shape)
    if not isinstance(tensor, Tensor):
        raise InputError(f"{what} are {type(tensor).__name__}; they must be a tensor ({expected})")
    given = tuple(tensor.shape)
    if len(given) != len(shape) or any(b not in (None, a) for a, b in zip(given, shape, strict=True)):
        raise InputError(f"{what} have the shape {given}; it must be ({expected})")


def need_loss(what: str, value: object) -> None:
    """Raise InputError unless `value` is a scalar tensor that is not infinite and has a gradient."""
    if not isinstance(value, Tensor):
        raise InputError(f"{what} is {type(value).__name__}; it must be a scalar tensor")
    if value.ndim:
        raise InputError(f"{what} has the shape {tuple(value.shape)}; it must be a scalar")
    if not value.requires_grad:
        raise InputError(f"{what} has no gradient; compute it from its arguments with torch")
    if value.isinf():
        raise InputError(f"{what} is infinite on random inputs")
