"""The α sweep as users write it with Ray Tune, torchvision's transforms and a DataLoader, to compare raysweep with.

    python benchmarks/peers/plain_tune.py --dataset digits --out plain.json

The script is complete and imports nothing from raysweep. Network, decoder, objective, images, epochs, batch size,
optimiser, seeds and α are as in `benchmarks/search_spaces/`, and a trial has one core in both. The script leaves out
raysweep's additional work: k-means, kNN, measures while training, pictures, checkpoints, error bars.

It does what a careful author does. The driver decodes images once, and they reach the trials through the object store.
The transforms work on PIL images (tensors of this size are slower). A trial with one core has no loader processes
(`--loaders 1` tries them). The last incomplete batch is dropped, and gradients are off in the evaluation. As usual, the
linear evaluation runs the frozen encoder on every batch of every epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from PIL import Image
from ray import tune
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

ALPHAS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


class Encoder(nn.Module):
    """Conv6: images (B, C, H, W) -> features (B, 512·H/8·W/8), and embeddings (B, 64) through the head."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)

        self.trunk = nn.Sequential(
            conv(channels, 32),
            nn.Hardtanh(),
            conv(32, 32),
            nn.MaxPool2d(2),
            conv(32, 64),
            nn.Hardtanh(),
            conv(64, 64),
            nn.MaxPool2d(2),
            conv(64, 512),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.features = 512 * (size // 8) ** 2
        self.head = nn.Linear(self.features, 64, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings (B, 64)."""
        z: Tensor = self.head(self.trunk(images))
        return z


def make_decoder(channels: int, size: int) -> nn.Module:
    """Build the decoder: embeddings (B, 64) -> images (B, C, H, W)."""
    return nn.Sequential(
        nn.Linear(64, 64 * (size // 8) ** 2),
        nn.Unflatten(1, (64, size // 8, size // 8)),
        nn.ReLU(),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(64, 32, 3, padding=1),
        nn.ReLU(),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(32, channels, 3, padding=1),
    )


def make_transform(size: int, strength: float) -> transforms.Compose:
    """Build SimCLR's augmentation of a PIL image, with raysweep's scaling by `strength` in (0, 1]."""
    s = strength
    jitter = transforms.ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s)
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=(1 - 0.92 * s, 1), ratio=((3 / 4) ** s, (4 / 3) ** s)),
            transforms.RandomHorizontalFlip(s / 2),
            transforms.RandomApply([jitter], p=0.8 * s),
            transforms.RandomGrayscale(0.2 * s),
            transforms.ToTensor(),
        ]
    )


class Pictures(Dataset[Any]):
    """uint8 images (N, H, W[, 3]) with labels; every transform is applied to each image."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, *functions: Any) -> None:
        self.images, self.labels, self.transforms = images, labels, functions

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        image = Image.fromarray(self.images[index])
        return (*(transform(image) for transform in self.transforms), int(self.labels[index]))


def read(dataset: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read training and test images (uint8) with their labels."""
    if dataset == "digits":
        digits = load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)
        x, x_test, y, y_test = train_test_split(
            images, digits.target, test_size=0.2, stratify=digits.target, random_state=0
        )
        return x, y, x_test, y_test
    arrays = []
    for split in ("train", "test"):
        pairs = [(np.asarray(image), label) for image, label in ImageFolder(str(Path(dataset) / split))]
        arrays += [np.stack([image for image, _ in pairs]), np.array([label for _, label in pairs])]
    return arrays[0], arrays[1], arrays[2], arrays[3]


def train(config: dict[str, Any], data: tuple[np.ndarray, ...]) -> None:
    """Run one trial: pretraining, then the linear evaluation."""
    torch.manual_seed(config["seed"])
    x, y, x_test, y_test = data
    size, channels = x.shape[1], 1 if x.ndim == 3 else 3
    encoder, decoder = Encoder(channels, size), make_decoder(channels, size)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=config["usl_lr"])
    view = make_transform(size, config["strength"])
    workers = {"num_workers": config["loaders"], "persistent_workers": config["loaders"] > 0}
    loader = DataLoader(
        Pictures(x, y, view, view), batch_size=config["batch_size"], shuffle=True, drop_last=True, **workers
    )
    began = time.perf_counter()
    for epoch in range(config["usl_epochs"]):
        total = 0.0
        for first, second, _ in loader:
            z1, z2 = encoder(first), encoder(second)
            rec = F.mse_loss(decoder(z1), first) + F.mse_loss(decoder(z2), second)
            loss = rec + config["alpha"] * F.mse_loss(z1, z2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        tune.report({"epoch": epoch + 1, "loss": total / len(loader)})
    pretraining = time.perf_counter() - began

    began = time.perf_counter()
    encoder.eval().requires_grad_(False)
    x_fit, x_val, y_fit, y_val = train_test_split(x, y, test_size=0.1, stratify=y, random_state=0)
    plain = transforms.ToTensor()
    fit, val, test = (
        DataLoader(Pictures(images, labels, plain), batch_size=config["batch_size"], shuffle=shuffled, **workers)
        for images, labels, shuffled in ((x_fit, y_fit, True), (x_val, y_val, False), (x_test, y_test, False))
    )
    linear = nn.Linear(encoder.features, int(y.max()) + 1)
    optimizer = torch.optim.Adam(linear.parameters(), lr=1e-3)

    def accuracy(loader: DataLoader[Any]) -> float:
        with torch.no_grad():
            right = sum(int((linear(encoder.trunk(images)).argmax(1) == labels).sum()) for images, labels in loader)
        return right / len(loader.dataset)  # type: ignore[arg-type]

    for epoch in range(config["le_epochs"]):
        for images, labels in fit:
            with torch.no_grad():
                features = encoder.trunk(images)
            loss = F.cross_entropy(linear(features), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        tune.report({"linear_epoch": epoch + 1, "val_accuracy": accuracy(val)})
    tune.report(
        {
            "test_accuracy": accuracy(test),
            "pretraining_s": pretraining,
            "linear_s": time.perf_counter() - began,
            "threads": torch.get_num_threads(),
        }
    )


def main() -> None:
    """Run the sweep, and write one line of figures per trial."""
    parser = argparse.ArgumentParser(description="A plain Ray Tune script.")
    parser.add_argument("--dataset", default="digits", help="digits, or a folder: train/<class>/*, test/<class>/*")
    parser.add_argument("--alpha", type=float, nargs="+", default=ALPHAS)
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--usl-epochs", type=int, default=20)
    parser.add_argument("--usl-lr", type=float, default=1e-3)
    parser.add_argument("--le-epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--strength", type=float, default=0.5)
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="number of trials at a time")
    parser.add_argument("--loaders", type=int, default=0, help="DataLoader processes of each trial")
    parser.add_argument("--storage", type=Path, default=Path("runs"), help="where Tune writes")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    given = parser.parse_args()
    # "local" starts a new cluster and never uses one that already runs on this machine.
    ray.init(address="local", num_cpus=given.cores, include_dashboard=False)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(train, data=read(given.dataset)), {"cpu": 1}),
        param_space={
            "alpha": tune.grid_search(list(given.alpha)),
            "seed": tune.grid_search(given.seed),
            "usl_epochs": given.usl_epochs,
            "usl_lr": given.usl_lr,
            "le_epochs": given.le_epochs,
            "batch_size": given.batch_size,
            "strength": given.strength,
            "loaders": given.loaders,
        },
        run_config=tune.RunConfig(name="plain", storage_path=str(given.storage.resolve()), verbose=1),
    )
    results = tuner.fit()
    wanted = ("test_accuracy", "pretraining_s", "linear_s", "threads", "time_total_s")
    rows = [
        {
            "alpha": trial_result.config["alpha"],
            "seed": trial_result.config["seed"],
            **{name: trial_result.metrics[name] for name in wanted},
        }
        for trial_result in results
        if trial_result.error is None
    ]
    assert len(rows) == len(results), "a trial failed"
    for row in rows:
        print(row)
    if given.out is not None:
        given.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
