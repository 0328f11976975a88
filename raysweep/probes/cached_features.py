"""Features of a frozen encoder that are read from the cache on disk, or are extracted and kept there."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raysweep import parts
from raysweep.augment import operations
from raysweep.config import Settings
from raysweep.config.part_settings import network_parts
from raysweep.probes import features
from raysweep.results.feature_cache import FeatureCache
from raysweep.system.cpus import processor

LIBRARIES = ("torch", "torchvision", "timm")
"""The libraries whose code computes features."""
CODE = (Path(features.__file__), Path(operations.__file__))
"""The files whose code prepares images and reads layers. Changed code may give other features."""


@dataclass(frozen=True)
class CachedFeatures:
    """The features of one encoder on one dataset.

    The key of features contains what decides about their bits: the weights and the code of the encoder, its arguments,
    the images, the layer, the versions of the libraries, the device and the number of threads. So the features from the
    cache equal extracted features bit for bit. Functions that the encoder of a plugin imports from elsewhere are not in
    the key.
    """

    cache: FeatureCache
    settings: Settings
    data: str
    """The digest of the dataset's content, after its conversion to the size and channels of the encoder."""

    def extract(
        self, split: str, encoder: Any, images: Tensor, index: Tensor, layers: tuple[str, ...]
    ) -> dict[str, Tensor]:
        """Return the features of chosen images in several layers; see `raysweep.probes.features.extract_layers`.

        Layers that are not in the cache are extracted in one pass and written to it.

        Args:
            split: The name of the split. The validation images and the test images of a dataset can be equally many.
                Then only this name distinguishes their features.
            encoder: The encoder.
            images: (N, C, H, W) uint8.
            index: (n,) int64, the positions of the chosen images.
            layers: The names of the layers.
        """
        if not self.data or not len(index) or not parts.trains(self.settings):  # pixels are as large as their features
            return features.extract_layers(encoder, images, index, layers)
        common = self._identity(split, encoder, images, index)
        keys = {layer: hashed([*common, layer]) for layer in layers}
        read: dict[str, Tensor] = {}
        for layer, key in keys.items():
            kept = self.cache.read(key, len(index))
            if kept is not None:
                read[layer] = torch.from_numpy(kept).to(images.device)
        missing = tuple(layer for layer in layers if layer not in read)
        if missing:
            extracted = features.extract_layers(encoder, images, index, missing)
            for layer, values in extracted.items():
                self.cache.write(keys[layer], values.cpu().numpy())
            read.update(extracted)
        return {layer: read[layer] for layer in layers}

    def _identity(self, split: str, encoder: nn.Module, images: Tensor, index: Tensor) -> list[Any]:
        """Return plain values that identify the features, except for the layer."""
        network = [
            [part.kind, part.name, part.plugin, {name: getattr(self.settings, name) for name in part.parameters}]
            for part in network_parts(self.settings)
        ]
        data = [self.data, split, list(images.shape), hash_of_tensors([("index", index)])]
        return [network, hash_of_tensors(encoder.state_dict().items()), hash_of_code(encoder), data, machine(images)]


def machine(images: Tensor) -> list[str | int]:
    """Return what decides about the last bits of features: libraries, device, threads and the processor's instructions.

    A CPU is described by its model, the number of threads and the instructions that PyTorch uses. A GPU is described by
    its model. Nodes with different hardware can share one cache.
    """
    libraries = [f"{name} {version(name)}" for name in LIBRARIES if find_spec(name) is not None]
    if images.is_cuda:
        return [*libraries, torch.cuda.get_device_name(images.device)]
    return [*libraries, processor(), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()]


def hash_of_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return a hash of the names, types, shapes and values of tensors."""
    sha = hashlib.sha256()
    for name, tensor in tensors:
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def hash_of_code(encoder: nn.Module) -> str:
    """Return a hash of the files that define the modules of an encoder. Modules of torch count by its version.

    A module of a plugin has no file. The hash of the plugin stands for it.
    """
    files = set(CODE)
    for kind in {type(module) for module in encoder.modules()}:
        if kind.__module__.partition(".")[0] != "torch":
            try:
                files.add(Path(inspect.getfile(kind)))
            except (TypeError, OSError):
                continue
    sha = hashlib.sha256()
    for file in sorted(file for file in files if file.is_file()):
        sha.update(hashlib.sha256(file.read_bytes()).digest())
    return sha.hexdigest()


def hashed(values: Any) -> str:
    """Return the SHA-256 of plain values: 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
