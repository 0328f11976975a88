"""The data classes of a sweep: how it runs, what resources a trial gets, and its trials."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from raysweep.config import About, Collapse, Settings, check_type, default_metric, make_base, metrics_by_name
from raysweep.plugins import Plugin, active
from raysweep.space.controls import written
from raysweep.space.encoder_entry import Agreement, EncoderSource, written_encoders
from raysweep.space.race_settings import Race, RaceEnd, Round
from raysweep.space.tables import count_tables


class Tune(BaseModel):
    """How the sweep is run."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    _types = field_validator("*", mode="before")(check_type)

    metric: Annotated[
        str | None,
        About(
            "Metric by which the display, the summary and a searcher choose the best point. With none it is "
            "`linear/val_accuracy`, or `label_free/embedding_rankme` for images without labels. Without a validation "
            "split no point is called best. A scheduler also compares trials by it; with none it uses "
            "`online/knn_val_accuracy`."
        ),
    ] = None
    mode: Annotated[
        Literal["max", "min"] | None,
        About("Whether a greater or a smaller `metric` is better. None means the direction that the metric declares."),
    ] = None
    scheduler: Annotated[
        Literal["fifo", "asha", "median"],
        About(
            "Rule that stops trials during pretraining. `fifo` (or `none`) stops none. `asha` stops the trials that "
            "are not among the best of a rung (Li et al. 2020, arXiv:1810.05934). `median` stops a trial whose best "
            "value is worse than the median of the running means of at least three other trials (Golovin et al. 2017, "
            "doi 10.1145/3097983.3098043)."
        ),
    ] = "fifo"
    grace_epochs: Annotated[
        int | None,
        Field(ge=1),
        About("`asha`, `median`: epochs of pretraining before a trial may be stopped. None means `probe_every`."),
    ] = None
    reduction_factor: Annotated[
        float,
        Field(gt=1),
        About(
            "`asha`: η. The rungs are at `grace_epochs` · η^k epochs, before the last epoch. About one of η trials "
            "continues after each rung."
        ),
    ] = 4.0
    searcher: Annotated[
        Literal["none", "optuna"],
        About(
            "What chooses the points. `none`: the search space alone. `optuna`: Optuna's TPE (Bergstra et al. 2011), "
            "which learns from the mean over seeds of earlier points (`pip install -e '.[optuna]'`)."
        ),
    ] = "none"
    storage: Annotated[
        str | None,
        About(
            "`optuna`: database in which the Optuna study of the sweep is kept for optuna-dashboard, such as "
            "`sqlite:///studies.db`. The study has the name of the sweep's directory. None keeps no study."
        ),
    ] = None
    num_samples: Annotated[
        int,
        Field(ge=1),
        About(
            "Number of random draws of the settings without a grid. Each draw is combined with the whole grid. With a "
            "searcher it is the number of points, each with every seed."
        ),
    ] = 1
    max_concurrent: Annotated[
        int | None,
        Field(ge=1),
        About("The largest number of trials at a time. None means as many as the resources allow."),
    ] = None
    max_failures: Annotated[
        int,
        Field(ge=0),
        About(
            "How often a trial resumes from its checkpoint after its process died or it raised an exception, before it "
            "counts as failed. `--local` never resumes a failed trial."
        ),
    ] = 3
    checkpoint_seconds: Annotated[
        float | None,
        Field(ge=0),
        About(
            "Least number of seconds between two checkpoints of a trial. None means 30, or more if checkpoints would "
            "take more than 2 % of the time."
        ),
    ] = None
    time_budget: Annotated[
        float | None,
        Field(gt=0),
        About(
            "Seconds after which the sweep saves its running trials and ends. A resume gets the same time again. None "
            "means no limit."
        ),
    ] = None
    collapse_stop: Annotated[
        int | None,
        Field(ge=1),
        About(
            "Stop a trial if its embedding is collapsed in this many evaluations in a row (`probe_every`). None means "
            "never."
        ),
    ] = None
    collapse_rankme: Annotated[
        float,
        Field(ge=0),
        About("`collapse_stop`: an embedding counts as collapsed if its RankMe (1 to its width) is below this."),
    ] = 1.5
    collapse_std: Annotated[
        float,
        Field(ge=0),
        About("`collapse_stop`: it also counts as collapsed if the mean spread of its dimensions is below this."),
    ] = 1e-4

    @field_validator("scheduler", mode="before")
    @classmethod
    def _none_is_fifo(cls, value: Any) -> Any:
        """Read `none`, the searcher that does nothing, as `fifo`, the scheduler that stops no trial."""
        return "fifo" if value in ("none", None) else value

    @property
    def collapse(self) -> Collapse | None:
        """The condition for stopping a trial whose embedding collapses; None means never."""
        if self.collapse_stop is None:
            return None
        return Collapse(self.collapse_stop, self.collapse_rankme, self.collapse_std)


class Resources(BaseModel):
    """The resources of one trial."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    _types = field_validator("*", mode="before")(check_type)

    cpu: Annotated[int, Field(ge=1), About("Processor cores and threads of each worker of a trial.")] = 1
    gpu: Annotated[float, Field(ge=0), About("GPUs of each worker of a trial; 0.25 puts four trials on one GPU.")] = 0.0
    workers: Annotated[
        int, Field(ge=1), About("Processes of one trial. Each gets a part of every batch, and `cpu` and `gpu`.")
    ] = 1

    @field_validator("gpu")
    @classmethod
    def _whole_or_part(cls, value: float) -> float:
        """Check the number of GPUs: Ray shares one GPU between trials, or gives a trial several whole ones."""
        if (value > 1 and value != int(value)) or 0 < value < 1e-4:  # Ray counts in steps of 1/10,000
            raise ValueError("must be a part of one GPU, at least 0.0001, or a whole number of them")
        return value


@dataclass(frozen=True)
class Trial:
    """One point of the sweep with one seed."""

    name: str
    """The trial's name and directory: what varies, unrounded, e.g. `alpha=1e-05,seed=0`, or `random,seed=0`."""
    point: str
    """The trial's name without the seed. Trials of one point are repeats."""
    settings: Settings
    varied: Mapping[str, Any]
    """The searched settings that have an effect, and the seed."""
    control: str = ""
    """The control that the trial is, such as `random`; empty for a point of the search."""
    source: EncoderSource | None = None
    """The encoder that the trial evaluates without pretraining; None if the trial pretrains."""
    has_plugins: bool = field(default_factory=lambda: bool(active()), compare=False, repr=False)
    """Whether plugins may declare some of its settings."""
    continues: str = field(default="", compare=False)
    """The name of the shorter trial from whose final state the trial continues; empty if from the beginning."""
    views: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """LiDAR draws views with this augmentation in place of the trial's own settings; see `views_of_points`."""

    @property
    def baseline(self) -> bool:
        """Whether the trial is a control."""
        return bool(self.control)

    def __str__(self) -> str:
        """Return the trial's name, from which Tune also makes tags."""
        return self.name

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle compactly, because Tune writes every trial to disk many times.

        With plugins every value is pickled and none is checked again, because a worker loads the plugins later.
        """
        if self.has_plugins:
            values = (self.name, self.point, self.settings, self.varied, self.control, self.source)
            return Trial, (*values, True, self.continues, self.views)
        changed = self.settings.model_dump(exclude_defaults=True)
        plain = (self.name, self.point, changed, dict(self.varied), self.control, self.source)
        return unpickled, (*plain, self.continues, self.views)


def unpickled(
    name: str,
    point: str,
    changed: dict[str, Any],
    varied: dict[str, Any],
    control: str,
    source: EncoderSource | None,
    continues: str,
    views: Mapping[str, Any],
) -> Trial:
    """Rebuild a pickled trial."""
    values = (name, point, Settings(**changed), FrozenDict(varied), control, source)
    return Trial(*values, continues=continues, views=views)


@dataclass(frozen=True)
class Proposal:
    """A point that a searcher proposes."""

    space: int
    """The number of the sub-space that the point belongs to, from 0."""
    values: Mapping[str, Any]
    """The values of the point's searched settings, without the seed."""


@dataclass(frozen=True)
class Sweep:
    """A checked search space."""

    name: str
    base: Mapping[str, Any]
    search: tuple[Mapping[str, Mapping[str, Any]], ...]
    baseline: tuple[str, ...]
    """The controls, in the order of `CONTROLS`."""
    tune: Tune
    resources: Resources
    trials: tuple[Trial, ...]
    """All trials; with a searcher, only the trials of the points proposed so far."""
    examples: tuple[Trial, ...]
    """Trials for checks before any trial starts: all trials, or with a searcher some random ones."""
    plugins: tuple[Plugin, ...] = ()
    """The plugins that declare parts of the sweep."""
    encoders: tuple[Trial, ...] = ()
    """The trials whose encoders an evaluation reads, each with its `source`; empty for a sweep that pretrains."""
    trained_search: tuple[Mapping[str, Mapping[str, Any]], ...] = ()
    """The search of the sweep that trained the encoders of an evaluation."""
    agreement: Agreement | str | None = None
    """How well the measure that chooses without labels ranked the points of the sweep that trained the encoders.

    A text says why the sweep cannot tell it. None: the sweep did not report the measure, or nothing asked for it.
    """
    missing_encoders: tuple[Trial, ...] = ()
    """The trials, without controls, of the sweep that trained the encoders, which had no encoder for the evaluation."""
    missing_trials: tuple[Trial, ...] = ()
    """The trials that the evaluation would also have if no encoder was missing."""
    race: Race | None = None
    """How the seeds race; None if every point has the same seeds. An evaluation has the race of its encoders."""
    rounds: tuple[Round, ...] = ()
    """The rounds of the race so far, after the first one. `trials` contains their trials."""
    race_end: RaceEnd = ""
    """Why the race has ended; empty while it goes on."""

    @property
    def distributions(self) -> list[tuple[str, str]]:
        """Each searched setting with its kind of distribution, such as `grid` or `uniform`, pretraining included."""
        spaces = (*self.search, *self.trained_search)
        return [(name, next(iter(spec))) for space in spaces for name, spec in space.items()]

    @property
    def evenly_drawn(self) -> frozenset[str]:
        """The settings whose values are drawn evenly from a range, so that a linear scale suits them."""
        even = {name for name, kind in self.distributions if kind in ("uniform", "randint")}
        return frozenset(even - {name for name, kind in self.distributions if kind not in ("uniform", "randint")})

    @property
    def races(self) -> bool:
        """Whether seeds may still be added to points."""
        return self.race is not None and not self.encoders and self.race_end in ("", "budget")

    @property
    def divisor(self) -> int:
        """The number by which the error of the verdicts is divided: looks times tables in a race, else 1."""
        return 1 if self.race is None else self.race.looks * count_tables(self.trials)

    @property
    def total(self) -> int:
        """The number of trials at the end; with a searcher, without controls of points that are not proposed yet."""
        if self.tune.searcher == "none":
            return len(self.trials)  # not points times seeds, because the seeds may be drawn at random
        missing = self.tune.num_samples - len(self.proposed)
        return len(self.trials) + max(0, missing) * len(self.seeds)

    @property
    def proposed(self) -> tuple[str, ...]:
        """The names of the points so far, in order."""
        return tuple(dict.fromkeys(trial.point for trial in self.trials if not trial.baseline))

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of every point that a searcher proposes."""
        seeds = self.search[0].get("seed")
        return tuple(seeds["grid"]) if seeds else (make_base(self.base, self.name).seed,)

    @property
    def metric(self) -> str | None:
        """The metric that defines "best"; None if there is none, for example without a validation split."""
        if self.tune.metric is not None:
            return self.tune.metric
        defaults = {default_metric(trial.settings) for trial in self.examples}
        return defaults.pop() if len(defaults) == 1 else None

    @property
    def mode(self) -> str:
        """Whether more (`max`) or less (`min`) of the metric is better."""
        metric = metrics_by_name().get(self.metric or self.stop_metric)
        return self.tune.mode or (metric.better if metric is not None else None) or "max"

    @property
    def stop_metric(self) -> str:
        """The metric by which a scheduler compares trials during pretraining."""
        return self.tune.metric or "online/knn_val_accuracy"

    @property
    def grace_epochs(self) -> int:
        """The number of pretraining epochs before a scheduler may stop a trial."""
        return self.tune.grace_epochs or make_base(self.base, self.name).probe_every

    @property
    def longest(self) -> int:
        """The number of pretraining epochs of the longest trial."""
        return max(trial.settings.pretrain_epochs for trial in self.examples)

    @property
    def searched(self) -> tuple[str, ...]:
        """The settings in the search space, in its order, without the seed."""
        if self.encoders:  # their trials also differ in what the pretraining varied
            names = dict.fromkeys(name for trial in self.trials if not trial.baseline for name in trial.varied)
        else:
            names = dict.fromkeys(name for space in self.search for name in space)
        return tuple(name for name in names if name != "seed")

    def to_dict(self) -> dict[str, Any]:
        """Return the sweep as a search-space file that rebuilds it, with every default written out.

        The `base` of an evaluation has only the settings that were given, because the others belong to its encoders.
        """
        everywhere = set.intersection(*(set(space) for space in self.search))
        everywhere |= {"seed"} if self.race is not None else set()
        resolved = make_base(self.base, self.name).model_dump()
        origins = [plugin.origin for plugin in self.plugins if plugin.origin]
        told = (self.trained_search, self.agreement, self.missing_encoders)
        trained = written_encoders(self.encoders, *told) if self.encoders else None
        return {
            "name": self.name,
            **({"plugins": origins} if origins else {}),
            "base": dict(self.base) if self.encoders else {n: v for n, v in resolved.items() if n not in everywhere},
            **({"seeds": self.race.model_dump()} if self.race is not None else {}),
            "search": [{name: dict(spec) for name, spec in space.items()} for space in self.search],
            "baseline": written(self.baseline),
            "tune": self.tune.model_dump(),
            "resources": self.resources.model_dump(),
            **({"encoders": trained} if trained is not None else {}),
        }


class FrozenDict(dict[str, Any]):
    """A hashable mapping, so that trials can be compared as values."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))
