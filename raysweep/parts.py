"""Parts of an experiment: encoders, heads, policies, losses, methods, optimisers, schedules, datasets and probes.

A part is a function or a class that declares itself with the decorator of its kind. Its keyword-only parameters, with
their types, ranges, defaults and descriptions, are settings of an experiment::

    @loss
    def nt_xent(z1, z2, *, temperature: Annotated[float, Field(gt=0), "Temperature τ."] = 0.5):
        '''Normalised temperature-scaled cross entropy.'''

The tables of parts determine the flags of the command line, the checks of a search space, the settings that have an
effect, the evaluation protocol, TensorBoard's hyperparameters, the metrics and the reference page. A module that
declares parts must not import torch at its top level: it is read to print the help of a command.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar, overload

from raysweep.declarations import Chooses as Chooses
from raysweep.declarations import Condition as Condition
from raysweep.declarations import FeatureLayer as FeatureLayer
from raysweep.declarations import Metric as Metric
from raysweep.declarations import Parameter as Parameter
from raysweep.declarations import Remark as Remark
from raysweep.declarations import parameters_of
from raysweep.errors import InputError
from raysweep.part_functions import is_in_effect, trait_of

if TYPE_CHECKING:
    from raysweep.config.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])


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
    plugin: str = ""
    """The hash of the plugin that declares it; empty for a built-in part."""
    file: str = ""
    """The file of this plugin, for messages; empty for a part by value."""

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
    """The parts of one kind, by name, in the order in which they were declared. It is also the decorator of a part.

    Example:
        >>> @encoder
        ... def mlp(channels, image_size, *, width: Annotated[int, Field(ge=1), "Number of features."] = 64): ...

    Args:
        kind: what a part is, in one word.
        modules: the modules that declare the built-in parts. They lie above this one, so they are imported by name
            when the table is first read.
        traits: the traits that a part of this kind may have, with their defaults.
    """

    def __init__(self, kind: str, modules: tuple[str, ...], **traits: Any) -> None:
        self.kind, self.modules, self.traits = kind, modules, traits
        self._parts: dict[str, Part] = {}
        self._families: dict[str, Callable[[str], Part]] = {}
        self._is_complete = False

    def __getitem__(self, name: str) -> Part:
        known = self._complete()
        prefix, slash, rest = name.partition("/")
        return self._families[prefix](rest) if slash and prefix in self._families else known[name]

    def family(self, prefix: str) -> Callable[[Callable[[str], Part]], Callable[[str], Part]]:
        """Decorate a function that gives the parts whose names begin with `PREFIX/`. The table does not list them.

        The function gets the rest of the name. It raises InputError if there is no such part.
        """

        def declare(function: Callable[[str], Part]) -> Callable[[str], Part]:
            self._families[prefix] = function
            return function

        return declare

    def is_in_family(self, name: object) -> bool:
        """Whether a name has the form of a part of a family, whether or not there is such a part."""
        self._complete()
        return isinstance(name, str) and "/" in name and name.partition("/")[0] in self._families

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

        A part from outside the package waits in `declared` until `raysweep.plugins` takes it into the table.

        Args:
            function: the part, where the decorator is used without arguments.
            name: the part's name in settings; None: the name of the function.
            metrics: the metrics that it yields, by name, or a function that gives them.
            traits: see the table of the kind.

        Raises:
            InputError: the declaration is faulty, or the name is taken; the message says what is wrong.
        """
        if function is None:
            return lambda given: self(given, name=name, metrics=metrics, **traits)
        unknown = [trait for trait in traits if trait not in self.traits]
        if unknown:
            raise InputError(f"{self.kind} {function.__name__}: unknown trait {unknown[0]!r}")
        part = Part(
            kind=self.kind,
            name=name or function.__name__,
            function=function,
            text=(inspect.getdoc(function) or "").partition("\n")[0],
            parameters=parameters_of(function, self.kind),
            declared_metrics=metrics or {},
            traits={**self.traits, **traits},
        )
        if function.__module__ in self.modules:
            self.add(part)
        else:
            declared.append(part)
        return function

    def add(self, part: Part) -> None:
        """Take a part into the table; raises InputError if the name is taken, or a parameter clashes with others."""
        if part.name in self._parts:
            raise InputError(f"{self.kind} {part.name}: there is one of that name already")
        self._parts[part.name] = part
        try:
            notify()
        except Exception:
            self.remove(part)
            raise

    def remove(self, part: Part) -> None:
        """Take a part out of the table."""
        del self._parts[part.name]
        notify()

    def _complete(self) -> dict[str, Part]:
        """The parts, after the built-in ones have declared themselves."""
        if not self._is_complete:
            self._is_complete = True
            for module in self.modules:
                import_module(module)
        return self._parts


declared: list[Part] = []
"""The parts that were declared outside of the package and are in no table yet."""
watchers: list[Callable[[], None]] = []
"""Called after each change of a table."""


def notify() -> None:
    """Tell the watchers that a table has changed."""
    for changed in watchers:
        changed()


encoder = Table(
    "encoder",
    ("raysweep.models.encoders",),
    blocks=0,
    layers=(),
    batch_norm=False,
    trains=True,
    takes_dim=False,
    fits=False,
    check_images=None,
)
"""`(channels, image_size, *, …)` gives an `nn.Module`: images (B, C, H, W) in [0, 1] -> features (B, D).

`blocks` is the number of blocks that can be trained one by one, `layers` the names of the layers that probes can read
beside `trunk` and `embedding`, and `batch_norm` says whether it has batch normalisation. `trains=False` says that no
method can train it. Its trials are not pretrained, and each name of a layer, also `embedding`, gives its features.
`takes_dim` says that it has `embedding_dim` features; it gets that number as a third positional argument. `fits` says
that it has a method `fit`; the encoder of a plugin need not say this. `check_images` is a function of the settings and
the shape (N, C, H, W) of the pretraining images that raises InputError if the encoder cannot take them."""
head = Table("head", ("raysweep.models.heads",), batch_norm=False)
"""`(feature_dim, embedding_dim, *, …)` gives an `nn.Module`: features (B, D) -> embeddings (B, embedding_dim).

`batch_norm` says whether it has batch normalisation; it may be a function of the settings."""
policy = Table("policy", ("raysweep.augment.policies",), acts_as=None)
"""`(images, strength, generator, part, *, …)` gives views (B, C, H, W) of a batch, the identity at strength 0.

`part` is a `raysweep.augment.operations.BatchPart`; it says which images are first views of their image. `acts_as`
gives the smallest `strength` > 0 and the parameters that draw the same views as the given settings. So trials that
compute the same are recognised. None: every strength and every value draws other views."""
loss = Table("loss", ("raysweep.methods.losses",), zero_on_equal_views=False)
"""`(z1, z2, *, …)` gives a scalar, from the embeddings (B, D) of both views of the whole batch.

`zero_on_equal_views` says that the loss is least, and zero, where both views of every image have the same embedding, so
that it trains nothing without augmentation."""
_traits: dict[str, Any] = {"views": 2, "layerwise": False, "reads_labels": False, "batch_norm": False}
method = Table("method", ("raysweep.methods.methods",), **_traits, reads_total=True)
"""`(encoder, *, …)` gives the `nn.Module` that is trained; `raysweep.methods.method.Method` says what it must have.

`views` is the number of views of each image, and `layerwise` says whether it can train an encoder block by block. With
`reads_labels` it gets the number of classes as a second positional argument, and the labels of each batch. `batch_norm`
says whether it has batch normalisation outside of the encoder and head. `reads_total=False` says that no step depends
on the number of all epochs. The last two may be functions of the settings."""
optimizer = Table("optimizer", ("raysweep.training.optimizers",), check=None)
"""`(weights, lr, *, …)` gives a `torch.optim.Optimizer` of a list of parameters.

`check` is a function of the settings that raises ValueError where they do not fit together."""
schedule = Table("schedule", ("raysweep.training.schedules",), constant=False, reads_total=True, check=None)
"""`(step, steps, epoch_steps, *, …)` gives the factor of the learning rate for a step, counted from 0.

`steps` is the number of all steps, and `epoch_steps` the number of steps of an epoch. `constant` says that the factor
is always 1, so that pretraining leaves the learning rate alone. `reads_total=False` says that `steps` changes no
factor; it may be a function. For `check` see `optimizer`. Trials report the metric `pretrain/lr` if it declares it."""
dataset = Table("dataset", ("raysweep.data.datasets",), size=0, channels=0, images=0, unlabelled=0, labelled=True)
"""`(request, *, …)` gives a `Dataset`; `request` is a `raysweep.data.datasets.DatasetRequest`.

`size` and `channels` describe its images, `images` is the number of labelled images, for the check of memory, and
`unlabelled` is the number of images that only pretraining reads. `labelled=False` says that no image has a label."""
probe = Table(
    "probe",
    ("raysweep.probes.probes", "raysweep.probes.optional"),
    trains=False,
    keeps_features=False,
    switch=None,
    check=None,
    check_fit=None,
    reads=None,
    samples=False,
    needs_labels=True,
)
"""`(evaluation, *, …)` yields pairs of a metric's name and its value; see `raysweep.probes.probes`.

`needs_labels=False` says that the probe reads only the features of `fit`, so that it also evaluates images without
labels. `trains` says that the part returns a `raysweep.probes.probes.TrainedProbe` instead. `keeps_features` says that
such a probe does not change the features; it then runs before the others, so that they need not be extracted again.
`switch` is the parameter that turns the probe on, where its value is true, not 0 and not none. None: the probe
evaluates every trial. `check` is a function of the settings that raises ValueError where they do not fit together.
`check_fit` is a function of the settings, the labels of the fit split and the names of the classes that raises
InputError if the probe needs more images. `reads` is a function of the settings that gives the names of the layers that
the probe reads, where a parameter does not name the layer. `samples` says that it reads only some images in these
layers, with `Evaluation.features_of`; the features of the other images are then not computed for it."""

TABLES: Mapping[str, Table] = {
    table.kind: table for table in (encoder, method, loss, head, optimizer, schedule, policy, dataset, probe)
}


def declared_parameters(kinds: tuple[str, ...] = tuple(TABLES)) -> dict[str, Parameter]:
    """Every parameter that a part of one of the kinds declares, by name.

    Raises:
        InputError: two parts declare a parameter of the same name differently.
    """
    owners: dict[str, Part] = {}
    for part in (part for kind in kinds for part in TABLES[kind].values()):
        for name, parameter in part.parameters.items():
            other = owners.setdefault(name, part)
            if other.parameters[name].declaration != parameter.declaration:
                raise InputError(
                    f"{part.kind} {part.name}: {name}: {other.kind} {other.name} declares it differently; give one of "
                    f"them another name"
                )
    return {name: owner.parameters[name] for name, owner in owners.items()}


def most_blocks() -> int:
    """The largest number of blocks that an encoder has."""
    return max(int(part.traits["blocks"]) for part in encoder.values())


def in_use(settings: Settings) -> Iterator[Part]:
    """Yield the parts that take part in an experiment with these settings; raise InputError if one chooses itself."""
    for part in chosen_by_settings(settings):
        yield from with_chosen(part, settings)


def with_chosen(part: Part, settings: Settings, users: tuple[Part, ...] = ()) -> Iterator[Part]:
    """Yield a part, and the parts that its parameters choose. The parts `users` lead to this part."""
    yield part
    for parameter in part.parameters.values():
        if parameter.chooses is not None and is_in_effect(part, parameter, settings):
            chosen = TABLES[parameter.chooses][getattr(settings, parameter.name)]
            if chosen in (*users, part):
                raise InputError(f"{parameter.name}: {chosen.name}: the {chosen.kind} {chosen.name} would use itself")
            yield from with_chosen(chosen, settings, (*users, part))


def chosen_by_settings(settings: Settings) -> Iterator[Part]:
    """Yield the parts that an experiment uses without another part."""
    yield encoder[settings.encoder]
    yield from probes_in_use(settings)
    datasets = dict.fromkeys((settings.dataset, settings.evaluated_dataset))
    yield from (dataset[name] for name in datasets if name in dataset)  # an image folder is no entry of the table
    if has_head(settings):
        yield head[settings.head]
    if settings.usl_epochs > 0:
        yield method[settings.usl_type]
        yield optimizer[settings.optimizer]
        yield schedule[settings.schedule]
        if settings.strength > 0:
            yield from (policy[name] for name in settings.policies)


def probes_in_use(settings: Settings) -> list[Part]:
    """The probes that evaluate a trial with these settings."""
    possible = [part for part in probe.values() if settings.probe_labels or not part.traits["needs_labels"]]
    return [part for part in possible if part.traits["switch"] is None or getattr(settings, part.traits["switch"])]


def with_batch_norm(settings: Settings) -> Iterator[Part]:
    """The parts of an experiment that have batch normalisation."""
    return (part for part in in_use(settings) if trait_of(part, "batch_norm", settings, bool))


def trains(settings: Settings) -> bool:
    """Whether the encoder is a network that can be trained."""
    return bool(encoder[settings.encoder].traits["trains"])


def has_head(settings: Settings) -> bool:
    """Whether the encoder has a projection head that takes part in the experiment."""
    return trains(settings) and (settings.usl_epochs > 0 or "embedding" in layers_read(settings))


@lru_cache(maxsize=4096)
def parameters_read(settings: Settings) -> frozenset[str]:
    """The parameters that the parts of an experiment read. Kept, because a check of a search space asks for each."""
    switches = frozenset(part.traits["switch"] for part in probe.values() if part.traits["switch"] is not None)
    return switches | frozenset(
        name
        for part in in_use(settings)
        for name, parameter in part.parameters.items()
        if is_in_effect(part, parameter, settings)
    )


def layers_read(settings: Settings, of_all_images: bool = False) -> tuple[str, ...]:
    """The layers of the encoder that the probes read, each once. A probe that samples does not read all images."""
    layers = []
    for part in (part for part in probes_in_use(settings) if not (of_all_images and part.traits["samples"])):
        layers += [getattr(settings, name) for name, parameter in part.parameters.items() if parameter.is_layer]
        if part.traits["reads"] is not None:
            layers += trait_of(part, "reads", settings, list)
    return tuple(dict.fromkeys(layers))


watchers.append(parameters_read.cache_clear)
