"""Images per second of lightly's SimCLR recipe for CIFAR-10, with lightly's transforms and loss and a DataLoader.

    python benchmarks/peers/lightly_simclr.py --images 2000

This is lightly's example (SimCLR on CIFAR-10) with a different encoder: Conv6 with a linear head to 64 dimensions and
no projection head, so that both sides train the same network. It runs one process with one thread, like a trial on one
core. It needs `pip install 'raysweep[bench]'` and imports nothing from raysweep.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import numpy as np
import torch
from lightly.loss import NTXentLoss
from lightly.transforms import SimCLRTransform
from PIL import Image
from plain_tune import Encoder
from torch.utils.data import DataLoader, Dataset


class Pictures(Dataset[list[torch.Tensor]]):
    """Two views of each of the uint8 images (N, 32, 32, 3)."""

    def __init__(self, images: np.ndarray, transform: SimCLRTransform) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        views: list[torch.Tensor] = self.transform(Image.fromarray(self.images[index]))
        return views


class Recipe:
    """The training, one epoch at a time."""

    def __init__(self, images: np.ndarray, batch_size: int, loaders: int = 0) -> None:
        torch.manual_seed(0)
        transform = SimCLRTransform(input_size=32, gaussian_blur=0.0)  # the values in lightly's example for 32×32
        self.loader = DataLoader(
            Pictures(images, transform),
            batch_size=batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=loaders,
            persistent_workers=loaders > 0,
        )
        self.encoder, self.criterion = Encoder(3, 32), NTXentLoss(temperature=0.5)
        self.optimizer = torch.optim.Adam(self.encoder.parameters(), lr=1e-3)

    def epoch(self) -> float:
        """Train for one epoch, and return the mean loss."""
        total = 0.0
        for first, second in self.loader:
            loss = self.criterion(self.encoder(first), self.encoder(second))
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            total += loss.item()
        return total / len(self.loader)


def main() -> None:
    """Train for some epochs on random images and print images per second."""
    parser = argparse.ArgumentParser(description="lightly's SimCLR recipe.")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--loaders", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    images = np.random.RandomState(0).randint(0, 256, (given.images, 32, 32, 3), dtype=np.uint8)
    recipe = Recipe(images, given.batch_size, given.loaders)
    began = time.perf_counter()
    losses = [recipe.epoch() for _ in range(given.epochs)]
    rate = given.epochs * len(recipe.loader) * given.batch_size / (time.perf_counter() - began)
    json.dump({"images_per_s": rate, "loss": losses}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
