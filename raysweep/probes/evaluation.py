"""The evaluation of a trial's encoder: data splits, features, and all probes, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raysweep import parts
from raysweep.config import Settings
from raysweep.data.dataset import Dataset, Images
from raysweep.data.splits import SplitPart, draw_labels, fit_and_val
from raysweep.probes.cached_features import CachedFeatures
from raysweep.probes.features import extract_layers
from raysweep.probes.knn import knn_accuracy
from raysweep.probes.probes import TrainedProbe
from raysweep.randomness import fixed_subset
from raysweep.results.feature_cache import FeatureCache
from raysweep.training.compute import resident

ONLINE_BANK, ONLINE_QUERIES = 2048, 1024
"""Most images from the fit split and from the validation split for kNN during pretraining."""

Features = dict[str, dict[str, Tensor]]
"""For each split and layer, features (N, D)."""


@dataclass(frozen=True)
class Split:
    """One split of the evaluated dataset, on the training device."""

    bring: Callable[[], Tensor]
    """Returns `images`. Its first call brings them to the device."""
    index: Tensor
    """(M,) int64. The positions of the split's images."""
    labels: Tensor | None
    """(M,) int64. The labels of the split's images; None if the evaluation reads no labels."""

    @property
    def images(self) -> Tensor:
        """(N, C, H, W) uint8. The split is a subset of these images."""
        return self.bring()


@dataclass(frozen=True)
class Scores:
    """Metrics that an evaluation yields at one moment, at which it may be saved."""

    metrics: Mapping[str, float]
    step: int
    """The step at which TensorBoard shows the metrics: an epoch of pretraining, or of the probe."""
    progress: float
    """The fraction of the evaluation that is done, in [0, 1]."""
    phase: str = ""
    """What the evaluation does, such as `linear probe`; empty after a probe without training."""
    is_projected: bool = False
    """Whether the probes without training are done, so that their features can be drawn."""
    phase_epochs: tuple[int, int] = (0, 0)
    """Number of finished epochs of the probe, and of all its epochs; (0, 0) if these are unknown."""


class Evaluation:
    """Runs the probes of a trial. It holds what they read, and the state from which they resume.

    Args:
        settings: the experiment.
        encoder: the encoder, frozen while it is evaluated.
        dataset: the images, and their labels unless the evaluation reads none.
        pretrain: the images of pretraining as a NumPy array, and as a tensor on the device.
        device: the training device.
        cache: the cache of features on disk; None: features are not kept.
    """

    def __init__(
        self,
        settings: Settings,
        encoder: Any,
        dataset: Dataset,
        pretrain: tuple[Images, Tensor],
        device: torch.device,
        cache: FeatureCache | None = None,
    ) -> None:
        self.settings, self.encoder, self.device = settings, encoder, device
        self.views = settings
        """The settings with which probes draw augmented views; they can differ for a control."""
        self.classes = len(dataset.classes)
        self.class_names = dataset.classes
        self.splits = make_splits(settings, dataset, pretrain, device)
        self.online = {
            name: fixed_subset(len(self.splits[name].index), most).to(device)
            for name, most in (("fit", ONLINE_BANK), ("val", ONLINE_QUERIES))
            if settings.probe_labels
        }
        """The positions of the images for kNN during pretraining, by split; empty without labels."""
        self.best_linear_probe = ""
        """The name of the best linear probe on the validation images, if there are several."""
        self.extra_scalars: list[tuple[dict[str, float], int]] = []
        """Values for TensorBoard only, with their steps: one for each probe of a grid."""
        self.confusion: Tensor | None = None
        """(classes, classes) int64: test images by true and predicted class, once the linear probe is trained."""
        self._cached = CachedFeatures(cache, settings, dataset.digest) if cache is not None else None
        self._features: Features = {}
        self._done: dict[str, dict[str, Any]] = {}
        """The probes that are done, each with the settings that it reads."""
        self._at_work: tuple[str, TrainedProbe] | None = None
        self._saved: tuple[str, dict[str, Any]] | None = None
        """The name and the state of the probe that resumes, until that probe is built."""

    @property
    def first_phase(self) -> str:
        """The names of the probes without training, which come first."""
        return ", ".join(part.name for part in parts.probes_in_use(self.settings) if not part.traits["trains"])

    def labels(self, split: str) -> Tensor:
        """Return the labels (N,) of a split: `fit`, `val` or `test`."""
        labels = self.splits[split].labels
        assert labels is not None
        return labels

    def drawn(self, labels_per_class: int | None) -> Tensor | None:
        """Return the positions in the fit split of `labels_per_class` images of each class; None means all images."""
        if labels_per_class is None:
            return None
        index = draw_labels(self.labels("fit").cpu().numpy(), labels_per_class, self.settings.seed)
        return torch.from_numpy(index).to(self.device)

    def features(self, layer: str) -> dict[str, Tensor]:
        """Return the features (N, D) of each split in a layer. They are extracted once and must not be changed.

        Without labels there is only the split `fit`.
        """
        self.extract((layer,))
        return {split: layers[layer] for split, layers in self._features.items()}

    def take_features(self, layers: tuple[str, ...]) -> Features:
        """Return features of each split for a probe that changes or frees them, and forget all other features.

        At 32×32 the features of 60,000 images are 1 to 2 GB for each layer.
        """
        self.extract(layers)
        taken, self._features = self._features, {}
        return {split: {layer: features[layer] for layer in layers} for split, features in taken.items()}

    def extract(self, layers: tuple[str, ...] | None = None) -> None:
        """Extract the features of every split in the layers, in one pass, unless they are present or in the cache.

        None stands for all layers that a probe reads for every image.
        """
        layers = parts.layers_read(self.settings, of_all_images=True) if layers is None else layers
        present = self._features.get("fit", {})
        if all(layer in present for layer in layers):
            return
        self._features = {name: self._extracted(name, split.index, layers) for name, split in self.splits.items()}

    def features_of(self, name: str, layers: tuple[str, ...], chosen: Tensor | None = None) -> dict[str, Tensor]:
        """Return the features of chosen images of one split in the layers. They must not be changed.

        They are extracted in one pass, and not kept, unless the features of every split are present.

        Args:
            name: the name of the split.
            layers: the names of the layers.
            chosen: (M,) int64, positions in the split; None means all images of the split.

        Returns:
            For each layer, features (M, D).
        """
        present = {layer: each for layer, each in self._features.get(name, {}).items() if layer in layers}
        index = self.splits[name].index
        if chosen is not None:
            present = {layer: each.index_select(0, chosen) for layer, each in present.items()}
            index = index[chosen]
        missing = tuple(layer for layer in layers if layer not in present)
        return present | (self._extracted(name, index, missing) if missing else {})

    def _extracted(self, name: str, index: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        """Return the features of images of a split in the layers, from the cache or the encoder."""
        extract = extract_layers if self._cached is None else partial(self._cached.extract, name)
        return extract(self.encoder, self.splits[name].images, index, layers)

    def online_accuracy(self) -> float | None:
        """Return the kNN accuracy on fixed subsets during pretraining, or None without validation images or labels."""
        if not self.online or not len(self.online["val"]):
            return None
        arguments = parts.probe["knn"].arguments(self.settings)
        return knn_accuracy(
            *self._chosen("fit", arguments["probe_layer"]),
            *self._chosen("val", arguments["probe_layer"]),
            classes=self.classes,
            k=min(arguments["knn_k"], len(self.online["fit"])),
            temperature=arguments["knn_temperature"],
        )

    def _chosen(self, name: str, layer: str) -> tuple[Tensor, Tensor]:
        """Return features and labels of the images of a split that kNN reads during pretraining."""
        chosen = self.online[name]
        return self.features_of(name, (layer,), chosen)[layer], self.labels(name)[chosen]

    def run(self, trained_epochs: int) -> Iterator[Scores]:
        """Run all probes. Probes without training come first, because the others may change the features.

        Args:
            trained_epochs: the epochs of pretraining. TensorBoard shows scores of probes without training at this step.
        """
        waiting = [part for part in parts.probes_in_use(self.settings) if part.name not in self._done]
        untrained = [part for part in waiting if not part.traits["trains"]]
        if untrained:
            self.extract()
        for part in untrained:
            scores = self._scores_of(part)
            self._done[part.name] = values_of(part, self.settings)
            yield Scores(scores, trained_epochs, 0.0, is_projected=part is untrained[-1])
        trained = [part for part in parts.probes_in_use(self.settings) if part.traits["trains"]]
        # A resumed sweep may turn on more probes. The probe that resumes then still comes first.
        resuming = self._saved[0] if self._saved is not None else None
        trained.sort(key=lambda part: (part.name != resuming, not part.traits["keeps_features"]))
        for number, part in enumerate(trained):
            if part.name in self._done:
                continue
            probe: TrainedProbe = part.function(self, **part.arguments(self.settings))
            if self._saved is not None and part.name == resuming:
                probe.load_state_dict(self._saved[1])
                self._saved = None
            self._at_work = (part.name, probe)
            for metrics in probe.run():
                progress = (number + probe.progress) / len(trained)
                epochs = getattr(probe, "epochs", 0)  # a plugin's probe need not have it
                done = (probe.step, epochs) if epochs else (0, 0)
                yield Scores(metrics, probe.step, progress, phase=f"{part.name} probe", phase_epochs=done)
            self._at_work = None
            self._done[part.name] = values_of(part, self.settings)

    def _scores_of(self, part: parts.Part) -> dict[str, float]:
        """Return the scores of a probe without training."""
        scores = dict(part.function(self, **part.arguments(self.settings)))
        unknown = [name for name in scores if not any(name in part.metrics for part in parts.probe.values())]
        if unknown:
            raise ValueError(f"a probe yields {unknown[0]!r}, but does not declare this metric; add it to its metrics")
        return scores

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values from which the evaluation resumes bit for bit."""
        # A probe that resumes is built only after the probes without training that a resume has turned on.
        begun = self._saved
        if self._at_work is not None:
            name, probe = self._at_work
            begun = name, probe.state_dict()
        return {
            "probes_done": self._done,
            "probe": None if begun is None else (begun[0], values_of(parts.probe[begun[0]], self.settings), begun[1]),
            "best_linear_probe": self.best_linear_probe,
        }

    def load_state_dict(self, state: dict[str, Any]) -> frozenset[str]:
        """Load what `state_dict` returned.

        A resume may turn probes on or off, or change a setting such as `few_shot`. A probe that has begun with other
        settings starts again. An older version did not record these settings, so after its checkpoint all probes start
        again.

        Returns:
            The names of the metrics that do not count any more: the metrics of all probes that are not kept.
        """
        now = {part.name: values_of(part, self.settings) for part in parts.probes_in_use(self.settings)}
        self._done = {name: values for name, values in state.get("probes_done", {}).items() if now.get(name) == values}
        kept = set(self._done)
        if state.get("probe") is not None:
            name, values, saved = state["probe"]
            if now.get(name) == values:
                self._saved = name, saved
                kept.add(name)
        self.best_linear_probe = state["best_linear_probe"] if "linear" in kept else ""
        return frozenset(metric for part in parts.probe.values() if part.name not in kept for metric in part.metrics)


def values_of(part: parts.Part, settings: Settings) -> dict[str, Any]:
    """Return the settings that a probe declares, by name."""
    return {name: getattr(settings, name) for name in part.parameters}


def make_splits(
    settings: Settings, dataset: Dataset, pretrain: tuple[Images, Tensor], device: torch.device
) -> dict[str, Split]:
    """Return the splits of the evaluated dataset on the device. Images are brought there when they are first read.

    The images stay in the memory that other trials share; a split is an index into them. Without labels, all training
    images are the split `fit`, and there is no other split.
    """
    array, tensor = pretrain

    def on_device(images: Images) -> Callable[[], Tensor]:
        return (lambda: tensor) if images is array else cache(partial(resident, images, device))

    train = on_device(dataset.train_images)
    if not settings.probe_labels:
        return {"fit": Split(train, torch.arange(len(dataset.train_images), device=device), None)}
    assert dataset.test_labels is not None
    assert dataset.test_images is not None

    def split(part: SplitPart) -> Split:
        images = train if part.images is dataset.train_images else on_device(part.images)
        return Split(images, torch.from_numpy(part.index).to(device), resident(part.labels, device))

    fit, val = fit_and_val(dataset, settings.val_fraction, settings.split_seed)
    test = SplitPart(dataset.test_images, np.arange(len(dataset.test_images)), dataset.test_labels)
    return {"fit": split(fit), "val": split(val), "test": split(test)}
