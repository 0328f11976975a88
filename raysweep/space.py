"""A search-space file becomes a checked sweep: a list of finished trials. Knows nothing of Ray or torch."""

from __future__ import annotations

import datetime
import hashlib
import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator

from raysweep.config import (
    CHOICES,
    METHOD_EFFECTS,
    NUMBER,
    ONLINE,
    SETTINGS,
    WHOLE_NUMBER,
    About,
    Collapse,
    Settings,
    about,
    check_model,
    check_type,
    has_effect,
    has_metric,
    is_number,
    make_settings,
    read_number,
    shown,
    suggest,
)
from raysweep.errors import InputError

MAX_TRIALS = 100_000
EXAMPLES = 100
"""Points drawn to check a search space by, of which a searcher will propose the points."""
MAX_TEXT = 2**22  # characters of a search-space file, aliases written out; a list of 100,000 seeds has 10**6
MAX_NAME = 160  # characters; file systems stop at 255 bytes, and a checkpoint's path needs some of them
DISTRIBUTIONS = ("grid", "choice", "uniform", "loguniform", "randint")
RECORDS = ("made_by", "changed_by")
"""What a results directory's `sweep.yaml` has beside the search space."""
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


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
    mode: Annotated[Literal["max", "min"], About("Whether more or less of it is better.")] = "max"
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
        About("How often a trial whose worker died goes on from its checkpoint before it counts as failed."),
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
    return Trial(name, point, Settings(**changed), Frozen(varied), baseline)


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
    """What its trials are like, for checks before they start: all of them; with a searcher, some drawn at random."""

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


def read(path: Path) -> dict[str, Any]:
    """The search-space file at `path` as plain data; raises InputError if it is no file, no text or no YAML."""
    if path.is_dir():
        raise InputError(f"{path}: is a directory; give a search-space file (YAML)")
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_TEXT + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not a text file; give a search-space file (YAML)") from None
    except OSError as fault:
        raise InputError(f"{path}: cannot be read: {fault.strerror}") from None
    if len(text) > MAX_TEXT:
        raise InputError(f"{path}: is no search-space file: it has more than {MAX_TEXT} characters")
    raw = parse_yaml(text, str(path))
    if not isinstance(raw, dict):
        raise InputError(f"{path}: must be a mapping such as 'base: ...' and 'search: ...', not {kind(raw)}")
    return raw


WHOLE_TAG, REAL_TAG = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
NUMBER_TAGS = (
    (WHOLE_TAG, re.compile(rf"(?:{WHOLE_NUMBER.pattern})\Z"), "+-0123456789"),
    (REAL_TAG, re.compile(rf"(?:{NUMBER.pattern}|[+-]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"), "+-.0123456789"),
)
"""What is a number, and the characters that it can begin with."""


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader, made stricter.

    It refuses a key that stands twice (PyYAML takes the last one) and aliases that would fill the memory. Numbers
    are decimal: PyYAML, which follows YAML 1.1, reads `010` as 8, `1:30` as 90 and `1e-5` as text.
    """

    def get_single_node(self) -> yaml.Node | None:
        """The document; refused where it is endless, or too long, with every alias written out."""
        root: yaml.Node | None = super().get_single_node()
        if root is not None:
            written_out(root, {})
        return root

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """A number, also one that is marked as such (`!!int 0x10`) but is not decimal, which is refused."""
        text = str(self.construct_scalar(node))
        if text.lower().lstrip("+-") in (".inf", ".nan"):
            return float(text.replace(".", ""))
        try:
            return read_number(text)
        except ValueError as fault:
            raise yaml.constructor.ConstructorError(None, None, f"{text!r} {fault}", node.start_mark) from None

    def construct_yaml_timestamp(self, node: yaml.ScalarNode) -> datetime.date:
        """A date or a time; one that no calendar has, such as 2024-02-30, is refused with its place."""
        try:
            date: datetime.date = super().construct_yaml_timestamp(node)
        except ValueError as fault:
            problem = f"{node.value!r} is no date ({fault}); put it in quotes if it is text"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None
        return date

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """The mapping of `node`; a key that stands in it twice is an error."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key.start_mark)
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which also puts text in quotes that only `Loader` would read as a number, such as `009`."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (WHOLE_TAG, REAL_TAG)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for tag, pattern, first in NUMBER_TAGS:
    Loader.add_implicit_resolver(tag, pattern, list(first))
    Loader.add_constructor(tag, Loader.construct_number)
    Dumper.add_implicit_resolver(tag, pattern, list(first))
Loader.add_constructor("tag:yaml.org,2002:timestamp", Loader.construct_yaml_timestamp)


def to_yaml(content: Mapping[str, Any], ascii_only: bool = False) -> str:
    """Plain data as YAML that `read` gives back exactly; with `ascii_only`, other characters are escaped."""
    text: str = yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=not ascii_only)
    return text


def written_out(node: yaml.Node, lengths: dict[int, int]) -> int:
    """Characters and nodes of `node` were every alias in it written out; raises where they are too many, or endless.

    `lengths` keeps what is known, so that a node is counted once, however many aliases stand for it; 0 while counting.
    """
    if lengths.get(id(node)) == 0:
        raise yaml.constructor.ConstructorError(None, None, "an alias inside of what it stands for", node.start_mark)
    if id(node) not in lengths:
        lengths[id(node)] = 0
        if isinstance(node, yaml.ScalarNode):
            total = 1 + len(node.value)
        else:
            pairs = isinstance(node, yaml.MappingNode)
            parts = itertools.chain.from_iterable(node.value) if pairs else node.value
            total = 1 + sum(written_out(part, lengths) for part in parts)
        if total > 2 * MAX_TEXT:
            raise yaml.constructor.ConstructorError(None, None, "aliases that stand for too much", node.start_mark)
        lengths[id(node)] = total
    return lengths[id(node)]


def parse_yaml(text: str, where: str) -> Any:
    """`text` as YAML; raises InputError with line and column."""
    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as fault:
        mark = fault.problem_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"{where}: not valid YAML{place}: {fault.problem}") from None
    except Exception as fault:  # what PyYAML's constructors raise for `!!bool maybe` and the like is anything
        reason = (str(fault).splitlines() or [type(fault).__name__])[0]
        raise InputError(f"{where}: not valid YAML: {reason}") from None


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """`["alpha=0.1", "seed=[0,1]"]` as `{"alpha": 0.1, "seed": [0, 1]}`."""
    texts: dict[str, str] = {}
    for assignment in assignments:
        name, sign, text = assignment.partition("=")
        name = name.strip()
        if not sign or not name:
            raise InputError(f"--set {assignment}: expected NAME=VALUE, such as alpha=0.1 or seed=[0,1,2]")
        if name in texts:
            raise InputError(f"--set {name} is given twice, as {texts[name]!r} and {text!r}; give it once")
        texts[name] = text
    return {name: parse_value(name, text, f"--set {name}") for name, text in texts.items()}


def parse_value(name: str, text: str, where: str) -> Any:
    """What the text given for a setting on the command line means: YAML, or the text itself where text is expected.

    `folder:/a #1` would be a mapping or lose its comment as YAML. Nothing at all, as from a shell variable that is not
    set, raises InputError: it would count as none.
    """
    if not text.strip():
        raise InputError(f"{where}: the value is empty")
    expects_text = name in SETTINGS and not is_number(name) and Settings.model_fields[name].annotation is not bool
    is_yaml = text.lstrip().startswith(("[", "{") if name in SETTINGS and about(name).composed else "[")
    return parse_yaml(text, where) if is_yaml or not expects_text else text


def build(raw: Mapping[str, Any], overrides: Mapping[str, Any], where: str) -> Sweep:
    """Check a search space and expand it.

    Args:
        raw: the file's content.
        overrides: settings by name (a list becomes a grid), `baseline`, and `tune.NAME` or `resources.NAME`.
        where: opens every message.

    Raises:
        InputError: one line that names the key, what was given and what is valid.
    """
    valid = ("name", "base", "search", "baseline", "tune", "resources", *RECORDS)
    for key in raw:
        if key not in valid:
            hint = (
                f"; it is a setting: put it under base or search, as 'base: {{{key}: ...}}'" if key in SETTINGS else ""
            )
            raise InputError(f"{where}: unknown key {key!r}{hint or suggest(key, valid[: -len(RECORDS)])}")
    name = raw.get("name", "sweep")
    check_name(name, f"{where}: name")
    base = mapping(raw.get("base"), f"{where}: base")
    spaces = [dict(space) for space in subspaces(raw.get("search"), f"{where}: search")]
    sections = {
        "tune": mapping(raw.get("tune"), f"{where}: tune"),
        "resources": mapping(raw.get("resources"), f"{where}: resources"),
    }
    baseline = raw.get("baseline", False)

    for key, value in overrides.items():
        section, dot, rest = key.partition(".")
        if key == "baseline":
            baseline = value
        elif dot and section in sections:
            sections[section][rest] = value
        elif key not in SETTINGS:
            hint = "; a sweep is named by --name" if key == "name" else suggest(key, SETTINGS)
            raise InputError(f"--set {key}: unknown setting{hint}")
        elif isinstance(value, list):
            base.pop(key, None)
            for space in spaces:
                space[key] = {"grid": value}
        else:
            base[key] = value
            for space in spaces:
                space.pop(key, None)

    if not isinstance(baseline, bool):
        raise InputError(f"{where}: baseline: must be true or false, not {baseline!r}")
    for key, value in base.items():
        if isinstance(value, (list, dict)) and key in SETTINGS and not about(key).composed:
            raise InputError(f"{where}: base.{key}: one value expected; to sweep it, write it under search")
    tune = check_model(Tune, sections["tune"], f"{where}: tune")
    resources = check_model(Resources, sections["resources"], f"{where}: resources")
    is_layerwise = any(one != "none" for space in (base, *spaces) for one in listed(space.get("layerwise", "none")))
    if is_layerwise and not any("per_layer" in space for space in (base, *spaces)):
        base["per_layer"] = True  # for all trials, so that they and the random encoder are measured alike
    resolved = make_settings(base, f"{where}: base" if raw.get("base") else where)
    search = tuple(
        {key: check_distribution(key, spec, resolved, f"{where}: search.{key}") for key, spec in space.items()}
        for space in spaces
    )
    if tune.searcher != "none":
        check_searcher(tune, search, where)
    samples = EXAMPLES if tune.searcher != "none" else tune.num_samples
    examples = tuple(expand(resolved, search, samples, baseline, where))
    changed = [key for key in base if getattr(resolved, key) != Settings.model_fields[key].default]
    check_meant([*overrides, *changed], examples, where)
    check_workers(resources, examples, where)
    trials = examples
    if tune.searcher != "none":  # a random encoder that all its points share is no question of what it proposes
        baselines = [trial for trial in examples if trial.baseline]
        trials = tuple(baselines) if len({trial.point for trial in baselines}) == 1 else ()
    sweep = Sweep(name, base, search, baseline, tune, resources, trials, examples)
    check_metric(sweep, where)
    check_scheduler(sweep, where)
    watched = any(trial.settings.probe_every and trial.settings.usl_epochs for trial in examples)
    if tune.collapse_stop is not None and not watched:
        raise InputError(f"{where}: tune.collapse_stop: nothing is evaluated while pretraining (probe_every: 0)")
    return sweep


def check_workers(resources: Resources, trials: Iterable[Trial], where: str) -> None:
    """Raises InputError if a trial cannot be divided among its workers."""
    if resources.workers == 1:
        return
    if resources.gpu != int(resources.gpu):
        raise InputError(
            f"{where}: resources.gpu: {resources.gpu:g} for each of {resources.workers} workers: these need whole GPUs"
        )
    for trial in trials:
        settings = trial.settings
        if settings.encoder == "resnet18" and settings.usl_epochs and not resources.gpu:
            raise InputError(
                f"{where}: resources.workers: resnet18 has batch norm, which PyTorch synchronises between GPUs only; "
                f"use workers: 1, or gpu: 1"
            )
        if settings.batch_size < resources.workers:
            raise InputError(
                f"{where}: resources.workers: batch_size {settings.batch_size} cannot be divided among "
                f"{resources.workers} workers"
            )


def extend(sweep: Sweep, by: Sweep, where: str) -> Sweep:
    """A sweep with the points that another one adds to it.

    The trials are those of `by`, in its order, then those that it no longer names; a baseline stays. Settings that
    change no score, `tune` and `resources` are as `by` has them.

    Args:
        sweep: the one that was begun.
        by: the one that is asked for now.
        where: opens every message.

    Raises:
        InputError: a setting changed, or moved between `base` and `search`, so that the trials would not be one sweep.
    """
    was, now = make_settings(sweep.base, where), make_settings(by.base, where)
    begun, search = with_seed(drawn(sweep), was.seed), with_seed(by.search, now.seed)
    base = now.model_dump()
    for name in SETTINGS:
        if not about(name).search:
            continue
        before, after = [name in space for space in begun], [name in space for space in search]
        if all(before) and not any(after):
            raise InputError(
                f"{where}: {name}: is no longer under search, as it was when the sweep was begun; keep it there, as "
                f"'{name}: {{grid: [{getattr(now, name)}]}}', or start a new sweep"
            )
        if all(after) and not any(before):
            raise InputError(
                f"{where}: {name}: is under search now, but when the sweep was begun it was {getattr(was, name)!r} for "
                f"all trials, and their names do not say it; start a new sweep"
            )
        if not all(before):  # where every sub-space searches it, what base says is never read
            base[name] = getattr(was, name)
            if not all(after) and base[name] != getattr(now, name):
                raise InputError(
                    f"{where}: {name}: is {getattr(now, name)!r}, but the sweep was begun with {base[name]!r}; start a "
                    f"new sweep for other settings"
                )
    if sweep.tune.searcher != "none" or by.tune.searcher != "none":
        # Its points lie in the results directory, and each counts by its sub-space.
        for name, before_, after_ in (
            ("tune.searcher", sweep.tune.searcher, by.tune.searcher),
            ("search", sweep.to_dict()["search"], by.to_dict()["search"]),
        ):
            if before_ != after_:
                raise InputError(f"{where}: {name}: a sweep whose points are proposed keeps it; start a new sweep")
        search = list(by.search)
    named = {trial.name for trial in by.trials}
    for space in begun if by.tune.searcher == "none" else ():
        if any(trial.name not in named for trial in expand(was, (space,), 1, False, where)):
            search.append(space)
    baseline = sweep.baseline or by.baseline
    raw = {**by.to_dict(), "name": sweep.name, "base": base, "search": search, "baseline": baseline}
    return build(raw, {}, where)


def with_seed(spaces: Iterable[Mapping[str, Mapping[str, Any]]], seed: int) -> list[Mapping[str, Mapping[str, Any]]]:
    """The sub-spaces, each saying the seed, which every trial's name says: so it may move in and out of `base`."""
    return [space if "seed" in space else {**space, "seed": {"grid": [seed]}} for space in spaces]


def drawn(sweep: Sweep) -> Iterator[Mapping[str, Mapping[str, Any]]]:
    """The sub-spaces as grids alone: one with settings that are drawn at random gives one for each draw."""
    for space in sweep.search:
        random_ones = any("grid" not in spec for spec in space.values())
        for sample in range(sweep.tune.num_samples if random_ones else 1):
            specs = {name: next(iter(spec.items())) for name, spec in space.items()}
            yield {
                name: {"grid": values if how == "grid" else [draw(name, how, values, sample)]}
                for name, (how, values) in specs.items()
            }


def listed(spec: Any) -> list[Any]:
    """The values that an unchecked entry of `search` or `base` lists."""
    if isinstance(spec, dict):
        spec = next(iter(spec.values()), None)
    return spec if isinstance(spec, list) else [spec]


def check_meant(given: Iterable[str], trials: Sequence[Trial], where: str) -> None:
    """Raises InputError for a loss's setting that was given, but that no trial's method reads."""
    pretrained = [trial.settings for trial in trials if trial.settings.usl_epochs and not trial.baseline]
    for name in given:
        of_a_method = name in SETTINGS and about(name).effect in METHOD_EFFECTS
        if of_a_method and pretrained and not any(has_effect(name, settings) for settings in pretrained):
            raise InputError(
                f"{where}: {name}: has no effect in any trial (usl_type: {pretrained[0].usl_type}); it needs "
                f"{about(name).effect.words.replace('`', '')}"
            )


def check_name(name: object, where: str) -> None:
    """A sweep's name is one plain directory name."""
    if name is None or isinstance(name, (bool, int, float, datetime.date)):
        given = "nothing" if name is None else f"{kind(name)} ({shown(name)})"
        raise InputError(f'{where}: must be text, not {given}; put it in quotes, such as name: "12"')
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InputError(f"{where}: {name!r} cannot name a directory: use letters, digits, '-', '_' and '.', no '/'")


def check_metric(sweep: Sweep, where: str) -> None:
    """The metric to choose by is one that every trial has, and none that has seen the test split."""
    metric = sweep.tune.metric
    if metric is None:
        if sweep.tune.mode == "min":
            raise InputError(f"{where}: tune.mode: min needs a tune.metric of which less is better")
        if sweep.metric is None and sweep.tune.searcher != "none":
            raise InputError(
                f"{where}: tune.searcher: {sweep.tune.searcher} chooses by validation images, and val_fraction is 0; "
                "set it above 0"
            )
        return
    if metric not in CHOICES:
        reason = " (test images are not for choosing)" if "test" in metric or metric.startswith("kmeans/") else ""
        hint = suggest(metric.replace("test", "val"), CHOICES)
        raise InputError(f"{where}: tune.metric: {metric!r} cannot be chosen by{reason}{hint}")
    for trial in sweep.examples:
        if not trial.baseline and not has_metric(metric, trial.settings):
            of = trial.settings
            raise InputError(
                f"{where}: tune.metric: {trial.name} does not report {metric!r} (usl_type: {of.usl_type}, usl_epochs: "
                f"{of.usl_epochs}, probe_every: {of.probe_every}, val_fraction: {of.val_fraction:g}, per_layer: "
                f"{of.per_layer}, encoder: {of.encoder})"
            )


def check_searcher(tune: Tune, search: tuple[Mapping[str, Mapping[str, Any]], ...], where: str) -> None:
    """Raises InputError where a searcher has nothing to search, or could not compare what it finds."""
    who = f"tune.searcher: {tune.searcher}"
    if tune.num_samples == 1:
        raise InputError(f"{where}: {who} learns from point to point: say how many by tune.num_samples, above 1")
    seeds = [space.get("seed", {"grid": []}) for space in search]
    if any("grid" not in spec for spec in seeds) or any(spec != seeds[0] for spec in seeds):
        raise InputError(f"{where}: {who} scores a point by its mean over seeds: give one grid of seeds for all points")
    for space in search:
        for name, spec in space.items():
            if name != "seed" and len(spec.get("grid", [])) > 1:
                raise InputError(
                    f"{where}: search.{name}: a grid is run as a whole, but {who} chooses; write {{choice: "
                    f"{spec['grid']}}}, or a range"
                )
    check_comparable(search, who, where)
    points = sum(math.prod(distinct(spec) for name, spec in space.items() if name != "seed") for space in search)
    if points < tune.num_samples:
        raise InputError(
            f"{where}: {who} cannot propose tune.num_samples: {tune.num_samples} points of the {points} there are; "
            "search a range (uniform, loguniform, randint) or more choices, or run them all as a grid"
        )
    trials = tune.num_samples * len(seeds[0]["grid"] or [0])
    if trials > MAX_TRIALS:
        raise InputError(f"{where}: search: {trials} trials; at most {MAX_TRIALS} in one sweep")


def propose(sweep: Sweep, point: Proposal) -> Sweep | None:
    """A sweep with one more point: its trials, seed by seed, and the baselines that are new with it.

    None where the point adds nothing: it is none of the search space, it was proposed before, or one of its
    settings has no effect in it.
    """
    if not 0 <= point.space < len(sweep.search):
        return None
    searched = {name: spec for name, spec in sweep.search[point.space].items() if name != "seed"}
    if set(point.values) != set(searched) or not all(holds(searched[n], v) for n, v in point.values.items()):
        return None
    base = make_settings(sweep.base, sweep.name)
    values = {name: point.values[name] for name in searched}
    try:
        new = [make_trial(base, {**values, "seed": seed}, sweep.name) for seed in sweep.seeds]
    except InputError:
        return None
    if new[0].point in sweep.proposed:
        return None
    baselines = [trial for trial in sweep.trials if trial.baseline]
    if sweep.baseline:
        baselines = list(dict.fromkeys([*baselines, *map(make_baseline, new)]))
    points = [trial for trial in sweep.trials if not trial.baseline]
    return replace(sweep, trials=(*baselines, *points, *new))


def holds(spec: Mapping[str, Any], value: Any) -> bool:
    """Whether an entry of `search` has the value."""
    how, values = next(iter(spec.items()))
    if how in ("grid", "choice"):
        return value in values
    if isinstance(value, bool) or not isinstance(value, int if how == "randint" else float):
        return False
    return bool(values[0] <= value <= values[1]) and (how != "randint" or value < values[1])


def distinct(spec: Mapping[str, Any]) -> float:
    """How many values an entry of `search` has."""
    how, values = next(iter(spec.items()))
    if how in ("grid", "choice"):
        return len(values)
    return values[1] - values[0] if how == "randint" else math.inf


def check_comparable(search: tuple[Mapping[str, Mapping[str, Any]], ...], who: str, where: str) -> None:
    """Raises InputError where points would be compared that are not evaluated alike."""
    for name in dict.fromkeys(name for space in search for name in space):
        values = {repr(space.get(name)) for space in search}
        varies = len(values) > 1 or any(distinct(space[name]) > 1 for space in search)
        if varies and (about(name).protocol or name in ("dataset", "image_size")):
            raise InputError(
                f"{where}: search.{name}: {who} compares scores, and those of different {name} are not comparable; "
                "leave one of the two out"
            )


def check_scheduler(sweep: Sweep, where: str) -> None:
    """Raises InputError where a scheduler could stop nothing, or would compare what is not comparable."""
    tune, who = sweep.tune, f"tune.scheduler: {sweep.tune.scheduler}"
    for name, scheduler in (("grace_epochs", ("asha", "median")), ("reduction_factor", ("asha",))):
        if getattr(tune, name) != Tune.model_fields[name].default and tune.scheduler not in scheduler:
            raise InputError(f"{where}: tune.{name}: has no effect with {who}; it needs {' or '.join(scheduler)}")
    if tune.scheduler == "fifo":
        return
    pretrained = [trial for trial in sweep.examples if trial.settings.usl_epochs]
    if not pretrained:
        raise InputError(f"{where}: {who} stops trials while they pretrain, and with usl_epochs: 0 none does")
    metric, of = sweep.stop_metric, pretrained[0].settings
    if metric not in ONLINE:
        raise InputError(
            f"{where}: {who} needs a tune.metric that is reported while pretraining, and {metric!r} is not; leave it "
            f"out (online/knn_val_accuracy), or valid: {', '.join(ONLINE)}"
        )
    if not of.probe_every:
        raise InputError(
            f"{where}: {who} goes by what is evaluated while pretraining; probe_every: 0 evaluates nothing"
        )
    lacks = next((trial for trial in pretrained if not has_metric(metric, trial.settings)), None)
    if lacks is not None:
        raise InputError(
            f"{where}: {who} goes by {metric}, which {lacks.name} does not report (usl_type: {lacks.settings.usl_type}"
            f", val_fraction: {lacks.settings.val_fraction:g})"
        )
    check_comparable(sweep.search, who, where)
    # Layer by layer, the same epoch is another stage where the stages are not equally long.
    schedules = {
        (trial.settings.layerwise, trial.settings.usl_epochs if trial.settings.layerwise == "greedy" else None)
        for trial in pretrained
    }
    if len(schedules) > 1:
        raise InputError(
            f"{where}: {who} compares trials after equally many epochs, which mean different things layer by layer; "
            "sweep one layerwise alone, greedy with one usl_epochs"
        )
    first = math.ceil(sweep.grace_epochs / of.probe_every) * of.probe_every
    if first >= sweep.longest:
        raise InputError(
            f"{where}: {who} could stop nothing: the first evaluation after grace_epochs: {sweep.grace_epochs} is at "
            f"epoch {min(first, sweep.longest)} of {sweep.longest}; lower probe_every: {of.probe_every} or grace_epochs"
        )


def mapping(value: Any, where: str) -> dict[str, Any]:
    """`value` as a mapping with string keys; nothing is the empty one."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{where}: must be a mapping 'name: value', not {kind(value)}")
    for key in value:
        if not isinstance(key, str):
            raise InputError(f"{where}: the key {key!r} is not a name")
    return dict(value)


def subspaces(value: Any, where: str) -> list[dict[str, Any]]:
    """The sub-spaces of `search`: a mapping is the only one of them, nothing is one without settings."""
    if isinstance(value, list):
        if not value:
            raise InputError(f"{where}: the list of sub-spaces is empty")
        return [mapping(space, f"{where}[{number}]") for number, space in enumerate(value)]
    return [mapping(value, where)]


def kind(value: object) -> str:
    """The YAML word for what `value` is."""
    words = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    words |= {datetime.date: "a date", datetime.datetime: "a time"}
    return "nothing" if value is None else words.get(type(value), type(value).__name__)


def check_distribution(name: str, spec: Any, base: Settings, where: str) -> dict[str, Any]:
    """One entry of `search`, checked: `{distribution: values}`; a plain list is a grid, a plain value a grid of one."""
    if name not in SETTINGS:
        raise InputError(f"{where}: unknown setting{suggest(name, SETTINGS)}")
    if not about(name).search:
        raise InputError(f"{where}: {name} cannot be swept (it changes no score); put it under base")
    if not isinstance(spec, dict):
        spec = {"grid": spec if isinstance(spec, list) else [spec]}
    if len(spec) != 1:
        raise InputError(f"{where}: give one of {', '.join(DISTRIBUTIONS)}, such as {{grid: [1, 2, 3]}}")
    how, values = next(iter(spec.items()))
    if how not in DISTRIBUTIONS:
        raise InputError(f"{where}: unknown distribution {how!r}{suggest(how, DISTRIBUTIONS)}")
    if not isinstance(values, list):
        raise InputError(f"{where}: {how}: a list expected, not {values!r}")

    checked = [getattr(make_settings({**base.model_dump(), name: value}, where), name) for value in values]
    if how in ("grid", "choice"):
        if not checked:
            raise InputError(f"{where}: {how}: the list is empty")
        twice = [value for value, count in Counter(checked).items() if count > 1]
        if twice:
            raise InputError(f"{where}: {how}: {twice[0]!r} stands there twice, however it is written")
        return {how: checked}
    if len(checked) != 2 or None in checked or not is_number(name):
        raise InputError(f"{where}: {how}: needs a number setting and two bounds [low, high]")
    if checked[0] >= checked[1]:
        raise InputError(f"{where}: {how}: low must be below high, not [{checked[0]}, {checked[1]}]")
    whole = isinstance(checked[0], int)
    if whole != (how == "randint"):
        raise InputError(f"{where}: {how}: {name} is {'a whole' if whole else 'a real'} number; use "
                         f"{'randint' if whole else 'uniform or loguniform'}")  # fmt: skip
    if how == "loguniform" and checked[0] <= 0:
        raise InputError(f"{where}: loguniform: low must be above 0, not {checked[0]}")
    return {how: checked}


def draw(name: str, how: str, values: list[Any], sample: int) -> Any:
    """The `sample`-th draw of a setting: fixed by its name and number alone.

    So all points of a grid share their draws, all seeds do, and more samples extend a sweep instead of changing it.
    """
    source = random.Random(f"{name}/{sample}")
    if how == "choice":
        return source.choice(values)
    low, high = values
    if how == "randint":
        return source.randrange(low, high)
    if how == "uniform":
        return source.uniform(low, high)
    return min(max(math.exp(source.uniform(math.log(low), math.log(high))), low), high)


def expand(
    base: Settings, search: tuple[Mapping[str, Mapping[str, Any]], ...], samples: int, baseline: bool, where: str
) -> Iterator[Trial]:
    """All trials: the baseline first, then point by point, the seeds of a point side by side.

    A trial that several sub-spaces name counts once.
    """
    trials: list[Trial] = []
    seen: dict[Settings, str] = {}  # by what is computed: settings without effect do not tell trials apart
    if samples > 1 and all("grid" in spec for space in search for spec in space.values()):
        raise InputError(f"{where}: tune.num_samples: {samples} has no effect: nothing is drawn at random")
    grids = [[len(spec["grid"]) for spec in space.values() if "grid" in spec] for space in search]
    count = sum(
        math.prod(of) * (samples if len(of) < len(space) else 1) for of, space in zip(grids, search, strict=True)
    )
    if count > MAX_TRIALS:
        raise InputError(f"{where}: search: {count} trials; at most {MAX_TRIALS} in one sweep")
    for space in search:
        names = sorted(space, key=lambda name: name == "seed")  # the seed last
        random_ones = any("grid" not in space[name] for name in names)
        for sample in range(samples if random_ones else 1):
            axes = []
            for name in names:
                how, values = next(iter(space[name].items()))
                axes.append(values if how == "grid" else [draw(name, how, values, sample)])
            for combination in itertools.product(*axes):
                varied = dict(zip(names, combination, strict=True))
                trial = make_trial(base, varied, where)
                key = canonical(trial.settings)
                if seen.get(key) == trial.name:  # a choice drawn again, or sub-spaces that overlap
                    continue
                if key in seen:
                    raise InputError(f"{where}: search: {trial.name} is the same trial as {seen[key]}")
                seen[key] = trial.name
                trials.append(trial)
    if baseline:
        for random_one in dict.fromkeys(make_baseline(trial) for trial in trials):
            if random_one.settings in seen:
                same = seen[random_one.settings]
                raise InputError(f"{where}: search: {same} is what baseline: true adds; leave one of the two out")
            yield random_one
    yield from trials


def canonical(settings: Settings) -> Settings:
    """The settings with every one that has no effect at its default: equal for experiments that compute the same."""
    plain = Settings().model_dump()
    update = {name: plain[name] for name in SETTINGS if not has_effect(name, settings)}
    return settings.model_copy(update={**update, "probe_dataset": settings.probes})


def make_trial(base: Settings, varied: dict[str, Any], where: str) -> Trial:
    """The trial with `varied` over `base`; every searched setting must have an effect in it."""
    settings = make_settings({**base.model_dump(), **varied}, where)
    varied = {**{name: value for name, value in varied.items() if name != "seed"}, "seed": settings.seed}
    for name in varied:
        if not has_effect(name, settings):
            needs = "usl_epochs > 0" if not settings.usl_epochs else about(name).effect.words.replace("`", "")
            raise InputError(
                f"{where}: search.{name}: has no effect in {trial_name(varied)} (usl_type: {settings.usl_type}, "
                f"usl_epochs: {settings.usl_epochs}); it needs {needs}: give such points a sub-space of their own"
            )
    return Trial(trial_name(varied), point_name(varied), settings, Frozen(varied))


def make_baseline(trial: Trial) -> Trial:
    """The random encoder under the trial's evaluation: pretraining left out, and what varies only there with it."""
    settings = trial.settings.model_copy(update={"usl_epochs": 0})
    kept = [name for name in SETTINGS if name in trial.varied and name != "usl_epochs" and has_effect(name, settings)]
    varied = {name: trial.varied[name] for name in kept}
    settings = canonical(settings)
    rest = {name: value for name, value in varied.items() if name != "seed"}
    point = ",".join(["random", *([point_name(rest)] if rest else [])])
    name = shorten(f"{point},seed={settings.seed}")
    return Trial(name, shorten(point), settings, Frozen(varied), baseline=True)


class Frozen(dict[str, Any]):
    """A mapping that can be hashed, so that trials can be compared as values."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


def trial_name(varied: Mapping[str, Any]) -> str:
    """`alpha=1e-05,seed=0`: floats as `repr` has them, exact; unsafe characters percent-encoded; long names hashed."""
    # A path whose bytes are no text holds surrogates.
    values = {name: quote(str(value), safe="+", errors="surrogatepass") for name, value in varied.items()}
    return shorten(",".join(f"{name}={value}" for name, value in values.items()))


def point_name(varied: Mapping[str, Any]) -> str:
    """The same without the seed; `default` where nothing else varies."""
    return trial_name({name: value for name, value in varied.items() if name != "seed"}) or "default"


def shorten(name: str) -> str:
    """A name too long for a file system keeps its start and a hash of the whole."""
    if len(name) <= MAX_NAME:
        return name
    return f"{name[: MAX_NAME - 20]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
