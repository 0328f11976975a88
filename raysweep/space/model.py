"""The data classes of a sweep: how it runs, what a trial gets, its trials."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from raysweep.config import About, Collapse, Settings, check_type, make_settings, metrics_by_name


class Tune(BaseModel):
    """How the sweep is run."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    _types = field_validator("*", mode="before")(check_type)

    metric: Annotated[
        str | None,
        About(
            "What the live view, the summary and a searcher call best; none: `linear/val_accuracy`, or nothing without "
            "val split. A scheduler stops by it too, while pretraining; none: by `online/knn_val_accuracy`."
        ),
    ] = None
    mode: Annotated[
        Literal["max", "min"] | None,
        About("Whether more or less of it is better; none: what the metric says of itself, else `max`."),
    ] = None
    scheduler: Annotated[
        Literal["fifo", "asha", "median"],
        About(
            "Which trials are stopped while pretraining: none; those below the best of a rung (ASHA, Li et al. 2020, "
            "arXiv:1810.05934); those whose best is below the median of the others' running means, of which there must "
            "be three (Golovin et al. 2017, doi 10.1145/3097983.3098043)."
        ),
    ] = "fifo"
    grace_epochs: Annotated[
        int | None,
        Field(ge=1),
        About("`asha`, `median`: epochs of pretraining before a trial may be stopped; none: `probe_every`."),
    ] = None
    reduction_factor: Annotated[
        float,
        Field(gt=1),
        About(
            "`asha`: η. The rungs are at `grace_epochs` · η^k epochs, and at each about one trial of η goes on; a "
            "trial's last epoch is none."
        ),
    ] = 4.0
    searcher: Annotated[
        Literal["none", "optuna"],
        About(
            "What proposes the points: the search space alone, or Optuna's TPE (Bergstra et al. 2011), which goes by "
            "the mean over seeds of the points before (`pip install -e '.[optuna]'`)."
        ),
    ] = "none"
    num_samples: Annotated[
        int,
        Field(ge=1),
        About(
            "Draws of the settings that are drawn at random; each is combined with the whole grid. With a searcher: "
            "points, each with every seed."
        ),
    ] = 1
    max_concurrent: Annotated[
        int | None, Field(ge=1), About("At most so many trials at a time; none: as many as there is room for.")
    ] = None
    max_failures: Annotated[
        int,
        Field(ge=0),
        About("How often a trial whose worker died resumes from its checkpoint before it counts as failed."),
    ] = 3
    checkpoint_seconds: Annotated[
        float | None,
        Field(ge=0),
        About(
            "Least seconds between two checkpoints of a trial; none: 30, or 50 times what the last one took, if more."
        ),
    ] = None
    time_budget: Annotated[
        float | None,
        Field(gt=0),
        About(
            "Seconds after which the sweep ends, its running trials saved, to be resumed or not; each resume has as "
            "many. None is no limit."
        ),
    ] = None
    collapse_stop: Annotated[
        int | None,
        Field(ge=1),
        About(
            "Stop a trial whose embedding is collapsed in so many evaluations in a row (`probe_every`); none: never."
        ),
    ] = None
    collapse_rankme: Annotated[
        float,
        Field(ge=0),
        About("`collapse_stop`: collapsed is an embedding with a RankMe (1 to its width) below this."),
    ] = 1.5
    collapse_std: Annotated[
        float,
        Field(ge=0),
        About("`collapse_stop`: and one with a mean standard deviation of its dimensions below this."),
    ] = 1e-4

    @property
    def collapse(self) -> Collapse | None:
        """When to stop a trial; None is never."""
        if self.collapse_stop is None:
            return None
        return Collapse(self.collapse_stop, self.collapse_rankme, self.collapse_std)


class Resources(BaseModel):
    """What one trial gets."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    _types = field_validator("*", mode="before")(check_type)

    cpu: Annotated[int, Field(ge=1), About("Processor cores, and threads, of a trial, or of each of its workers.")] = 1
    gpu: Annotated[
        float, Field(ge=0), About("GPUs of one trial, or of each of its workers; 0.25 puts four trials on one.")
    ] = 0.0
    workers: Annotated[
        int, Field(ge=1), About("Processes of one trial, each with a part of every batch, each with `cpu` and `gpu`.")
    ] = 1

    @field_validator("gpu")
    @classmethod
    def _whole_or_part(cls, value: float) -> float:
        """Ray shares one GPU between trials, or gives a trial several whole ones."""
        if (value > 1 and value != int(value)) or 0 < value < 1e-4:  # Ray counts in ten-thousandths
            raise ValueError("must be a part of one GPU, at least 0.0001, or a whole number of them")
        return value


@dataclass(frozen=True)
class Trial:
    """One point of the sweep with one seed."""

    name: str
    """Its directory: what varies, never rounded, e.g. `alpha=1e-05,seed=0`; `random,seed=0` for the baseline."""
    point: str
    """Its name without the seed: trials of one point are repeats."""
    settings: Settings
    varied: Mapping[str, Any]
    """The searched settings that have an effect, and the seed."""
    baseline: bool = False

    def __str__(self) -> str:
        """Its name, which is also what Tune makes tags of."""
        return self.name

    def __reduce__(self) -> tuple[Any, ...]:
        """Short: Tune writes every trial down so, several times, again and again."""
        changed = self.settings.model_dump(exclude_defaults=True)
        return unpickled, (self.name, self.point, changed, dict(self.varied), self.baseline)


def unpickled(name: str, point: str, changed: dict[str, Any], varied: dict[str, Any], baseline: bool) -> Trial:
    """The trial that was pickled."""
    return Trial(name, point, Settings(**changed), FrozenDict(varied), baseline)


@dataclass(frozen=True)
class Proposal:
    """A point that a searcher proposes."""

    space: int
    """Which sub-space it is of, from 0."""
    values: Mapping[str, Any]
    """Its searched settings, the seed aside."""


@dataclass(frozen=True)
class Sweep:
    """A checked search space."""

    name: str
    base: Mapping[str, Any]
    search: tuple[Mapping[str, Mapping[str, Any]], ...]
    baseline: bool
    tune: Tune
    resources: Resources
    trials: tuple[Trial, ...]
    """With a searcher: of the points proposed so far."""
    examples: tuple[Trial, ...]
    """Trials for checks before any trial starts: all trials, or with a searcher some that are drawn at random."""

    @property
    def total(self) -> int:
        """How many trials there will be; with a searcher, but for baselines that depend on points not proposed yet."""
        if self.tune.searcher == "none":
            return len(self.trials)  # whose seeds may be drawn at random
        missing = self.tune.num_samples - len(self.proposed)
        return len(self.trials) + max(0, missing) * len(self.seeds)

    @property
    def proposed(self) -> tuple[str, ...]:
        """The names of the points there are, in their order."""
        return tuple(dict.fromkeys(trial.point for trial in self.trials if not trial.baseline))

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of every point that a searcher proposes."""
        seeds = self.search[0].get("seed")
        return tuple(seeds["grid"]) if seeds else (make_settings(self.base, self.name).seed,)

    @property
    def metric(self) -> str | None:
        """What "best" means here; None where there is no validation split to choose by."""
        if self.tune.metric is None and all(trial.settings.val_fraction > 0 for trial in self.examples):
            return "linear/val_accuracy"
        return self.tune.metric

    @property
    def mode(self) -> str:
        """Whether more (`max`) or less (`min`) of the metric is better."""
        metric = metrics_by_name().get(self.metric or self.stop_metric)
        return self.tune.mode or (metric.better if metric is not None else None) or "max"

    @property
    def stop_metric(self) -> str:
        """What a scheduler compares trials by while they pretrain."""
        return self.tune.metric or "online/knn_val_accuracy"

    @property
    def grace_epochs(self) -> int:
        """Epochs of pretraining before a scheduler may stop a trial."""
        return self.tune.grace_epochs or make_settings(self.base, self.name).probe_every

    @property
    def longest(self) -> int:
        """Pretraining epochs of the longest trial."""
        return max(trial.settings.pretrain_epochs for trial in self.examples)

    @property
    def searched(self) -> tuple[str, ...]:
        """The settings that the search space names, the seed aside, in its order."""
        names = dict.fromkeys(name for space in self.search for name in space)
        return tuple(name for name in names if name != "seed")

    def to_dict(self) -> dict[str, Any]:
        """The sweep as a search-space file that gives it again, every default written out."""
        everywhere = set.intersection(*(set(space) for space in self.search))
        resolved = make_settings(self.base, self.name).model_dump()
        return {
            "name": self.name,
            "base": {name: value for name, value in resolved.items() if name not in everywhere},
            "search": [{name: dict(spec) for name, spec in space.items()} for space in self.search],
            "baseline": self.baseline,
            "tune": self.tune.model_dump(),
            "resources": self.resources.model_dump(),
        }


class FrozenDict(dict[str, Any]):
    """A mapping that can be hashed, so that trials can be compared as values."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))
