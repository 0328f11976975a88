"""The fine-tuning probe: a copy of the whole encoder with a linear classifier on top, which are trained with labels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raysweep import parts
from raysweep.augment.operations import to_device, to_float
from raysweep.errors import Diverged
from raysweep.models.building import build_encoder, seeded
from raysweep.probes.features import batch_of, standard_scale
from raysweep.randomness import generator, seeded_step
from raysweep.training.adam import without_compiler

if TYPE_CHECKING:
    from raysweep.config import Settings
    from raysweep.probes.evaluation import Evaluation, Split

CROP_DIVISOR = 8
"""Random crops are padded by the side divided by this number: by 4 pixels for 32, as in He et al. 2016, section 4.2."""


class Classifier(nn.Module):
    """An encoder with a linear classifier on its trunk.

    Args:
        encoder: the encoder, with `feature_dim`.
        classes: the number of classes.
    """

    def __init__(self, encoder: Any, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.classifier = nn.Linear(encoder.feature_dim, classes)
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(encoder.feature_dim))
        self.register_buffer("scale", torch.ones(encoder.feature_dim))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> logits (B, classes)."""
        logits: Tensor = self.classifier((self.encoder(images) - self.mean) * self.scale)
        return logits


def build_classifier(settings: Settings, encoder: Any, classes: int) -> Classifier:
    """Return a copy of an encoder with a new linear classifier, on the CPU.

    The copy is built anew, because an encoder that was trained in several processes has batch normalisation that waits
    for the other processes. The head takes no part.
    """
    copied = build_encoder(settings, encoder.channels, encoder.image_size)
    copied.load_state_dict(encoder.state_dict())
    copied.head = nn.Identity()
    copied.requires_grad_(True)
    with seeded(settings.seed, "finetune"):
        return Classifier(copied, classes)


def batches_of(order: Tensor, batch_size: int) -> list[Tensor]:
    """Divide the order of the images (N,) into batches. The last one may be smaller.

    A single image that is left over joins the batch before it, because batch normalisation needs two images.
    """
    batches = list(order.split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def random_crops(images: Tensor, draws: torch.Generator, is_mirrored: bool) -> Tensor:
    """Shift each image at random, and mirror a random half of the images.

    The images are padded with black by 1/8 of their side, and a window of the old size is cut out: He et al. 2016,
    "Deep residual learning for image recognition", section 4.2.

    Args:
        images: (B, C, H, W) with H = W, of any type.
        draws: a generator on the CPU.
        is_mirrored: whether each image is mirrored left to right with probability 1/2.

    Returns:
        (B, C, H, W), of the same type.

    Example:
        >>> random_crops(torch.zeros(5, 3, 32, 32), torch.Generator(), True).shape
        torch.Size([5, 3, 32, 32])
    """
    count, size, device = len(images), images.shape[-1], images.device
    pad = max(1, size // CROP_DIVISOR)
    corners = torch.randint(2 * pad + 1, (2, count, 1), generator=draws)
    mirrored = (
        torch.rand((count, 1), generator=draws) < 0.5 if is_mirrored else torch.zeros((count, 1), dtype=torch.bool)
    )
    (top, left), mirrored = to_device(device, corners, mirrored)
    rows = top + torch.arange(size, device=device)
    columns = left + torch.arange(size, device=device)
    columns = torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(images, (pad, pad, pad, pad))
    image = torch.arange(count, device=device)
    return padded[image[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class FineTuning:
    """Train the copy of the encoder and its classifier; see `raysweep.probes.probes.TrainedProbe`.

    The encoder of the evaluation stays as it is. An encoder without weights to train, such as the pixels, yields
    nothing. Arithmetic is in float32. All draws have generators of their own, so that nothing else changes.

    Args:
        evaluation: the encoder, the images and the labels.
        epochs: the number of epochs.
        batch_size: images in each step; at least 2.
        lr: AdamW's learning rate, which stays constant.
        weight_decay: AdamW's decoupled weight decay.
        augment: `none`, `crop` or `crop_mirror`; see `random_crops`.
        standardize: whether the classifier reads the trunk minus its mean and divided by its standard deviation over
            the fit split before fine-tuning. Both stay constant.
        labels_per_class: number of labelled images of each class; None means all.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        *,
        epochs: int,
        batch_size: int,
        lr: float,
        weight_decay: float,
        augment: str,
        standardize: bool,
        labels_per_class: int | None,
    ) -> None:
        self.evaluation, self.epochs, self.batch_size = evaluation, epochs, batch_size
        self.augment, self.standardize, self.labels_per_class = augment, standardize, labels_per_class
        self.seed = evaluation.settings.seed
        self.progress, self.step = 0.0, 0
        self.is_applicable = parts.trains(evaluation.settings)
        if not self.is_applicable:
            return
        network = build_classifier(evaluation.settings, evaluation.encoder, evaluation.classes)
        self.network = network.to(evaluation.device)
        weights = list(self.network.parameters())
        self.optimizer = without_compiler(torch.optim.AdamW)(weights, lr=lr, weight_decay=weight_decay, fused=True)
        self.draws = generator(self.seed, "finetune order")
        self.batch = 0
        """The number of finished batches in the current epoch."""
        self.order: Tensor | None = None
        """The order of the images in the current epoch; None before its first batch."""
        self.loss = torch.zeros((), dtype=torch.float64, device=evaluation.device)
        """The sum of the losses of the images in the current epoch."""
        self._is_scaled = not standardize
        self._is_tested = False

    def run(self) -> Iterator[dict[str, float]]:
        """Train to the end. Yield after each batch, without metrics unless it ends an epoch, and at the end.

        Raises:
            Diverged: the loss or a weight is NaN or infinite.
        """
        if not self.is_applicable:
            return
        if not self._is_scaled:  # before the first batch, and not after a resume
            mean, scale = standard_scale(self.evaluation.features_of("fit", ("trunk",))["trunk"])
            self.network.mean.copy_(mean)
            self.network.scale.copy_(scale)
            self._is_scaled = True
        fit = self.evaluation.splits["fit"]
        index, labels = fit.index, self.evaluation.labels("fit")
        drawn = self.evaluation.drawn(self.labels_per_class)
        if drawn is not None:
            index, labels = index[drawn], labels[drawn]
        while self.step < self.epochs:
            self.network.train()
            if self.order is None:
                self.order = torch.randperm(len(index), generator=self.draws)
                self.loss.zero_()
            batches = batches_of(self.order.to(index.device), self.batch_size)
            for chosen in batches[self.batch :]:
                images = fit.images.index_select(0, index[chosen])
                purpose = f"finetune {self.step} {self.batch}"
                with seeded_step(self.seed, purpose, self.evaluation.device):  # for an encoder with dropout
                    loss = F.cross_entropy(self.network(self._prepared(images)), labels[chosen])
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.loss += loss.detach() * len(chosen)
                self.batch += 1
                self.progress = (self.step + self.batch / len(batches)) / self.epochs
                if self.batch < len(batches):
                    yield {}
            self.step, self.batch, self.order = self.step + 1, 0, None
            self._check(len(index))
            has_val = bool(len(self.evaluation.labels("val")))
            yield {"finetune/val_accuracy": self._accuracy("val")} if has_val else {}
        if not self._is_tested:  # else the trial was saved at this yield
            self._is_tested = True
            yield {"finetune/test_accuracy": self._accuracy("test")}

    def _prepared(self, images: Tensor) -> Tensor:
        """Return images (B, C, H, W) uint8 as the encoder reads them in training."""
        if self.augment != "none":
            images = random_crops(images, self.draws, self.augment == "crop_mirror")
        return to_float(images).contiguous(memory_format=torch.channels_last)

    def _check(self, images: int) -> None:
        """Raise Diverged if the mean loss of the epoch, over `images`, or a weight is not finite."""
        loss = float(self.loss) / images
        if not math.isfinite(loss):
            raise Diverged(f"the fine-tuning's loss became {loss} in its epoch {self.step}")
        state = [value for value in self.network.state_dict().values() if value.is_floating_point()]
        if not bool(torch.stack([value.isfinite().all() for value in state]).all()):
            raise Diverged(f"a weight became infinite in the fine-tuning's epoch {self.step}")

    @torch.no_grad()
    def _accuracy(self, name: str) -> float:
        """Return the accuracy on a split, without augmentation and in evaluation mode."""
        split: Split = self.evaluation.splits[name]
        self.network.eval()
        right = torch.zeros((), dtype=torch.int64, device=split.index.device)
        size = batch_of(split.images.shape[-1])
        every = self.evaluation.labels(name)
        for index, labels in zip(split.index.split(size), every.split(size), strict=True):
            images = to_float(split.images.index_select(0, index)).contiguous(memory_format=torch.channels_last)
            right += (self.network(images).argmax(1) == labels).sum()
        return int(right) / len(every)

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values from which training resumes bit for bit, also inside an epoch."""
        if not self.is_applicable:
            return {}
        return {
            "network": self.network.state_dict(),
            "is_scaled": self._is_scaled,
            "is_tested": self._is_tested,
            "optimizer": self.optimizer.state_dict(),
            "draws": self.draws.get_state(),
            "epoch": self.step,
            "batch": self.batch,
            "order": self.order,
            "loss": self.loss,
            "progress": self.progress,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the result of `state_dict`, before `run`."""
        if not self.is_applicable:
            return
        self.network.load_state_dict(state["network"])
        self._is_scaled, self._is_tested = state["is_scaled"], state.get("is_tested", False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.draws.set_state(state["draws"])
        self.step, self.batch, self.order = state["epoch"], state["batch"], state["order"]
        self.loss.copy_(state["loss"])
        self.progress = state["progress"]
