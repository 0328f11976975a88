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
"""Most characters of a line of text in a figure that has no comma at which it can be broken."""
MOST_IN_A_ROW = 4
"""Most panels of a figure side by side. A wider figure would be too small to read on a page."""
MOST_WRAPPED = 6
"""Most lines of a text in a figure."""


def import_matplotlib() -> None:
    """Import Matplotlib without output on standard error, even if the user's settings for it are unusable.

    It is imported with the user's settings first, so that they hold for a program that imports this package. If that
    fails, it is imported with its defaults.

    Raises:
        Exception: the import fails with the defaults too.
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
    """Import every module of Matplotlib that reads the environment while it is imported."""
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
    os.environ["MATPLOTLIBRC"] = os.devnull  # an empty file, which takes precedence over the one in the home directory
    directory = None
    try:
        if os.path.exists("matplotlibrc"):  # this file takes precedence over the variable
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
    """Silence Matplotlib's log, which goes to standard error."""
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
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.colors import ListedColormap, Normalize  # noqa: E402
from matplotlib.ft2font import FT2Font  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402
from matplotlib.ticker import LogLocator, NullFormatter  # noqa: E402

__all__ = [
    "SHADES",
    "Figure",
    "Line2D",
    "Normalize",
    "add_legend",
    "colormaps",
    "label_powers_of_ten",
    "literal",
    "own_style",
    "panel_grid",
    "panels_in_a_row",
    "power_of_ten",
    "save",
    "wrapped",
]


SHADES = ListedColormap([colormaps["viridis"](place / 255 * 0.7) for place in range(256)])
"""The colours of lines and dots by a number. The bright end of viridis is left out: it is too pale on white."""


class Figure(matplotlib_figure.Figure):
    """A Matplotlib figure that a notebook shows in the project's style, even if the notebook does not use pyplot."""

    def _repr_png_(self) -> bytes:
        return save(self)


@contextmanager
def own_style() -> Iterator[None]:
    """Use the project's style inside the block, and restore Matplotlib's settings afterwards. Also a decorator.

    A text or a line takes its style when it is created, and ticks are created when a figure is saved. So both drawing
    and saving need this.
    """
    with warnings.catch_warnings(), quiet(), matplotlib.rc_context():
        # Matplotlib warns of missing glyphs, lack of room and changes in future versions. The user can do nothing, and
        # PYTHONWARNINGS=error would turn the warnings into exceptions.
        warnings.simplefilter("ignore")
        defaults = matplotlib.rcParamsDefault
        matplotlib.rcParams.update({name: defaults[name] for name in defaults if name != "backend"})
        matplotlib.rcParams["text.parse_math"] = False  # a dollar sign in a name does not begin mathematics
        yield


def panels_in_a_row(count: int) -> int:
    """Return how many of `count` panels stand side by side."""
    return min(count, MOST_IN_A_ROW)


def panel_grid(
    count: int, size: tuple[float, float], margin: tuple[float, float] = (0.0, 0.0), sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` panels, at most `MOST_IN_A_ROW` in a row.

    Args:
        count: The number of panels, at least 1.
        size: The width and the height of a panel in inches.
        margin: The width and the height in inches that the figure has beside its panels.
        sharey: Whether all panels have the same y axis.

    Example:
        `panel_grid(6, (4.2, 3.6))` gives a figure of 16.8 × 7.2 inches with four panels above two.
    """
    columns = panels_in_a_row(count)
    rows = -(-count // columns)
    width, height = margin[0] + columns * size[0], margin[1] + rows * size[1]
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, sharey=sharey).flat)
    for unused in panels[count:]:
        unused.remove()
    return figure, panels[:count]


def save(figure: Figure, form: str = "png", dpi: int = 150) -> bytes:
    """Return a figure as the content of a file.

    Args:
        figure: the figure.
        form: the file's format, by Matplotlib's name.
        dpi: dots per inch.
    """
    buffer = io.BytesIO()
    with own_style():
        if form == "png":
            write_png(figure, buffer, dpi)
        else:
            figure.savefig(buffer, format=form, dpi=dpi)
    return buffer.getvalue()


def write_png(figure: Figure, buffer: io.BytesIO, dpi: int) -> None:
    """Write a figure as PNG, and leave its canvas and its resolution as they are.

    The method `savefig` writes the same bytes, but it visits all artists once more, which takes a third of its time.
    """
    canvas_before, dpi_before = figure.canvas, figure.get_dpi()
    canvas: Any = FigureCanvasAgg(figure)
    figure.set_dpi(dpi)
    try:
        canvas.print_png(buffer)
    finally:
        figure.set_dpi(dpi_before)
        figure.set_canvas(canvas_before)


@cache
def glyphs() -> frozenset[int]:
    """Return the code points of the characters that the figures' font, which comes with Matplotlib, can draw."""
    return frozenset(FT2Font(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))).get_charmap())


def literal(value: object) -> str:
    """Return a setting's value, a name or a path as one line of text for a figure.

    A character that cannot be drawn becomes its escape sequence, so that names stay distinct.
    """
    text = printable(str(value))
    return "".join(c if ord(c) in glyphs() else c.encode("unicode_escape").decode() for c in text)


def wrapped(value: object, width: int = 40) -> str:
    """Return a long name on several lines of about `width` characters.

    Lines are broken at commas, and inside a part only if the part is longer than `LONGEST`. If there are more than
    `MOST_WRAPPED` lines, the middle ones are omitted.
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
    """Add a legend with an entry for each label, in the given order, with lines of about `width` characters."""
    legend = parent.legend(list(entries.values()), ["label"] * len(entries), **style)
    # Matplotlib leaves out an artist whose label begins with an underscore.
    for text, label in zip(legend.get_texts(), entries, strict=True):
        text.set_text(wrapped(label, width))


def label_powers_of_ten(axes: Axes, is_narrow: bool = False) -> None:
    """Label a logarithmic x axis 10⁻³, 10⁻², …; Matplotlib's own labels need mathematical text, which is off.

    A narrow axis has too few powers of ten. It is labelled 0.1, 0.2, 0.5, 1, ….
    """
    if is_narrow:
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        return
    axes.xaxis.set_major_formatter(lambda value, _: power_of_ten(value))
    axes.xaxis.set_minor_formatter(NullFormatter())


def power_of_ten(value: float) -> str:
    """Return `10⁻³` for 0.001, and a number that is no power of ten in plain digits."""
    mantissa, _, exponent = f"{value:.6e}".partition("e")
    if float(mantissa) != 1:
        return f"{value:g}"
    return "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
