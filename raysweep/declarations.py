"""What a part declares: its parameters, read from the signature of its function, and its metrics."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from raysweep.errors import InputError

if TYPE_CHECKING:
    from raysweep.config.settings import Settings


ROUNDING = 1e-6
"""Tolerance for values in single precision at the ends of a metric's range."""


@dataclass(frozen=True)
class Condition:
    """The condition under which a setting has an effect: in words, and as a test of the settings.

    Example:
        >>> Annotated[float, Condition("kappa > 0", lambda settings: settings.kappa > 0), "Width of the kernel."]
    """

    words: str
    """The condition in words, for messages and docs."""
    holds: Callable[[Settings], bool]
    """A function that returns whether the condition holds for some settings."""

    def __and__(self, other: Condition) -> Condition:
        """Return the condition that both conditions hold."""
        return Condition(f"{self.words} and {other.words}", lambda s: self.holds(s) and other.holds(s))


@dataclass(frozen=True)
class Chooses:
    """Marks a parameter whose value is the name of a part of another kind, such as the embedding loss of a method.

    The part gets the function of the chosen part, with its settings filled in, in place of the name.

    Example:
        >>> def pairs(encoder, *, emb_loss: Annotated[str, Chooses("loss"), "Loss between the views."] = "mse"): ...
    """

    kind: str
    """The kind of the chosen part, such as `loss`."""


@dataclass(frozen=True)
class FeatureLayer:
    """Marks a parameter whose value is the name of a layer of the encoder.

    Example:
        >>> def means(evaluation, *, means_layer: Annotated[str, FeatureLayer(), "Layer that is read."] = "trunk"): ...
    """


@dataclass(frozen=True)
class Remark:
    """Marks a parameter that a sweep treats differently from other parameters."""

    searchable: bool = True
    """Whether it may be swept. Use False for a parameter that changes no score."""
    structured: bool = False
    """Whether a list or a mapping is a single value of the parameter, not a grid."""
    may_be_unused: bool = False
    """Whether it may be given to a sweep in which no trial reads it."""
    protocol: bool = True
    """For a probe's parameter: whether scores with different values cannot be compared."""


@dataclass(frozen=True)
class Parameter:
    """A setting that a part declares."""

    name: str
    annotation: Any
    """`Annotated[...]`, from which pydantic checks values."""
    default: Any
    text: str
    """The description."""
    condition: Condition | None = None
    """The condition under which the parameter has an effect if the part is in use; None means always."""
    chooses: str | None = None
    """The kind of the part that its value names."""
    is_layer: bool = False
    """Whether its value names a layer of the encoder."""
    remark: Remark = Remark()

    @property
    def declaration(self) -> tuple[Any, Any, str]:
        """The properties in which two parts must agree if both declare a parameter of this name."""
        return self.annotation, self.default, self.text


@dataclass(frozen=True)
class Metric:
    """A metric that a part yields.

    A trial in which the metric is not finite, or outside of the range from `lowest` to `highest`, fails.

    Example:
        >>> Metric("Accuracy of the class means, test split.", better="max", lowest=0.0, highest=1.0, uses_test=True)
    """

    text: str
    """The description."""
    better: Literal["max", "min"] | None = None
    """Whether a greater or a smaller value is better; None if neither is."""
    lowest: float = -float("inf")
    """The least possible value; no limit if it is not given."""
    highest: float = float("inf")
    """The greatest possible value; no limit if it is not given."""
    uses_test: bool = False
    """Whether it is computed from the test split, so that nothing may be chosen by it."""
    is_diagnosis: bool = False
    """Whether it only describes how a trial went, so that nothing may be chosen by it."""
    is_reported: Callable[[Settings], bool] | None = None
    """A function that returns whether a trial that uses the part reports the metric; None means always."""

    def __post_init__(self) -> None:
        """Raise InputError if a value is of a wrong type, or the range is empty."""
        if not isinstance(self.text, str) or not self.text.strip():
            raise InputError(f"Metric: a description in words expected, not {self.text!r}")
        if self.better not in ("max", "min", None):
            raise InputError(f"Metric: better: 'max', 'min' or None expected, not {self.better!r}")
        for name in ("lowest", "highest"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
                raise InputError(f"Metric: {name}: a number expected, not {value!r}")
        if self.lowest > self.highest:
            raise InputError(f"Metric: lowest is {self.lowest:g}, which is above highest, {self.highest:g}")
        for name in ("uses_test", "is_diagnosis"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"Metric: {name}: True or False expected, not {getattr(self, name)!r}")
        if self.is_reported is not None and not callable(self.is_reported):
            raise InputError(f"Metric: is_reported: a function of the settings expected, not {self.is_reported!r}")

    def allows(self, value: float) -> bool:
        """Return whether a value is finite and in the declared range, up to rounding."""
        return math.isfinite(value) and self.lowest - ROUNDING <= value <= self.highest + ROUNDING

    def range_words(self) -> str:
        """Return the declared range for messages, such as `[0, 1]`."""
        return f"[{self.lowest:g}, {self.highest:g}]"


def parameters_of(function: Callable[..., Any], kind: str) -> dict[str, Parameter]:
    """Return the parameters that a part declares: the keyword-only arguments of its function.

    Raises:
        InputError: A parameter has no type, description or default.
    """
    target = function.__init__ if inspect.isclass(function) else function
    namespace = vars(sys.modules[function.__module__])
    parameters = {}
    for name, given in inspect.signature(target).parameters.items():
        if given.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        where = f"{kind} {function.__name__}: {name}"
        annotation = given.annotation
        if isinstance(annotation, str):  # others may name types that are not imported
            annotation = eval(annotation, dict(namespace))
        if get_origin(annotation) is not Annotated:
            raise InputError(
                f"{where}: needs a type and a description, such as Annotated[float, 'Weight of the loss.']"
            )
        if given.default is inspect.Parameter.empty:
            raise InputError(f"{where}: needs a default")
        marks = get_args(annotation)[1:]

        def only(wanted: type[Any], marks: tuple[Any, ...] = marks) -> Any:
            return next((mark for mark in marks if isinstance(mark, wanted)), None)

        if only(str) is None:
            raise InputError(f"{where}: needs a description, a text in Annotated")
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
