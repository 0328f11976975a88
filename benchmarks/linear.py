"""Linear evaluation on cached features, compared with encoding the images anew in every epoch.

    python benchmarks/linear.py

Both run 300 epochs at batch 250 on one thread. The cached way is what a trial does: it encodes the fit split once,
standardises it, and trains the probe, with an accuracy on the val split after every epoch. The other way runs the
frozen encoder on each batch of each epoch, in the same precision and memory format, without the decoding and transforms
that a DataLoader would add. It is measured over a few epochs and scaled to 300, as the file says. The script writes
`benchmarks/results/linear.json` and takes 2 minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import measure
import torch
from steps import CPU, SHAPES, random_images, seeded, settings_for
from torch import Tensor, nn
from torch.nn import functional as F

from raysweep.augment.operations import to_float
from raysweep.models.building import build_encoder
from raysweep.probes.features import extract, standardize_
from raysweep.probes.grid import ProbeSpec
from raysweep.probes.linear import LinearProbes, train_classifiers
from raysweep.system.memory import keep_memory

BATCH, CLASSES = 250, 10
CACHED, ANEW = "cached", "encoded anew"


def cached(encoder: nn.Module, images: Tensor, labels: Tensor, fit: Tensor, val: Tensor, epochs: int) -> None:
    """Run the linear evaluation as a trial does."""
    of_fit, of_val = (extract(encoder, images, index, "trunk") for index in (fit, val))
    standardize_(of_fit, of_val)
    spec = ProbeSpec("trunk", 1e-3, 0.0)
    probes = LinearProbes([spec], {"trunk": of_fit.shape[1]}, CLASSES, 0, CPU)
    for _ in train_classifiers(probes, {"trunk": of_fit}, labels[fit], epochs=epochs, batch_size=BATCH):
        probes.accuracy({"trunk": of_val}, labels[val])


class Anew:
    """The same probe, with features computed anew in every epoch."""

    def __init__(self, encoder: Any, images: Tensor, labels: Tensor, fit: Tensor, val: Tensor) -> None:
        self.encoder, self.images, self.labels, self.fit, self.val = encoder, images, labels, fit, val
        self.linear = nn.Linear(encoder.feature_dim, CLASSES)
        self.optimizer = torch.optim.Adam(self.linear.parameters(), lr=1e-3, fused=True)
        self.draws = seeded()

    def encode(self, index: Tensor) -> Tensor:
        """Compute the features of a batch."""
        with torch.inference_mode():
            batch = to_float(self.images.index_select(0, index)).contiguous(memory_format=torch.channels_last)
            features: Tensor = self.encoder(batch)
            return features

    def epochs(self, count: int) -> None:
        """Train for some epochs, with an accuracy after each."""
        for _ in range(count):
            for index in self.fit[torch.randperm(len(self.fit), generator=self.draws)].split(BATCH):
                loss = F.cross_entropy(self.linear(self.encode(index).clone()), self.labels[index])
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
            with torch.inference_mode():
                for index in self.val.split(BATCH):
                    (self.linear(self.encode(index)).argmax(1) == self.labels[index]).sum()


def compare(shape: str, count: int, epochs: int, few: int, repeats: int) -> dict[str, Any]:
    """Measure both ways in turns; the second over `few` epochs."""
    _, channels, size = SHAPES[shape]
    images, labels = random_images(shape, count), torch.arange(count) % CLASSES
    fit, val = torch.arange(count).split([count - count // 10, count // 10])
    encoder = build_encoder(settings_for(shape), channels, size)
    anew = Anew(encoder, images, labels, fit, val)
    encoder.eval()
    measured = measure.alternate(
        {CACHED: lambda: cached(encoder, images, labels, fit, val, epochs), ANEW: lambda: anew.epochs(few)}, repeats
    )
    seconds = {CACHED: measured[CACHED], ANEW: [s * epochs / few for s in measured[ANEW]]}
    return {
        "work": {"images": count, "epochs": epochs, "epochs measured of those encoded anew, then scaled": few},
        "seconds": seconds,
        "times faster": measure.ratio(seconds[ANEW], seconds[CACHED]),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Linear evaluation on cached features against encoding anew.")
    parser.add_argument("--quick", action="store_true", help="small: for development, no measurement")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    keep_memory()
    epochs, few, repeats = (10, 1, 2) if given.quick else (300, 3, 5)
    cases = {}
    for shape, count in {"8×8×1": 1437, "32×32×3": 300 if given.quick else 1000}.items():
        case = cases[shape] = compare(shape, count, epochs, few, repeats)
        print(f"{shape:8} {epochs} epochs: {case['times faster']['median']} × faster")
    measure.save("linear", {"quick": given.quick, "threads": 1, "batch": BATCH, "cases": cases})
    return 0


if __name__ == "__main__":
    sys.exit(main())
