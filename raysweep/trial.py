"""One experiment from its settings to its result: pretraining, then evaluation, in a directory of its own."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor

from raysweep.augment.operations import to_float
from raysweep.augment.policies import augment
from raysweep.config import BLOCKS, Collapse, ProbeSpec, Settings, has_effect
from raysweep.data import Datasets, Images, SplitPart, TrialData, draw_labels, fit_and_val, select_data
from raysweep.errors import Diverged
from raysweep.methods.precision import precision_of
from raysweep.probes.collapse import embedding_std, rankme
from raysweep.probes.features import compute, extract, extract_layers, standardize_
from raysweep.probes.kmeans import kmeans_scores
from raysweep.probes.knn import knn_accuracy
from raysweep.probes.linear import LinearProbes, train_linear
from raysweep.randomness import generator
from raysweep.results.attempts import begin_attempt
from raysweep.results.checkpoints import load_checkpoint, remove_checkpoints, save_checkpoint
from raysweep.results.encoders import save_encoder
from raysweep.results.events import Events, image_grid, projector
from raysweep.results.result import (
    Result,
    check_settings,
    make_result,
    note_traceback,
    read_result,
    set_result_aside,
    write_result,
)
from raysweep.space import Trial
from raysweep.system.memory import kept_memory
from raysweep.training.distributed import SINGLE_PROCESS, DistributedContext
from raysweep.training.loop import pretrain
from raysweep.training.state import fresh_state, spread

CHECKPOINT_SECONDS = 30.0
CHECKPOINT_COST = 50  # a checkpoint takes at most 2 % of the time
ONLINE_BANK, ONLINE_QUERIES, WATCHED_IMAGES = 2048, 1024, 1024
GRID_IMAGES = 8

Features = dict[str, dict[str, Tensor]]
"""By split and layer, (N, D)."""


@dataclass(frozen=True)
class Progress:
    """Where a trial is, after an epoch of pretraining or of a probe."""

    share: float
    """Of the whole trial, in [0, 1]."""
    epoch: int
    """Epochs of pretraining done."""
    evaluated: bool
    """Whether the online measures of `metrics` are this epoch's."""
    metrics: dict[str, float]
    """The newest of each."""
    seconds: float
    """Spent on the trial, over all attempts."""


Report = Callable[[Progress], None]
Stop = Callable[[], bool]
"""Asked between two steps: whether to save a checkpoint at once and leave. Cheap."""
Saved = Callable[[], None]
"""Called after something was written that a continued trial, or the sweep, goes by."""


@contextmanager
def fixed_threads(threads: int) -> Iterator[None]:
    """Let every library compute on `threads` threads: results depend on it in their last bits."""
    torch.set_num_threads(threads)
    with threadpool_limits(limits=threads):
        yield


def run_trial(
    trial: Trial,
    datasets: Datasets,
    directory: Path,
    *,
    threads: int,
    gpu: bool,
    checkpoint_seconds: float | None = None,
    collapse: Collapse | None = None,
    report: Report = lambda at: None,
    stop: Stop = lambda: False,
    saved: Saved = lambda: None,
    ranks: DistributedContext = SINGLE_PROCESS,
) -> Result | None:
    """Run a trial, or continue it from its newest checkpoint, and write its `result.json`.

    On a CPU a trial that was cut off, anywhere and any number of times, gives bit for bit what it gives in one go (in
    several processes but for the last bits of `pretrain/loss`, whose sum may be taken in other parts).
    A loss that becomes NaN or infinite is a result too, with status `failed`: the same settings would only repeat it.

    Args:
        trial: what to run.
        datasets: holds what `pick` needs.
        directory: the trial's own; absolute.
        threads: of this process.
        gpu: whether to use CUDA where it is visible.
        checkpoint_seconds: least time between two checkpoints; None: `CHECKPOINT_SECONDS`, or `CHECKPOINT_COST` times
            what the last one took if that is more.
        collapse: when an embedding counts as collapsed, which stops the trial; None is never.
        report: told of the progress.
        stop: see `Stop`; the trial that leaves gives None and goes on from its checkpoint when it is run again.
        saved: see `Saved`.
        ranks: the processes of a data-parallel trial; this one leads, and the others `follow`.
    """
    assert ranks.lead
    set_result_aside(directory, trial.name)
    done = read_result(directory)
    if done is not None and done.status != "failed":  # its worker died between the result and the last report
        remove_checkpoints(directory)
        saved()
        return done
    attempt = begin_attempt(directory, trial.settings)
    saved()
    with fixed_threads(threads), kept_memory(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", UserWarning)  # among them k-means' on a collapsed embedding
        warnings.simplefilter("default", RuntimeWarning)
        try:
            work = TrialRun(trial, select_data(trial.settings, datasets), directory, attempt, gpu, caught, ranks)
            end = work.run(checkpoint_seconds, collapse, report, stop, saved)
        except Exception:
            note_traceback(directory)
            raise
    if end is None:
        return None
    result = make_result(
        trial,
        work.probe.digest,
        directory,
        status=end.status,
        error=end.reason,
        linear_probe=work.linear_probe,
        metrics=work.metrics,
        wall_s=work.seconds(),
        device=str(work.device),
        precision=precision_of(trial.settings, work.device.type) if has_effect("precision", trial.settings) else "",
        warnings=work.warnings(),
    )
    write_result(directory, result)
    saved()  # in a bucket the result is there before the checkpoints go
    if end.status != "failed":
        remove_checkpoints(directory)
    saved()
    return result


def follow_trial(settings: Settings, datasets: Datasets, ranks: DistributedContext, *, threads: int, gpu: bool) -> None:
    """Pretrain beside the process that leads, in which `run` runs; to it all that is found belongs.

    Args:
        settings: the trial's.
        datasets: as for `run`.
        ranks: this process among them.
        threads: of this process.
        gpu: as for `run`.
    """
    assert not ranks.lead
    if not ranks.meet():
        return
    with fixed_threads(threads), kept_memory(), suppress(Diverged):  # the leader says so
        images = select_data(settings, datasets).pretrain
        device = device_of(gpu)
        channels, size = images.shape[1:3]
        state = fresh_state(settings, channels, size, device)
        spread(state, ranks)
        for _ in pretrain(settings, state, resident(images, device), ranks=ranks):
            pass


def device_of(gpu: bool) -> torch.device:
    """Where a trial computes: on this process's CUDA device, if it is to and there is one."""
    return torch.device("cuda" if gpu and torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class End:
    """How a trial ended by itself."""

    status: Literal["finished", "failed", "stopped"]
    """Of its `store.Result`."""
    reason: str | None = None


@dataclass(frozen=True)
class Split:
    """One split of the probe dataset, on the training device."""

    images: Tensor
    """(N, C, H, W) uint8, of which it is a part."""
    index: Tensor
    """(M,) int64, which part."""
    labels: Tensor
    """(M,) int64."""


class TrialRun:
    """A trial at work in this process."""

    def __init__(
        self,
        trial: Trial,
        of: TrialData,
        directory: Path,
        attempt: int,
        gpu: bool,
        caught: list[warnings.WarningMessage],
        ranks: DistributedContext = SINGLE_PROCESS,
    ) -> None:
        self.started = self.last_save = time.perf_counter()
        self.save_cost = 0.0
        self.ranks = ranks
        self.settings, self.directory, self.caught = trial.settings, directory, caught
        self.device = device_of(gpu)
        if gpu and self.device.type == "cpu":
            warnings.warn("resources.gpu gives the trial a GPU, but PyTorch sees none: it ran on the CPU", stacklevel=2)
        self.probe = of.probe
        self.images = resident(of.pretrain, self.device)
        channels, size = of.pretrain.shape[1:3]
        self.state = fresh_state(trial.settings, channels, size, self.device)
        self.metrics: dict[str, float] = {}
        self.linear_probe = ""
        self.collapsed = 0
        """Evaluations in a row in which the embedding had collapsed."""
        self.probed: int | None = None
        """Passes of linear probes done; None until the scores that need no training are there."""
        self.probes: LinearProbes | None = None
        """Of the pass that is at work,"""
        self.saved_probes: dict[str, Any] | None = None
        """or, until its features are there, where they go on."""
        self.features: Features | None = None
        """Those of the first pass, from the last epoch's measures on."""
        self.wall_before = 0.0
        self.warned_before: list[str] = []
        saved = load_checkpoint(directory)
        if saved is not None:
            self._load(saved)
        self.events = Events(directory, attempt, saved["events"] if saved is not None else None)
        if saved is None:
            self.events.hyperparameters({**trial.varied, "usl_epochs": self.settings.usl_epochs})
        self._split(of.pretrain)
        ranks.meet()
        spread(self.state, ranks)

    def seconds(self) -> float:
        """Wall time spent so far, over all attempts."""
        return self.wall_before + time.perf_counter() - self.started

    def warnings(self) -> list[str]:
        """Each warning once, over all attempts."""
        now = [str(warning.message).partition("\n")[0] for warning in self.caught]
        return list(dict.fromkeys([*self.warned_before, *now]))

    def run(
        self,
        checkpoint_seconds: float | None,
        collapse: Collapse | None,
        report: Report,
        stop: Stop,
        saved: Saved,
    ) -> End | None:
        """Pretrain and evaluate; returns how the trial ended, None where it left to go on later."""

        def due() -> bool:
            least = checkpoint_seconds
            if least is None:
                least = max(CHECKPOINT_SECONDS, CHECKPOINT_COST * self.save_cost)
            return time.perf_counter() - self.last_save >= least

        try:
            end = End("finished")
            with closing(self._steps(collapse, lambda: stop() or due())) as steps:
                for at in steps:
                    if isinstance(at, End):
                        end = at
                        break
                    leaving = stop()
                    # Before it is saved: a trial whose process died between the two would go on from that checkpoint
                    # after an evaluation of which no scheduler has heard.
                    if at is not None and not leaving:
                        report(at)
                    if leaving or due():
                        begun = time.perf_counter()
                        self._save()
                        saved()  # into a bucket it takes longer than to write it
                        self.last_save = time.perf_counter()
                        self.save_cost = self.last_save - begun
                    if leaving:  # which must not wait for anything before the checkpoint
                        if at is not None and at.evaluated:
                            report(at)
                        return None
            self.events.end(finished=True)  # one that was stopped has not failed
            return end
        except Diverged as fault:
            self.events.end(finished=False)
            where = "" if "epoch" in str(fault) else f" after pretraining epoch {self.state.epoch}"
            return End("failed", f"{fault}{where}")
        finally:
            self.events.close()

    def _steps(self, collapse: Collapse | None, pause: Callable[[], bool]) -> Generator[Progress | End | None]:
        """All of the trial that is left; wherever this yields, it may be saved. None is in the middle of an epoch."""
        settings, state = self.settings, self.state
        total = settings.pretrain_epochs + 1  # the evaluation counts as one epoch
        with closing(pretrain(settings, state, self.images, pause, self.ranks)) as epochs:
            for metrics in epochs:
                if metrics is None:
                    yield None
                    continue
                self._log(metrics, state.epoch)
                last = state.epoch == settings.pretrain_epochs
                evaluated = bool(settings.probe_every) and (state.epoch % settings.probe_every == 0 or last)
                if evaluated and last:  # the evaluation reads them too
                    self.features = self._extract(self._first_layers())
                if evaluated:
                    self._log(self._watch(), state.epoch)
                if settings.images_every and (state.epoch % settings.images_every == 0 or last):
                    self._draw()
                if evaluated and collapse is not None:
                    self.collapsed = self.collapsed + 1 if collapse.holds(self.metrics) else 0
                    if self.collapsed >= collapse.evaluations:
                        yield End("stopped", collapse.words(self.metrics, state.epoch))
                yield Progress(state.epoch / total, state.epoch, evaluated, self.metrics, self.seconds())
        yield from self._evaluate()

    def _split(self, pretrain: Images) -> None:
        """Bring the probe dataset's splits to the device; choose the fixed images of the online measures."""
        test_labels, test_images = self.probe.test_labels, self.probe.test_images
        assert test_labels is not None
        assert test_images is not None
        # The images stay where they are, shared with other trials; a split is an index into them.
        train = self.images if self.probe.train_images is pretrain else resident(self.probe.train_images, self.device)

        def split(part: SplitPart) -> Split:
            of_train = part.images is self.probe.train_images
            images = train if of_train else resident(part.images, self.device)
            return Split(images, torch.from_numpy(part.index).to(self.device), resident(part.labels, self.device))

        fit, val = fit_and_val(self.probe, self.settings.val_fraction, self.settings.split_seed)
        test = SplitPart(test_images, np.arange(len(test_images)), test_labels)
        self.splits = {"fit": split(fit), "val": split(val), "test": split(test)}
        self.watched = fixed_subset(len(self.images), WATCHED_IMAGES).to(self.device)
        self.online_fit = fixed_subset(len(fit.index), ONLINE_BANK).to(self.device)
        self.online_val = fixed_subset(len(val.index), ONLINE_QUERIES).to(self.device)

    def _log(self, metrics: dict[str, float], step: int) -> None:
        self.metrics.update(metrics)
        self.events.scalars(metrics, step)

    def _watch(self) -> dict[str, float]:
        """The measures taken while pretraining: is the embedding collapsing, and what would kNN say now?"""
        settings, encoder = self.settings, self.state.encoder
        (z,) = compute(encoder, self.images, self.watched, lambda images: [self.state.embed(settings, images)])
        metrics = {"pretrain/embedding_std": embedding_std(z), "pretrain/rankme": rankme(z)}
        if len(self.online_val):
            metrics["online/knn_val_accuracy"] = knn_accuracy(
                *self._online("fit", self.online_fit),
                *self._online("val", self.online_val),
                classes=len(self.probe.classes),
                k=min(settings.knn_k, len(self.online_fit)),
                temperature=settings.knn_temperature,
            )
        return metrics

    def _online(self, name: str, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Features and labels of chosen images of a split."""
        split, layer = self.splits[name], self.settings.probe_layer
        if self.features is not None:
            features = self.features[name][layer].index_select(0, chosen)
        else:
            features = extract(self.state.encoder, split.images, split.index[chosen], layer)
        return features, split.labels[chosen]

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

    def _save(self) -> None:
        """A checkpoint of everything that a continued trial needs."""
        content = {
            "settings": self.settings.model_dump(),
            "state": self.state.state_dict(),
            "collapsed": self.collapsed,
            "probed": self.probed,
            "probes": self.probes.state_dict() if self.probes is not None else None,
            "linear_probe": self.linear_probe,
            "events": self.events.positions(),
            "metrics": self.metrics,
            "warnings": self.warnings(),
            "wall_s": self.seconds(),
            "precision": precision_of(self.settings, self.device.type),
        }
        save_checkpoint(self.directory, content)

    def _load(self, saved: dict[str, Any]) -> None:
        """Take over what `_save` kept, but the event files' positions.

        Checkpoints of older versions, which were of an epoch's end, lack what is not there then.
        """
        check_settings(saved["settings"], self.settings, f"the checkpoint in {self.directory}")
        self.state.load_state_dict(saved["state"])
        self.collapsed, self.linear_probe = saved.get("collapsed", 0), saved.get("linear_probe", "")
        self.probed, self.saved_probes = saved.get("probed"), saved.get("probes")
        self.metrics, self.wall_before = saved["metrics"], saved["wall_s"]
        self.warned_before = saved.get("warnings", [])
        was, now = saved.get("precision"), precision_of(self.settings, self.device.type)
        if was not in (None, now) and self.state.epoch < self.settings.pretrain_epochs:
            done = f"{self.state.epoch} of its pretraining epochs"
            warnings.warn(
                f"{done} were in {was}, the others in {now}, which is what its next machine has", stacklevel=2
            )

    def _passes(self) -> list[tuple[ProbeSpec, ...]]:
        """The linear probes that are trained together: those that count first, then one block after the other.

        At 32×32 the features of 60,000 images are 1 to 2 GB for each block.
        """
        heads = self.settings.heads
        return [heads, *((head,) for head in block_heads(self.settings).values() if head not in heads)]

    def _evaluate(self) -> Iterator[Progress]:
        """All probes on the frozen encoder; then its weights are kept."""
        settings, trained = self.settings, self.settings.pretrain_epochs
        passes = self._passes()
        for number, heads in enumerate(passes):
            if number < (self.probed or 0):
                continue
            # What needs no training comes first, with the features of the first pass.
            untrained = self.probed is None
            features, self.features = self.features, None
            if features is None:
                layers = tuple(head.layer for head in heads)
                features = self._extract(self._first_layers() if untrained else layers)
            if untrained:
                self._log(self._untrained_scores(features), trained)
                self.probed = 0
            self._standardise(features)
            widths = {head.layer: features["fit"][head.layer].shape[1] for head in heads}
            self.probes = LinearProbes(heads, widths, len(self.probe.classes), settings.seed, self.device)
            if self.saved_probes is not None:
                self.probes.load_state_dict(self.saved_probes)
                self.saved_probes = None
            for _ in self._train_linear(self.probes, features):
                self._log(self._probe_metrics(self.probes, features, number == 0), self.probes.epoch)
                share = (number + self.probes.epoch / settings.le_epochs) / len(passes)
                yield Progress((trained + share) / (trained + 1), trained, False, self.metrics, self.seconds())
            self._log(self._test_scores(self.probes, features, number == 0), settings.le_epochs)
            self.probed, self.probes = number + 1, None
            del features

        encoder = self.state.encoder
        description = {
            "architecture": settings.encoder,
            "channels": encoder.channels,
            "image_size": encoder.image_size,
            "embedding_dim": settings.embedding_dim,
        }
        weights = {name: weight.cpu() for name, weight in encoder.state_dict().items()}  # loads where there is no GPU
        save_encoder(self.directory, weights, description)

    def _probe_metrics(self, probes: LinearProbes, features: Features, counts: bool) -> dict[str, float]:
        """What an epoch of linear probes gives; of those that count, the best on val is the sweep's."""
        metrics, best = {}, 0
        if len(self.splits["val"].index):
            val = probes.accuracy(features["val"], self.splits["val"].labels)
            metrics.update(self._by_block(probes, val, "val"))
            if counts:
                best = max(range(len(val)), key=lambda i: val[i])
                metrics["linear/val_accuracy"] = val[best]
            if counts and len(val) > 1:
                self.linear_probe = str(probes.heads[best])
                each = {f"bank/{head}/val_accuracy": of for head, of in zip(probes.heads, val, strict=True)}
                self.events.scalars(each, probes.epoch)
        if counts:
            metrics["linear/train_accuracy"] = probes.train_accuracy[best]
        return metrics

    def _test_scores(self, probes: LinearProbes, features: Features, counts: bool) -> dict[str, float]:
        """The accuracy on the test images, once, of linear probes that are trained."""
        test = probes.accuracy(features["test"], self.splits["test"].labels)
        scores = self._by_block(probes, test, "test")
        if counts:
            chosen = [str(head) for head in probes.heads].index(self.linear_probe) if self.linear_probe else 0
            scores["linear/test_accuracy"] = test[chosen]
        return scores

    def _by_block(self, probes: LinearProbes, accuracy: list[float], split: str) -> dict[str, float]:
        """Of the probes' accuracies those of `per_layer`, under their names."""
        of = dict(zip(probes.heads, accuracy, strict=True))
        return {
            f"linear/{name}/{split}_accuracy": of[head]
            for name, head in block_heads(self.settings).items()
            if head in of
        }

    def _first_layers(self) -> tuple[str, ...]:
        """What `_evaluate` reads first: by the scores that need no training, and by the heads that count."""
        return (self.settings.probe_layer, *(head.layer for head in self.settings.heads))

    def _untrained_scores(self, features: Features) -> dict[str, float]:
        """Scores of kNN and k-means; besides, what TensorBoard's projector shows."""
        of = {split: features[split][self.settings.probe_layer] for split in features}
        self._project(of["test"])
        return {**self._knn(of), **self._kmeans(of["test"])}

    def _extract(self, layers: tuple[str, ...]) -> Features:
        """The features of every split in each of the layers."""
        layers = tuple(dict.fromkeys(layers))
        return {
            name: extract_layers(self.state.encoder, split.images, split.index, layers)
            for name, split in self.splits.items()
        }

    def _standardise(self, features: Features) -> None:
        """Scale the features in place, where the settings say so."""
        if self.settings.standardize:
            for layer in features["fit"]:
                standardize_(*(features[name][layer] for name in ("fit", "val", "test")))

    def _train_linear(self, probes: LinearProbes, features: Features) -> Iterator[None]:
        """Train linear probes on the fit split, or on `labels_per_class` of it, yielding after each epoch."""
        settings, fit, labels = self.settings, features["fit"], self.splits["fit"].labels
        if settings.labels_per_class is not None:
            drawn = draw_labels(labels.cpu().numpy(), settings.labels_per_class, settings.seed)
            index = torch.from_numpy(drawn).to(self.device)
            fit, labels = {layer: of[index] for layer, of in fit.items()}, labels[index]
        return train_linear(probes, fit, labels, epochs=settings.le_epochs, batch_size=settings.le_batch_size)

    def _knn(self, features: dict[str, Tensor]) -> dict[str, float]:
        """Weighted kNN on features (N, D) by split, the bank being the fit split."""
        return {
            f"knn/{split}_accuracy": knn_accuracy(
                features["fit"],
                self.splits["fit"].labels,
                features[split],
                self.splits[split].labels,
                classes=len(self.probe.classes),
                k=self.settings.knn_k,
                temperature=self.settings.knn_temperature,
            )
            for split in ("val", "test")
            if len(self.splits[split].index)
        }

    def _project(self, features: Tensor) -> None:
        """Features of some test images, as they are, for TensorBoard's projector."""
        split = self.splits["test"]
        chosen = fixed_subset(len(features), self.settings.projector_images).to(self.device)
        if len(chosen):
            of, labels, images = (every[chosen].cpu().numpy() for every in (features, split.labels, split.images))
            projector(self.directory, of, labels, self.probe.classes, images)

    def _kmeans(self, features: Tensor) -> dict[str, float]:
        """k-means on features (N, D) of the test images."""
        labels = self.splits["test"].labels.cpu().numpy()
        return kmeans_scores(features.cpu().numpy(), labels, len(self.probe.classes), self.settings.seed)


def block_heads(settings: Settings) -> dict[str, ProbeSpec]:
    """The probes of `per_layer`, by the name of the block, the last of which is the trunk; empty without it."""
    if not has_effect("per_layer", settings) or not settings.per_layer:
        return {}
    layers = {f"layer{k}": f"layer{k}" for k in range(1, BLOCKS)} | {f"layer{BLOCKS}": "trunk"}
    return {name: ProbeSpec(layer, settings.le_lr, settings.le_weight_decay) for name, layer in layers.items()}


def resident(array: NDArray[Any], device: torch.device) -> Tensor:
    """A NumPy array as a tensor on `device`; on the CPU the two share their memory, which nothing writes to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array).to(device)


def fixed_subset(available: int, wanted: int) -> Tensor:
    """The sorted indices of `wanted` of `available` images (all, if fewer), the same in every trial."""
    chosen = np.random.RandomState(0).permutation(available)[:wanted]  # its stream is frozen, default_rng's is not
    return torch.from_numpy(np.sort(chosen))
