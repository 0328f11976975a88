"""Raysweep's batched augmentation compared with torchvision's transforms on one image at a time.

    python benchmarks/augmentation.py

The script measures microseconds per image on one thread for SimCLR's policy at strength 1, for 32×32×3 and 8×8×1 images
in batches of 500 (two views of 250). It measures torchvision twice: on PIL images with `ToTensor` at the end, which is
usual in a DataLoader and faster at this size, and on tensors. It writes `benchmarks/results/augmentation.json` and
takes a minute.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import measure
import torch
from PIL import Image
from steps import SHAPES, random_images, seeded, settings_for
from torchvision import transforms

from raysweep.augment.operations import crop_and_flip
from raysweep.augment.simclr import draw_simclr
from raysweep.augment.views import augment
from raysweep.system.memory import keep_memory

OURS, PIL, TENSORS = "batched", "torchvision, PIL images", "torchvision, tensors"


def torchvision_transform(size: int, strength: float, last: Sequence[Any]) -> transforms.Compose:
    """Build torchvision's version of SimCLR's policy for one image; strength in (0, 1]."""
    s = strength
    # PIL always antialiases. For tensors, antialiasing would cost more, and raysweep does not use it.
    window = {"scale": (1 - 0.92 * s, 1), "ratio": ((3 / 4) ** s, (4 / 3) ** s), "antialias": False}
    jitter = transforms.ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s)
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, **window),
            transforms.RandomHorizontalFlip(s / 2),
            transforms.RandomApply([jitter], p=0.8 * s),
            transforms.RandomGrayscale(0.2 * s),
            *last,
        ]
    )


def compare(shape: str, strength: float, batch: int, repeats: int) -> dict[str, Any]:
    """Measure microseconds per image, and how many times faster raysweep is."""
    size = SHAPES[shape][2]
    images, draws, settings = random_images(shape, batch), seeded(), settings_for(shape, strength=strength)
    one_by_one = images[: batch // 4]  # torchvision's time per image does not depend on the number of images
    pictures = [Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()) for image in one_by_one]
    of_pil = torchvision_transform(size, strength, [transforms.ToTensor()])
    of_tensor = torchvision_transform(size, strength, [transforms.ConvertImageDtype(torch.float32)])
    torch.manual_seed(0)
    work: dict[str, Callable[[], object]] = {
        OURS: lambda: augment(images, settings, draws),
        PIL: lambda: torch.stack([of_pil(picture) for picture in pictures]),
        TENSORS: lambda: torch.stack([of_tensor(image) for image in one_by_one]),
    }
    drawn = draw_simclr(batch, size, size, strength, False, draws)
    window = (drawn.top, drawn.left, drawn.height, drawn.width, drawn.flip)
    parts: dict[str, Callable[[], object]] = {
        "drawing": lambda: draw_simclr(batch, size, size, strength, False, draws),
        "crop and flip": lambda: crop_and_flip(images, *window),
    }
    seconds = measure.alternate(work | parts, repeats)
    counts = {PIL: len(pictures), TENSORS: len(one_by_one)}
    each = {name: [1e6 * s / counts.get(name, batch) for s in values] for name, values in seconds.items()}
    of_ours = {name: measure.summary(each.pop(name)) for name in parts}
    return {
        "of batched, microseconds per image": of_ours,
        "microseconds per image": {name: measure.summary(values) for name, values in each.items()},
        "times faster": {name: measure.ratio(each[name], each[OURS]) for name in (PIL, TENSORS)},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Augmentation in batches against torchvision, image by image.")
    parser.add_argument("--quick", action="store_true", help="small: for development, no measurement")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    keep_memory()
    batch, repeats = (100, 2) if given.quick else (500, 15)
    cases = {}
    for shape in SHAPES:
        for strength in (1.0, 0.5):
            case = cases[f"{shape}, strength {strength:g}"] = compare(shape, strength, batch, repeats)
            each, times = case["microseconds per image"], case["times faster"]
            print(
                f"{shape:8} strength {strength:3g}: {each[OURS]['median']} µs, {PIL} {each[PIL]['median']} µs "
                f"({times[PIL]['median']} ×), {TENSORS} {each[TENSORS]['median']} µs ({times[TENSORS]['median']} ×)"
            )
    measure.save("augmentation", {"quick": given.quick, "threads": 1, "batch": batch, "cases": cases})
    return 0


if __name__ == "__main__":
    sys.exit(main())
