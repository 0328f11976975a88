"""Output streams of a command that must run to its end even if its output cannot be written.

A sweep runs for hours. It must not stop because a reader leaves (`| head`), a terminal is closed or cannot show `α`, or
the disk is full.
"""

from __future__ import annotations

import codecs
import io
import os
import shlex
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

if TYPE_CHECKING:
    from rich.console import Console

WIDTH_WITHOUT_TERMINAL = 140
"""Line width in characters if standard output is not a terminal: wide enough for the summary table."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, SIGTERM or SIGHUP: 128 + SIGINT, as in shells."""
SPELLED = {"α": "alpha", "τ": "tau", "λ": "lambda", "η": "eta", "±": "+/-", "×": "x", "–": "-", "…": "...", "−": "-"}
"""Replacements for characters that raysweep prints, used if the terminal's encoding lacks them."""


class LastingFile(io.FileIO):
    """A file descriptor whose writes never fail. After the first error, all output is dropped."""

    lost = False

    def write(self, data: Any) -> int:
        """Write bytes, or drop them after an error; returns how many were taken, which is all when dropping."""
        if not self.lost:
            try:
                return super().write(data)
            except OSError:
                self.lost = True
        return len(data)


def spell(fault: UnicodeError) -> tuple[str, int]:
    """Spell out known characters and escape any others with a backslash (a codec error handler)."""
    if not isinstance(fault, UnicodeEncodeError):
        raise fault
    characters = fault.object[fault.start : fault.end]
    written = [SPELLED.get(c, c.encode("ascii", "backslashreplace").decode()) for c in characters]
    return "".join(written), fault.end


codecs.register_error("raysweep.spell", spell)


def lasting(stream: TextIO | None, descriptor: int) -> TextIO:
    """Return a text stream on the descriptor of `stream` that survives the loss of its reader and any encoding."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    raw = LastingFile(descriptor, "w", closefd=False)
    # Line buffering, so that lines appear at once in a pipe or in a file that somebody follows.
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "raysweep.spell", line_buffering=True)


def use_lasting_streams() -> None:
    """Make `sys.stdout` and `sys.stderr` of this process streams that never fail.

    A descriptor that was closed (`>&-`) is first opened on the null device. Otherwise the next file that is opened,
    such as a result, would get its number and receive what libraries print.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this descriptor
    sys.stdout, sys.stderr = lasting(sys.stdout, 1), lasting(sys.stderr, 2)


def output_is_lost() -> bool:
    """Return whether standard output has lost its reader."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return isinstance(raw, LastingFile) and raw.lost


def typed_program() -> list[str]:
    """Return the words with which the user called `sweep` in this process, without the arguments.

    These are `raysweep sweep`, or for a script or module the typed words, such as `.venv/bin/python ../run_sweep.py`.
    """
    program, arguments = sys.argv[0], sys.argv[1:]
    typed = sys.orig_argv[: len(sys.orig_argv) - len(arguments)]
    if os.path.basename(program) == "raysweep" or sys.orig_argv[len(typed) :] != arguments or len(typed) < 2:
        typed = [os.path.basename(program)] if program.endswith("run_sweep.py") else ["raysweep"]
    return typed if typed[-1].endswith("run_sweep.py") else [*typed, "sweep"]


def resume_command(place: str, *options: str) -> str:
    """Return the command that resumes the sweep at `place`, quoted for a shell.

    Example:
        `resume_command("my runs/s", "--local")` gives `raysweep sweep --resume 'my runs/s' --local`.
    """
    return " ".join(map(quoted, [*typed_program(), "--resume", place, *options]))


def quoted(word: str) -> str:
    r"""Quote a word for a shell. A word with characters that cannot be shown is written with escapes.

    Example:
        `quoted("my runs")` gives `'my runs'`, and `quoted("two\nlines")` gives `$'two\x0alines'`.
    """
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + "".join(escaped(byte) for byte in os.fsencode(word)) + "'"


def escaped(byte: int) -> str:
    """Return a byte as Bash takes it between `$'` and `'`."""
    return chr(byte) if 32 <= byte < 127 and chr(byte) not in "'\\" else f"\\x{byte:02x}"


def counted(count: int, what: str) -> str:
    """Return a count with its noun, such as `1 trial` or `3 trials`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return a time in words, such as `5 s`, `2 min 05 s` or `1 h 03 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def say_at_once(text: str) -> None:
    """Write one line to standard error from a signal handler or thread, where a buffered stream may be in use."""
    with suppress(OSError):
        os.write(2, f"{text}\n".encode(errors="backslashreplace"))


def end_process(status: int, text: str) -> NoReturn:
    """Write one line to standard error and end the process immediately, even if threads or libraries hang."""
    if os.isatty(1):
        with suppress(OSError):
            os.write(1, b"\x1b[?25h")  # a live display hides the cursor
    say_at_once(text)
    os._exit(status)


def make_console() -> Console:
    """Return a rich console on standard output that prints all text literally.

    Names may contain brackets, `:smile:` and numbers, which must not become markup, emoji or coloured text.
    """
    from rich.console import Console

    width = None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL
    return Console(width=width, markup=False, emoji=False, highlight=False)


def redraws(console: Console) -> bool:
    """Return whether a live display works: on a terminal with a movable cursor, whatever FORCE_COLOR says."""
    return console.file.isatty() and not console.is_dumb_terminal and console.is_interactive
