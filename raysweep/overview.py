"""The top of `--help`: three examples, and the sweeps that `--exp_type` offers."""

from __future__ import annotations

import re
import shlex
import shutil
import textwrap
from pathlib import Path

from raysweep.preparation import shipped_spaces
from raysweep.system.terminal import typed_program

USAGE = "[SPACE.yaml] [--SETTING VALUE …] [OPTIONS]"
EXAMPLES = (
    ("--exp_type quickstart", "a sweep that comes with raysweep, in two minutes"),
    ("SPACE.yaml --set 'seed=[0,1,2]' --dry-run", "your own search space with three seeds; only prints the plan"),
    ("--usl_type simclr --temperature 0.2 --dataset cifar10", "one experiment"),
)
"""The arguments of `sweep` in each example, and what they do."""
NAME_WIDTH = 16
"""Columns for a short name of a shipped sweep. A longer name has a line of its own."""


def program() -> str:
    """Return the command that the user called to run a sweep."""
    return shlex.join(typed_program())


def width() -> int:
    """Return the number of columns that argparse uses for the rest of the page."""
    return max(40, shutil.get_terminal_size().columns - 2)


def filled(text: str, indent: str = "", first: str | None = None) -> str:
    """Return the text with line breaks at spaces, each line after `indent`, and the first one after `first`."""
    first = indent if first is None else first
    return textwrap.fill(
        text, width(), initial_indent=first, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )


def examples() -> str:
    """Return the three examples, each with a line that says what it does."""
    lines = [f"  {program()} {arguments}\n{filled(words, ' ' * 6)}" for arguments, words in EXAMPLES]
    return "\n".join(["examples:", *lines])


def program_overview() -> str:
    """Return the top of `raysweep --help`."""
    return "\n\n".join(
        [
            filled("Sweeps of self-supervised image representation learning on Ray."),
            examples(),
            filled(f"--exp_type offers {', '.join(sorted(shipped_spaces()))}.", "  ", ""),
        ]
    )


def sweep_overview(description: str) -> str:
    """Return the top of the help of `sweep`: its description, the examples, and the shipped sweeps."""
    lines = ["--exp_type offers:"]
    for name, path in sorted(shipped_spaces().items()):
        label = f"  {name:{NAME_WIDTH}}"
        if len(name) >= NAME_WIDTH:
            lines.append(f"  {name}")
            label = " " * (NAME_WIDTH + 2)
        lines.append(filled(question(path), " " * (NAME_WIDTH + 2), label))
    return "\n\n".join([filled(description), examples(), "\n".join(lines)])


def question(path: Path) -> str:
    """Return the first sentence of a shipped search space, and its number of trials, from the comment at its top."""
    comment = [line.lstrip("# ").rstrip() for line in path.read_text(encoding="utf-8").split("name:")[0].splitlines()]
    text = " ".join(comment)
    sentence = re.match(r".*?(?:[?.](?= )|(?=;))", text)
    trials = re.search(r"(\d+) trials|Number of trials: (\d+)", text)
    assert sentence is not None, path
    assert trials is not None, path
    count = trials[1] or trials[2]
    return f"{sentence[0]} ({count} trial{'' if count == '1' else 's'})"
