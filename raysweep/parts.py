"""Parts of an experiment: encoders, heads, policies, losses, methods, datasets and probes.

A part is a function or a class that declares itself with the decorator of its kind. Its keyword-only parameters, with
their types, ranges, defaults and descriptions, are settings of an experiment::

    @loss
    def nt_xent(z1, z2, *, temperature: Annotated[float, Field(gt=0), "Temperature τ."] = 0.5):
        '''Normalised temperature-scaled cross entropy.'''

From the tables of parts follow the flags of the command line, the checks of a search space, the settings that have an
effect, the evaluation protocol, TensorBoard's hyperparameters, the metrics and the reference page. A module that
declares parts must not import torch at its top level: it is read to print the help of a command.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_origin, overload

if TYPE_CHECKING:
    from raysweep.config.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Condition:
    """When a setting has an effect: in words, for messages and docs, and as a test on the settings."""

    words: str
    holds: Callable[[Settings], bool]

    def __and__(self, other: Condition) -> Condition:
        """The condition that both hold."""
        return Condition(f"{self.words} and {other.words}", lambda s: self.holds(s) and other.holds(s))


@dataclass(frozen=True)
class Chooses:
    """Marks a parameter whose value is the name of a part of another kind, such as the embedding loss of a method."""

    kind: str


@dataclass(frozen=True)
class FeatureLayer:
    """Marks a parameter whose value is the name of a layer of the encoder."""


@dataclass(frozen=True)
class Remark:
    """Marks a parameter that differs from the others of its kind in how a sweep treats it."""

    searchable: bool = True
    """Whether it may be swept. False: it changes no score."""
    structured: bool = False
    """Whether a list or a mapping is one value of the parameter."""
    may_be_unused: bool = False
    """Whether it may be given to a sweep in which no trial reads it."""
    protocol: bool = True
    """For a parameter of a probe: whether scores that differ in it cannot be compared."""


@dataclass(frozen=True)
class Parameter:
    """A setting that a part declares."""

    name: str
    annotation: Any
    """`Annotated[...]`, from which pydantic checks values."""
    default: Any
    text: str
    condition: Condition | None = None
    """What must hold, besides that the part is in use, for the parameter to have an effect."""
    chooses: str | None = None
    """The kind of the part that its value names."""
    is_layer: bool = False
    """Whether its value names a layer of the encoder."""
    remark: Remark = Remark()

    @property
    def declaration(self) -> tuple[Any, Any, str]:
        """What two parts must agree on that declare a parameter of the same name."""
        return self.annotation, self.default, self.text


@dataclass(frozen=True)
class Metric:
    """A metric that a part yields."""

    text: str
    better: Literal["max", "min"] | None = None
    """Whether more or less is better; None: neither."""
    lowest: float = 0.0
    highest: float = float("inf")
    uses_test: bool = False
    """Whether it is computed from the test split, so that nothing may be chosen by it."""
    is_diagnosis: bool = False
    """Whether it only describes how a trial went, so that nothing may be chosen by it."""
    is_reported: Callable[[Settings], bool] | None = None
    """Whether a trial with these settings, in which the part is in use, reports it; None: always."""


@dataclass(frozen=True)
class Part:
    """One entry of a table."""

    kind: str
    name: str
    function: Callable[..., Any]
    text: str
    """The first line of the docstring."""
    parameters: Mapping[str, Parameter]
    declared_metrics: Mapping[str, Metric] | Callable[[], Mapping[str, Metric]] = field(default_factory=dict)
    traits: Mapping[str, Any] = field(default_factory=dict)
    """What the part can do, such as `views` of a method or `batch_norm` of an encoder."""

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Every metric that the part can yield, by name."""
        return self.declared_metrics() if callable(self.declared_metrics) else self.declared_metrics

    def arguments(self, settings: Settings) -> dict[str, Any]:
        """The keyword arguments of the part under these settings.

        Where a parameter chooses another part, its argument is that part's function, with its own arguments filled in.
        """
        values = {name: getattr(settings, name) for name in self.parameters}
        for name, parameter in self.parameters.items():
            if parameter.chooses is not None:
                chosen = TABLES[parameter.chooses][values[name]]
                values[name] = partial(chosen.function, **chosen.arguments(settings))
        return values


class Table(Mapping[str, Part]):
    """The parts of one kind, by name, in the order in which they were declared.

    Args:
        kind: what a part is, in one word.
        modules: the modules that declare the built-in parts. They lie above this one, so they are imported by name
            when the table is first read.
        traits: the traits that a part of this kind may have, with their defaults.
    """

    def __init__(self, kind: str, modules: tuple[str, ...], **traits: Any) -> None:
        self.kind, self.modules, self.traits = kind, modules, traits
        self._parts: dict[str, Part] = {}
        self._is_complete = False

    def __getitem__(self, name: str) -> Part:
        return self._complete()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._complete())

    def __len__(self) -> int:
        return len(self._complete())

    @overload
    def __call__(self, function: F) -> F: ...

    @overload
    def __call__(
        self,
        function: None = None,
        *,
        name: str | None = None,
        metrics: Mapping[str, Metric] | Callable[[], Mapping[str, Metric]] | None = None,
        **traits: Any,
    ) -> Callable[[F], F]: ...

    def __call__(
        self,
        function: Any = None,
        *,
        name: str | None = None,
        metrics: Mapping[str, Metric] | Callable[[], Mapping[str, Metric]] | None = None,
        **traits: Any,
    ) -> Any:
        """Decorate a function or a class: it becomes an entry of this table, and stays as it is.

        Args:
            function: the part, where the decorator is used without arguments.
            name: the part's name in settings; None: the name of the function.
            metrics: the metrics that it yields, by name, or a function that gives them.
            traits: see the table of the kind.

        Raises:
            ValueError: the declaration is faulty, or the name is taken; the message says what is wrong.
        """
        if function is None:
            return lambda given: self(given, name=name, metrics=metrics, **traits)
        unknown = [trait for trait in traits if trait not in self.traits]
        if unknown:
            raise ValueError(f"{self.kind} {function.__name__}: unknown trait {unknown[0]!r}")
        part = Part(
            kind=self.kind,
            name=name or function.__name__,
            function=function,
            text=(inspect.getdoc(function) or "").partition("\n")[0],
            parameters=parameters_of(function, self.kind),
            declared_metrics=metrics or {},
            traits={**self.traits, **traits},
        )
        if part.name in self._parts:
            raise ValueError(f"{self.kind} {part.name}: there is one of that name already")
        self._parts[part.name] = part
        for changed in watchers:
            changed()
        return function

    def _complete(self) -> dict[str, Part]:
        """The parts, after the built-in ones have declared themselves."""
        if not self._is_complete:
            self._is_complete = True
            for module in self.modules:
                import_module(module)
        return self._parts


watchers: list[Callable[[], None]] = []
"""Called after each declaration."""

encoder = Table(
    "encoder", ("raysweep.models.encoders",), blocks=0, layers=(), batch_norm=False, trains=True, takes_dim=False
)
"""`(channels, image_size, *, …)` gives an `nn.Module`: images (B, C, H, W) in [0, 1] -> features (B, D).

`blocks` is the number of blocks that can be trained one by one, `layers` the names of the layers that probes can read
beside `trunk` and `embedding`, and `batch_norm` says whether it has batch normalisation. `trains=False` says that no
method can train it: its trials are not pretrained, and every layer that any encoder has, the embedding too, stands for
its features. `takes_dim` says
that it has `embedding_dim` features; it gets that number as a third positional argument."""
head = Table("head", ("raysweep.models.heads",))
"""`(feature_dim, embedding_dim, *, …)` gives an `nn.Module`: features (B, D) -> embeddings (B, embedding_dim)."""
policy = Table("policy", ("raysweep.augment.policies",), acts_as=None)
"""`(images, strength, generator, part, *, …)` gives views (B, C, H, W) of a batch, the identity at strength 0.

`acts_as` gives the smallest `strength` > 0 and the parameters that draw the same views as the given settings. So trials
that compute the same are recognised. None: every strength and every value draws other views."""
loss = Table("loss", ("raysweep.methods.losses",), zero_on_equal_views=False)
"""`(z1, z2, *, …)` gives a scalar, from the embeddings (B, D) of both views of the whole batch.

`zero_on_equal_views` says that the loss is least, and zero, where both views of every image have the same embedding, so
that it trains nothing without augmentation."""
method = Table("method", ("raysweep.methods.methods",), views=2, layerwise=False, reads_labels=False)
"""`(encoder, *, …)` gives the `nn.Module` that is trained; `raysweep.methods.method.Method` says what it must have.

`views` is the number of views of each image, and `layerwise` says whether it can train an encoder block by block. A
method with `reads_labels` gets the number of classes as a second positional argument, and the labels of each batch."""
dataset = Table("dataset", ("raysweep.data.datasets",), size=0, channels=0, images=0, unlabelled=0)
"""`(request, *, …)` gives a `Dataset`; `request` is a `raysweep.data.datasets.DatasetRequest`.

`size` and `channels` are those of its images, `images` is the number of labelled images, for the check of memory, and
`unlabelled` the number of images that only pretraining reads."""
probe = Table("probe", ("raysweep.probes.probes",), trains=False, check=None, reads=None)
"""`(evaluation, *, …)` yields pairs of a metric's name and its value; see `raysweep.probes.probes`.

`trains` says that the part returns a `raysweep.probes.probes.TrainedProbe` instead, `check` is a function of the
settings that raises ValueError where they do not fit together, and `reads` one that gives the names of the layers that
it reads, where a parameter does not name the layer."""

TABLES: Mapping[str, Table] = {table.kind: table for table in (encoder, method, loss, head, policy, dataset, probe)}


def parameters_of(function: Callable[..., Any], kind: str) -> dict[str, Parameter]:
    """The parameters that a part declares: its keyword-only arguments."""
    target = function.__init__ if inspect.isclass(function) else function
    namespace = vars(sys.modules[function.__module__])
    parameters = {}
    for name, given in inspect.signature(target).parameters.items():
        if given.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        where = f"{kind} {function.__name__}: {name}"
        annotation = given.annotation
        if isinstance(annotation, str):  # postponed; the other annotations may name types that are not imported
            annotation = eval(annotation, dict(namespace))
        if get_origin(annotation) is not Annotated:
            raise ValueError(
                f"{where}: needs a type and a description, such as Annotated[float, 'Weight of the loss.']"
            )
        if given.default is inspect.Parameter.empty:
            raise ValueError(f"{where}: needs a default")
        marks = get_args(annotation)[1:]

        def only(wanted: type[Any], marks: tuple[Any, ...] = marks) -> Any:
            return next((mark for mark in marks if isinstance(mark, wanted)), None)

        if only(str) is None:
            raise ValueError(f"{where}: needs a description, a text in Annotated")
        chooses = only(Chooses)
        parameters[name] = Parameter(
            name=name,
            annotation=annotation,
            default=given.default,
            text=only(str),
            condition=only(Condition),
            chooses=chooses.kind if chooses is not None else None,
            is_layer=only(FeatureLayer) is not None,
            remark=only(Remark) or Remark(),
        )
    return parameters


def declared_parameters(kinds: tuple[str, ...] = tuple(TABLES)) -> dict[str, Parameter]:
    """Every parameter that a part of one of the kinds declares, by name.

    Raises:
        ValueError: two parts declare a parameter of the same name differently.
    """
    found: dict[str, Parameter] = {}
    for kind in kinds:
        for part in TABLES[kind].values():
            for name, parameter in part.parameters.items():
                if name in found and found[name].declaration != parameter.declaration:
                    raise ValueError(f"{kind} {part.name}: {name}: another part declares it differently")
                found.setdefault(name, parameter)
    return found


def changes_data(name: str) -> bool:
    """Whether the setting `name` decides which images a trial reads."""
    return name in ("dataset", "probe_dataset", "image_size") or name in declared_parameters(("dataset",))


def most_blocks() -> int:
    """The largest number of blocks that an encoder has."""
    return max(int(part.traits["blocks"]) for part in encoder.values())


def in_use(settings: Settings) -> Iterator[Part]:
    """The parts that take part in an experiment with these settings."""
    yield encoder[settings.encoder]
    yield from probe.values()
    for name in dict.fromkeys((settings.dataset, settings.evaluated_dataset)):
        if name in dataset:  # an image folder is no entry of the table
            yield dataset[name]
    if has_head(settings):
        yield head[settings.head]
    if settings.usl_epochs > 0:
        chosen = method[settings.usl_type]
        yield chosen
        for parameter in chosen.parameters.values():
            if parameter.chooses is not None and (parameter.condition is None or parameter.condition.holds(settings)):
                yield TABLES[parameter.chooses][getattr(settings, parameter.name)]
        if settings.strength > 0:
            yield from (policy[name] for name in settings.policies)


def trains(settings: Settings) -> bool:
    """Whether the encoder is a network that can be trained."""
    return bool(encoder[settings.encoder].traits["trains"])


def has_head(settings: Settings) -> bool:
    """Whether the encoder has a projection head that takes part in the experiment."""
    return trains(settings) and (settings.usl_epochs > 0 or "embedding" in layers_read(settings))


@lru_cache(maxsize=4096)
def parameters_read(settings: Settings) -> frozenset[str]:
    """The parameters that the parts of an experiment read. Kept, because a check of a search space asks for each."""
    return frozenset(
        name
        for part in in_use(settings)
        for name, parameter in part.parameters.items()
        if parameter.condition is None or parameter.condition.holds(settings)
    )


def layers_read(settings: Settings) -> tuple[str, ...]:
    """The layers of the encoder that the probes read, each once."""
    layers = []
    for part in probe.values():
        layers += [getattr(settings, name) for name, parameter in part.parameters.items() if parameter.is_layer]
        if part.traits["reads"] is not None:
            layers += part.traits["reads"](settings)
    return tuple(dict.fromkeys(layers))


watchers.append(parameters_read.cache_clear)
