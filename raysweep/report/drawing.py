"""Matplotlib in the project's own style: no setting of the user or the machine changes or breaks a figure.

The one module that imports Matplotlib. Figures are `Figure` objects that are saved by their own canvas: pyplot, which
looks for a window system, is not used.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.errors import printable

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

MODULES = ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg")
STEERING = ("MPLBACKEND", "MATPLOTLIBRC", "MPLCONFIGDIR")
"""The environment variables that Matplotlib reads when it is imported."""
LONGEST = 48
"""Characters of a line of text in a figure, where it has no comma to break at."""
MOST_WRAPPED = 6
"""Lines of a text in a figure."""


def import_matplotlib() -> None:
    """Import Matplotlib without a word on standard error, even if the user's settings for it are unusable.

    It is imported with the user's settings first, so that they hold for a program that imports this package. If that
    fails, it is imported with its defaults.

    Raises:
        Exception: what the import raises with the defaults too.
    """
    config_directory = os.environ.get("MPLCONFIGDIR")
    with quiet():
        try:
            import_modules()
        except Exception:
            for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
                del sys.modules[name]
            with no_settings():
                import_modules()
        finally:
            # Where its directory cannot be written to, Matplotlib makes a temporary one and sets the variable.
            set_variable("MPLCONFIGDIR", config_directory)


def import_modules() -> None:
    """Import every part that reads the environment while it is imported."""
    for name in MODULES:
        import_module(name)


@contextmanager
def no_settings() -> Iterator[None]:
    """Hide the user's settings from an import of Matplotlib.

    Raises:
        RuntimeError: the working directory has settings, and this is not the main thread. The working directory belongs
            to the whole process, and another thread may be using it.
    """
    before = {name: os.environ.get(name) for name in STEERING}
    for name in ("MPLBACKEND", "MPLCONFIGDIR"):
        set_variable(name, None)
    os.environ["MATPLOTLIBRC"] = os.devnull  # a file without settings, which comes before the one in the home directory
    directory = None
    try:
        if os.path.exists("matplotlibrc"):  # this one comes first, and no variable changes that
            if threading.current_thread() is not threading.main_thread():
                raise RuntimeError("Matplotlib cannot be imported: matplotlibrc in the working directory is unusable")
            spec = find_spec("matplotlib")
            directory = os.getcwd()
            os.chdir(Path(str(spec and spec.origin)).parent)
        yield
    finally:
        if directory is not None:
            os.chdir(directory)
        for name, value in before.items():
            set_variable(name, value)


def set_variable(name: str, value: str | None) -> None:
    """Set an environment variable, or remove it if the value is None."""
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Matplotlib's log, which goes to standard error, from the user."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


import_matplotlib()

import matplotlib  # noqa: E402 - after it has been imported safely
from matplotlib import colormaps  # noqa: E402
from matplotlib import figure as matplotlib_figure  # noqa: E402
from matplotlib.colors import Normalize  # noqa: E402
from matplotlib.ft2font import FT2Font  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402
from matplotlib.ticker import NullFormatter  # noqa: E402

__all__ = [
    "Figure",
    "Line2D",
    "Normalize",
    "add_legend",
    "colormaps",
    "label_powers_of_ten",
    "literal",
    "own_style",
    "save",
    "wrapped",
]


class Figure(matplotlib_figure.Figure):
    """A figure of Matplotlib that a notebook shows in the project's style, whether or not it uses pyplot."""

    def _repr_png_(self) -> bytes:
        return save(self)


@contextmanager
def own_style() -> Iterator[None]:
    """Draw and save in the project's style; the settings that hold outside are the same afterwards.

    A text or a line takes its style when it is made, and ticks are made when a figure is saved. So both the drawing and
    the saving need this. It is also a decorator.
    """
    with warnings.catch_warnings(), quiet(), matplotlib.rc_context():
        # They are about glyphs, room and future versions. The user can do nothing about them, and PYTHONWARNINGS=error
        # would turn them into exceptions.
        warnings.simplefilter("ignore")
        defaults = matplotlib.rcParamsDefault
        matplotlib.rcParams.update({name: defaults[name] for name in defaults if name != "backend"})
        matplotlib.rcParams["text.parse_math"] = False  # a dollar sign in a name is no mathematics
        yield


def save(figure: Figure, form: str = "png", dpi: int = 150) -> bytes:
    """A figure as the content of a file; `form` is the file's format, as Matplotlib names it."""
    buffer = io.BytesIO()
    with own_style():
        figure.savefig(buffer, format=form, dpi=dpi)
    return buffer.getvalue()


@cache
def glyphs() -> frozenset[int]:
    """The characters that Matplotlib's own font, which figures use, can draw."""
    return frozenset(FT2Font(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))).get_charmap())


def literal(value: object) -> str:
    """A setting's value, a name or a path as text for a figure: one line, whatever is in it.

    A character that cannot be drawn becomes its escape sequence, so that names stay distinct.
    """
    text = printable(str(value))
    return "".join(c if ord(c) in glyphs() else c.encode("unicode_escape").decode() for c in text)


def wrapped(value: object, width: int = 40) -> str:
    """A long name on several lines: broken at its commas, within a part only if that is very long.

    More than `MOST_WRAPPED` lines lose those in the middle.
    """
    lines = [""]
    for part in literal(value).split(","):
        pieces = [part[start : start + LONGEST] for start in range(0, max(1, len(part)), LONGEST)]
        pieces[-1] += ","
        for piece in pieces:
            if lines[-1] and len(lines[-1]) + len(piece.removesuffix(",")) > width:
                lines.append("")
                piece = piece.lstrip()
            lines[-1] += piece
    lines[-1] = lines[-1].removesuffix(",")
    if len(lines) > MOST_WRAPPED:
        lines = [*lines[: MOST_WRAPPED // 2], "…", *lines[1 - MOST_WRAPPED // 2 :]]
    return "\n".join(lines)


def add_legend(parent: Figure | Axes, entries: Mapping[str, Artist], width: int, **style: Any) -> None:
    """A legend with an entry for each label, in their order; `width` is the number of characters in its lines."""
    legend = parent.legend(list(entries.values()), ["label"] * len(entries), **style)
    # Matplotlib leaves out an artist whose label begins with an underscore.
    for text, label in zip(legend.get_texts(), entries, strict=True):
        text.set_text(wrapped(label, width))


def label_powers_of_ten(axes: Axes) -> None:
    """Label a logarithmic x axis 10⁻³, 10⁻², …: Matplotlib's own labels are mathematics, which is off."""
    axes.xaxis.set_major_formatter(lambda value, _: power_of_ten(value))
    axes.xaxis.set_minor_formatter(NullFormatter())


def power_of_ten(value: float) -> str:
    """`10⁻³` for 0.001; a number that is no power of ten as it is."""
    mantissa, _, exponent = f"{value:.6e}".partition("e")
    if float(mantissa) != 1:
        return f"{value:g}"
    return "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
