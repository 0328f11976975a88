"""One experiment from its settings to its result: pretraining, then evaluation, in a directory of its own."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor

from raysweep import store
from raysweep.augment import augment, to_float
from raysweep.config import BLOCKS, Head, Settings, has_effect
from raysweep.data import Images, draw_labels, split_train
from raysweep.errors import Diverged
from raysweep.events import Events, image_grid, projector
from raysweep.inputs import Data, Datasets, pick
from raysweep.pretrain import fresh_state, pretrain
from raysweep.probes.collapse import embedding_std, rankme
from raysweep.probes.features import compute, extract, extract_layers, standardize_
from raysweep.probes.kmeans import kmeans_scores
from raysweep.probes.knn import knn_accuracy
from raysweep.probes.linear import train_linear
from raysweep.randomness import generator
from raysweep.space import Trial

ONLINE_BANK, ONLINE_QUERIES, WATCHED_IMAGES = 2048, 1024, 1024
GRID_IMAGES = 8

Features = dict[str, dict[str, Tensor]]
"""By split and layer, (N, D)."""

Report = Callable[[float, dict[str, float]], None]
"""Called after every epoch with the share of the trial that is done, in [0, 1], and the newest metrics."""


@contextmanager
def fixed_threads(threads: int) -> Iterator[None]:
    """Let every library compute on `threads` threads: results depend on it in their last bits."""
    torch.set_num_threads(threads)
    with threadpool_limits(limits=threads):
        yield


def run(
    trial: Trial,
    datasets: Datasets,
    directory: Path,
    *,
    threads: int,
    gpu: bool,
    checkpoint_seconds: float,
    report: Report,
) -> store.Result:
    """Run a trial, or continue it from its newest checkpoint, and write its `result.json`.

    A loss that becomes NaN or infinite is a result too, with status `failed`: the same settings would only repeat it.

    Args:
        trial: what to run.
        datasets: holds what `pick` needs.
        directory: the trial's own; absolute.
        threads: of this process.
        gpu: whether to use CUDA where it is visible.
        checkpoint_seconds: least time between two checkpoints.
        report: told of the progress.
    """
    done = store.read_result(directory)
    if done is not None and done.status == "finished":  # its worker died between the result and the last report
        return done
    started = time.perf_counter()
    attempt = store.begin_attempt(directory, trial.settings)
    with fixed_threads(threads), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", UserWarning)  # among them k-means' on a collapsed embedding
        warnings.simplefilter("default", RuntimeWarning)
        try:
            work = Work(trial, pick(trial.settings, datasets), directory, attempt, gpu)
            error = work.run(started, checkpoint_seconds, report)
        except Exception:
            (directory / "error.txt").write_text(traceback.format_exc())
            raise
    result = store.make_result(
        trial,
        work.probe.digest,
        directory,
        error=error,
        linear_probe=work.linear_probe,
        metrics=work.metrics,
        wall_s=work.wall_s + time.perf_counter() - started,
        device=str(work.device),
        warnings=list(dict.fromkeys(str(warning.message).splitlines()[0] for warning in caught)),
    )
    store.write_result(directory, result)
    if error is None:
        store.remove_checkpoints(directory)
    return result


@dataclass(frozen=True)
class Split:
    """One split of the probe dataset, on the training device."""

    images: Tensor
    """(N, C, H, W) uint8, of which it is a part."""
    index: Tensor
    """(M,) int64, which part."""
    labels: Tensor
    """(M,) int64."""


class Work:
    """A trial at work in this process."""

    def __init__(self, trial: Trial, of: Data, directory: Path, attempt: int, gpu: bool) -> None:
        self.settings, self.directory = trial.settings, directory
        self.device = torch.device("cuda" if gpu and torch.cuda.is_available() else "cpu")
        self.probe = of.probe
        self.images = resident(of.pretrain, self.device)
        channels, size = of.pretrain.shape[1:3]
        self.state = fresh_state(trial.settings, channels, size, self.device)
        self.metrics: dict[str, float] = {}
        self.wall_s = 0.0
        self.linear_probe = ""
        saved = store.load_checkpoint(directory)
        if saved is not None:
            store.check_settings(saved["settings"], trial.settings, f"the checkpoint in {directory}")
            self.state.load_state_dict(saved["state"])
            self.metrics, self.wall_s = saved["metrics"], saved["wall_s"]
        self.events = Events(directory, attempt, saved["events"] if saved is not None else None)
        if saved is None:
            self.events.hyperparameters({**trial.varied, "usl_epochs": self.settings.usl_epochs})
        self._split(of.pretrain)

    def run(self, started: float, checkpoint_seconds: float, report: Report) -> str | None:
        """Pretrain and evaluate; returns what went wrong, None if nothing did."""
        settings, state = self.settings, self.state
        total = settings.pretrain_epochs + 1  # the evaluation counts as one epoch
        last_checkpoint = time.perf_counter()
        try:
            for metrics in pretrain(settings, state, self.images):
                self._log(metrics, state.epoch)
                last = state.epoch == settings.pretrain_epochs
                if settings.probe_every and (state.epoch % settings.probe_every == 0 or last):
                    self._log(self._watch(), state.epoch)
                if settings.images_every and (state.epoch % settings.images_every == 0 or last):
                    self._draw()
                if time.perf_counter() - last_checkpoint >= checkpoint_seconds:
                    self._save(started)
                    last_checkpoint = time.perf_counter()
                report(state.epoch / total, self.metrics)
            self._evaluate(report)
        except Diverged as fault:
            self.events.end(finished=False)
            where = "" if "epoch" in str(fault) else f" after pretraining epoch {self.state.epoch}"
            return f"{fault}{where}"
        finally:
            self.events.close()
        return None

    def _split(self, pretrain: Images) -> None:
        """Bring the probe dataset's splits to the device; choose the fixed images of the online measures."""
        labels, test_labels, test_images = self.probe.train_labels, self.probe.test_labels, self.probe.test_images
        assert labels is not None
        assert test_labels is not None
        assert test_images is not None
        # The images stay where they are, shared with other trials; a split is an index into them.
        train = self.images if self.probe.train_images is pretrain else resident(self.probe.train_images, self.device)
        train_labels = resident(labels, self.device)
        fit, val = (
            torch.from_numpy(index).to(self.device)
            for index in split_train(labels, self.settings.val_fraction, self.settings.split_seed)
        )
        test = torch.arange(len(test_images), device=self.device)
        self.splits = {
            "fit": Split(train, fit, train_labels[fit]),
            "val": Split(train, val, train_labels[val]),
            "test": Split(resident(test_images, self.device), test, resident(test_labels, self.device)),
        }
        self.watched = fixed_subset(len(self.images), WATCHED_IMAGES).to(self.device)
        self.online_fit = fixed_subset(len(fit), ONLINE_BANK).to(self.device)
        self.online_val = fixed_subset(len(val), ONLINE_QUERIES).to(self.device)

    def _log(self, metrics: dict[str, float], step: int) -> None:
        self.metrics.update(metrics)
        self.events.scalars(metrics, step)

    def _watch(self) -> dict[str, float]:
        """The measures taken while pretraining: is the embedding collapsing, and what would kNN say now?"""
        settings, encoder = self.settings, self.state.encoder
        (z,) = compute(encoder, self.images, self.watched, lambda images: [self.state.embed(settings, images)])
        metrics = {"pretrain/embedding_std": embedding_std(z), "pretrain/rankme": rankme(z)}
        if len(self.online_val):
            fit, val = self.splits["fit"], self.splits["val"]
            metrics["online/knn_val_accuracy"] = knn_accuracy(
                extract(encoder, fit.images, fit.index[self.online_fit], settings.probe_layer),
                fit.labels[self.online_fit],
                extract(encoder, val.images, val.index[self.online_val], settings.probe_layer),
                val.labels[self.online_val],
                classes=len(self.probe.classes),
                k=min(settings.knn_k, len(self.online_fit)),
                temperature=settings.knn_temperature,
            )
        return metrics

    def _draw(self) -> None:
        """A picture of originals, views and what the decoder makes of them, drawn apart from the training's draws."""
        originals = self.images[self.watched[:GRID_IMAGES]]
        draws = generator(self.settings.seed, f"images {self.state.epoch}")
        rows = [to_float(originals)]
        rows += [
            augment(originals, self.settings.policies, self.settings.strength, self.settings.blur, draws)
            for _ in range(self.settings.views)
        ]
        tag = "images/original_and_views"
        if self.state.decoder is not None:
            tag = "images/original_view_reconstruction"
            self.state.encoder.eval()  # a picture must not move batch norm's statistics
            with torch.inference_mode():
                rows[2:] = [self.state.reconstruct(self.settings, rows[1])]
            self.state.encoder.train()
        picture = image_grid([row.float().cpu().numpy() for row in rows], scale=max(1, 64 // originals.shape[-1]))
        self.events.images(tag, picture, self.state.epoch)

    def _save(self, started: float) -> None:
        """A checkpoint of everything that a continued trial needs."""
        saved = {
            "settings": self.settings.model_dump(),
            "state": self.state.state_dict(),
            "events": self.events.positions(),
            "metrics": self.metrics,
            "wall_s": self.wall_s + time.perf_counter() - started,
        }
        store.save_checkpoint(self.directory, self.state.epoch, saved)

    def _evaluate(self, report: Report) -> None:
        """All probes on the frozen encoder; then its weights are kept."""
        settings, classes, trained = self.settings, len(self.probe.classes), self.settings.pretrain_epochs
        heads, by_block = settings.heads, block_heads(settings)
        # Each probe that counts comes first; per-layer ones that are among them are not trained twice.
        all_heads = tuple(dict.fromkeys((*heads, *by_block.values())))
        layers = tuple(dict.fromkeys((settings.probe_layer, *(head.layer for head in all_heads))))
        features = {
            name: extract_layers(self.state.encoder, split.images, split.index, layers)
            for name, split in self.splits.items()
        }
        labels = {name: split.labels for name, split in self.splits.items()}
        scored = [split for split in ("val", "test") if len(labels[split])]

        self._log({**self._knn(features, labels, scored), **self._kmeans(features["test"], labels["test"])}, trained)

        self._project(features["test"][settings.probe_layer])

        if settings.standardize:
            for layer in layers:
                standardize_(*(features[name][layer] for name in ("fit", "val", "test")))
        fit, target = features["fit"], labels["fit"]
        if settings.labels_per_class is not None:
            drawn = draw_labels(target.cpu().numpy(), settings.labels_per_class, settings.seed)
            index = torch.from_numpy(drawn).to(self.device)
            fit, target = {layer: of[index] for layer, of in fit.items()}, target[index]
        best = 0
        for probes in train_linear(
            fit,
            target,
            classes,
            all_heads,
            epochs=settings.le_epochs,
            batch_size=settings.le_batch_size,
            seed=settings.seed,
        ):
            metrics = {}
            if "val" in scored:
                val = probes.accuracy(features["val"], labels["val"])
                best = max(range(len(heads)), key=lambda i: val[i])
                metrics["linear/val_accuracy"] = val[best]
                for name, head in by_block.items():
                    metrics[f"linear/{name}/val_accuracy"] = val[all_heads.index(head)]
                if len(heads) > 1:
                    each = {f"bank/{head}/val_accuracy": of for head, of in zip(heads, val, strict=False)}
                    self.events.scalars(each, probes.epoch)
            metrics["linear/train_accuracy"] = probes.train_accuracy[best]
            self._log(metrics, probes.epoch)
            report((trained + probes.epoch / settings.le_epochs) / (trained + 1), self.metrics)
        test = probes.accuracy(features["test"], labels["test"])
        scores = {"linear/test_accuracy": test[best]}
        for name, head in by_block.items():
            scores[f"linear/{name}/test_accuracy"] = test[all_heads.index(head)]
        self._log(scores, settings.le_epochs)
        self.linear_probe = str(heads[best]) if len(heads) > 1 else ""
        encoder = self.state.encoder
        description = {
            "architecture": settings.encoder,
            "channels": encoder.channels,
            "image_size": encoder.image_size,
            "embedding_dim": settings.embedding_dim,
        }
        weights = {name: weight.cpu() for name, weight in encoder.state_dict().items()}  # loads where there is no GPU
        store.save_encoder(self.directory, weights, description)
        self.events.end(finished=True)

    def _knn(self, features: Features, labels: dict[str, Tensor], scored: list[str]) -> dict[str, float]:
        """Weighted kNN on the probe layer, the bank being the fit split."""
        layer = self.settings.probe_layer
        return {
            f"knn/{split}_accuracy": knn_accuracy(
                features["fit"][layer],
                labels["fit"],
                features[split][layer],
                labels[split],
                classes=len(self.probe.classes),
                k=self.settings.knn_k,
                temperature=self.settings.knn_temperature,
            )
            for split in scored
        }

    def _project(self, features: Tensor) -> None:
        """Features of some test images, as they are, for TensorBoard's projector."""
        split = self.splits["test"]
        chosen = fixed_subset(len(features), self.settings.projector_images).to(self.device)
        if len(chosen):
            of, labels, images = (every[chosen].cpu().numpy() for every in (features, split.labels, split.images))
            projector(self.directory, of, labels, self.probe.classes, images)

    def _kmeans(self, features: dict[str, Tensor], labels: Tensor) -> dict[str, float]:
        """k-means on the probe layer of the test images."""
        of = features[self.settings.probe_layer].cpu().numpy()
        return kmeans_scores(of, labels.cpu().numpy(), len(self.probe.classes), self.settings.seed)


def block_heads(settings: Settings) -> dict[str, Head]:
    """The probes of `per_layer`, by the name of the block; empty without it."""
    if not has_effect("per_layer", settings) or not settings.per_layer:
        return {}
    names = [f"layer{k}" for k in range(1, BLOCKS + 1)]
    return {name: Head(name, settings.le_lr, settings.le_weight_decay) for name in names}


def resident(array: NDArray[Any], device: torch.device) -> Tensor:
    """A NumPy array as a tensor on `device`; on the CPU the two share their memory, which nothing writes to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array).to(device)


def fixed_subset(available: int, wanted: int) -> Tensor:
    """The sorted indices of `wanted` of `available` images (all, if fewer), the same in every trial."""
    chosen = np.random.RandomState(0).permutation(available)[:wanted]  # its stream is frozen, default_rng's is not
    return torch.from_numpy(np.sort(chosen))
