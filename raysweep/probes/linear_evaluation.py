"""Training of all linear probes of a trial: first the candidates for the score, then one on each block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from raysweep import parts
from raysweep.probes.features import standardize_
from raysweep.probes.grid import ProbeSpec
from raysweep.probes.linear import LinearProbes, train_classifiers

if TYPE_CHECKING:
    from raysweep.probes.evaluation import Evaluation, Features


class LinearEvaluation:
    """Train linear probes pass by pass; see `raysweep.probes.probes.TrainedProbe`.

    The first pass trains all candidates together. The best one on the validation images gives the score. With
    `per_layer` each further pass trains the probe on one block, because the features of all blocks may not fit in
    memory together.

    Args:
        evaluation: the features and labels.
        specs: the candidates for the score.
        block_lr: learning rate of the probes on blocks.
        block_weight_decay: weight decay of the probes on blocks.
        per_layer: whether every block has a probe.
        epochs: epochs of each pass.
        batch_size: features in each step.
        standardize: whether features are scaled to mean 0 and variance 1 over the fit split.
        labels_per_class: number of labelled images of each class; None means all.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        *,
        specs: tuple[ProbeSpec, ...],
        block_lr: float,
        block_weight_decay: float,
        per_layer: bool,
        epochs: int,
        batch_size: int,
        standardize: bool,
        labels_per_class: int | None,
    ) -> None:
        self.evaluation, self.epochs, self.batch_size = evaluation, epochs, batch_size
        self.standardize, self.labels_per_class = standardize, labels_per_class
        self.blocks: dict[str, ProbeSpec] = {}
        """The probes of `per_layer` by the name of the block; the last block is the trunk."""
        blocks = int(parts.encoder[evaluation.settings.encoder].traits["blocks"])
        if per_layer:
            for block in range(1, blocks + 1):
                layer = f"layer{block}" if block < blocks else "trunk"
                self.blocks[f"layer{block}"] = ProbeSpec(layer, block_lr, block_weight_decay)
        self.passes = [specs, *((spec,) for spec in self.blocks.values() if spec not in specs)]
        self.progress, self.step = 0.0, 0
        self._finished_passes = 0
        self._probes: LinearProbes | None = None
        self._saved: dict[str, Any] | None = None

    def run(self) -> Iterator[dict[str, float]]:
        """Train to the end. Yield the metrics of each epoch, and after each pass the metrics on the test images."""
        for number in range(self._finished_passes, len(self.passes)):
            specs, gives_score = self.passes[number], number == 0
            features = self.evaluation.take_features(tuple(dict.fromkeys(spec.layer for spec in specs)))
            if self.standardize:
                for layer in features["fit"]:
                    standardize_(*(features[split][layer] for split in ("fit", "val", "test")))
            widths = {spec.layer: features["fit"][spec.layer].shape[1] for spec in specs}
            settings, device = self.evaluation.settings, self.evaluation.device
            probes = LinearProbes(specs, widths, self.evaluation.classes, settings.seed, device)
            if self._saved is not None:
                probes.load_state_dict(self._saved)
                self._saved = None
            self._probes = probes
            for _ in self._train(probes, features):
                self.step = probes.epoch
                self.progress = (number + probes.epoch / self.epochs) / len(self.passes)
                yield self._epoch_metrics(probes, features, gives_score)
            self.step = self.epochs
            scores = self._test_metrics(probes, features, gives_score)
            del features
            self._finished_passes, self._probes = number + 1, None
            yield scores

    def _train(self, probes: LinearProbes, features: Features) -> Iterator[None]:
        """Train on the fit split, or on `labels_per_class` of its images of each class; yield after each epoch."""
        fit, labels = features["fit"], self.evaluation.labels("fit")
        index = self.evaluation.drawn(self.labels_per_class)
        if index is not None:
            fit, labels = {layer: values[index] for layer, values in fit.items()}, labels[index]
        return train_classifiers(probes, fit, labels, epochs=self.epochs, batch_size=self.batch_size)

    def _epoch_metrics(self, probes: LinearProbes, features: Features, gives_score: bool) -> dict[str, float]:
        """Return the metrics of an epoch. The best candidate on the validation images gives them."""
        metrics, best = {}, 0
        labels = self.evaluation.labels("val")
        if len(labels):
            val = probes.accuracy(features["val"], labels)
            metrics.update(self._by_block(probes, val, "val"))
            if gives_score:
                best = max(range(len(val)), key=lambda number: val[number])
                metrics["linear/val_accuracy"] = val[best]
            if gives_score and len(val) > 1:
                self.evaluation.best_linear_probe = str(probes.specs[best])
                grid_scores = {
                    f"bank/{spec}/val_accuracy": value for spec, value in zip(probes.specs, val, strict=True)
                }
                self.evaluation.extra_scalars.append((grid_scores, probes.epoch))
        if gives_score:
            metrics["linear/train_accuracy"] = probes.train_accuracy[best]
        return metrics

    def _test_metrics(self, probes: LinearProbes, features: Features, gives_score: bool) -> dict[str, float]:
        """Return the accuracy of trained probes on the test images."""
        test = probes.accuracy(features["test"], self.evaluation.labels("test"))
        scores = self._by_block(probes, test, "test")
        if gives_score:
            best = self.evaluation.best_linear_probe
            number = [str(spec) for spec in probes.specs].index(best) if best else 0
            scores["linear/test_accuracy"] = test[number]
            self.evaluation.confusion = probes.confusion(features["test"], self.evaluation.labels("test"), number)
        return scores

    def _by_block(self, probes: LinearProbes, accuracy: list[float], split: str) -> dict[str, float]:
        """Return the accuracies of the probes on blocks, by the name of the metric."""
        by_spec = dict(zip(probes.specs, accuracy, strict=True))
        return {
            f"linear/{name}/{split}_accuracy": by_spec[spec] for name, spec in self.blocks.items() if spec in by_spec
        }

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values from which training resumes bit for bit."""
        return {
            "finished_passes": self._finished_passes,
            "probes": self._probes.state_dict() if self._probes is not None else None,
            "progress": self.progress,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the result of `state_dict`, before `run`."""
        self._finished_passes, self._saved = state["finished_passes"], state["probes"]
        self.progress = state["progress"]
