"""Fill the tables of `docs/performance.md` and draw its figures from `benchmarks/results/*.json`.

    python benchmarks/document.py

Each table is between `<!-- NAME -->` and `<!-- /NAME -->`; the rest of the file stays unchanged. A table without
measurements says so.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib as mpl
import measure

mpl.use("agg")
import matplotlib.pyplot as plt

PAGE = measure.ROOT / "docs" / "performance.md"
FIGURES = measure.ROOT / "docs" / "figures"
NOT_MEASURED = "Not yet measured."

Content = dict[str, Any]


def rows(head: Sequence[str], body: Iterable[Sequence[object]]) -> str:
    """Format a Markdown table."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *body)]
    return "\n".join(lines)


def spread(entry: Content, unit: str = "") -> str:
    """Format a median, with minimum and maximum if there are several measurements."""
    return f"{entry['median']:.4g}{unit}" + (
        f" ({entry['min']:.4g}–{entry['max']:.4g})" if len(entry["all"]) > 1 else ""
    )


def source(content: Content) -> str:
    """Give the command, the processor, the date and the commit, with a warning if the file holds only a quick run."""
    machine = content["machine"]
    processor = machine["cpu"].rpartition(" (")[0] or machine["cpu"]
    words = f"`{content['command']}`, {processor}, {machine['date'][:10]}, commit {machine['commit']}."
    return words + (" **A quick run: no measurement.**" if content.get("quick") else "")


def machines() -> str:
    """Describe the machines of all tables: one line for each machine and set of versions."""
    contents = [measure.load(name) for name in FILES]
    lines = {
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, Python {machine['python']}, "
        f"torch {machine['torch']}, Ray {machine['ray']}."
        for machine in (content["machine"] for content in contents if content is not None)
    }
    return "\n\n".join(sorted(lines)) or NOT_MEASURED


def table(name: str, make: Callable[[Content], str]) -> str:
    """Format a file of results with `make`, and add its source."""
    content = measure.load(name)
    return NOT_MEASURED if content is None else f"{make(content)}\n\n{source(content)}"


def sweep(content: Content) -> str:
    """Show the seconds from start to exit, and how many times faster raysweep is."""
    faster = content["times faster than the plain script"]
    return rows(
        ["", "seconds from start to exit", "times faster than the plain script"],
        [
            (name, spread(entry), spread(faster[name]) if name in faster else "–")
            for name, entry in content["seconds"].items()
        ],
    )


def lightly(content: Content) -> str:
    """Show images per second."""
    faster = content["times faster than lightly"]
    return rows(
        ["", "images per second, one thread", "times faster"],
        [
            (name, spread(entry), spread(faster[name]) if name in faster else "–")
            for name, entry in content["images per second"].items()
        ],
    )


OVERHEAD_ROWS = {
    "total, s": "whole sweep, s",
    "each further trial, overhead s": "overhead of each trial after the first, s",
}
"""The rows of the table of overheads: their names in the file, and on the page."""


def overhead(content: Content) -> str:
    """Show the cost of a trial beyond its own work."""
    sweeps = content["sweeps"]
    tables = rows(
        ["", *sweeps],
        [(words, *(spread(entry[name]) for entry in sweeps.values())) for name, words in OVERHEAD_ROWS.items()],
    )
    memory, records = content["memory"], content["records"]
    workers = " and ".join(f"{entry['resident']:.0f}" for entry in memory["workers, MiB"])
    shared = max(entry["of the object store"] for entry in memory["workers, MiB"])

    def share(name: str) -> str:
        return f"{100 * records[name]:.2f} %"

    tensorboard, checkpoints = share("TensorBoard's share by its calls"), share("checkpoints' share, one every 30 s")
    return (
        f"{tables}\n\nTwo workers share a dataset of {shared:.1f} MiB and take {workers} MiB at most. TensorBoard "
        f"takes {tensorboard} of a trial's\ntime, and checkpoints every 30 s take {checkpoints}."
    )


def sharing(content: Content) -> str:
    """Show the seconds of a sweep whose trials share pretrainings, and of the same sweep without."""
    words = {"alone": "each trial pretrains (`--no-share`)", "shared": "trials share pretrainings (default)"}
    return rows(
        [f"{content['trials']} trials", "seconds from start to exit", "times faster"],
        [
            (words[kind], spread(content["seconds"][kind]), spread(content["faster"]) if kind == "shared" else "–")
            for kind in ("alone", "shared")
        ],
    )


def evaluations(content: Content) -> str:
    """Show the seconds of a sweep and of evaluations of its encoders."""
    sweep = content["seconds"]["sweep"]["median"]
    names = ["first evaluation", "second evaluation"]
    body = [("the sweep", content["encoders"], "–", spread(content["seconds"]["sweep"]), "–")]
    for name, trials, files in zip(names, content["evaluations"], content["new files of features"], strict=True):
        entry = content["seconds"][name]
        body.append((name, trials, files, spread(entry), f"{100 * entry['median'] / sweep:.1f} %"))
    extractions = "extractions (one for each encoder and split)"
    return rows(["", "trials", extractions, "seconds from start to exit", "share of the sweep"], body)


def draw() -> str:
    """Draw the figure of whole sweeps if they were measured; return its Markdown for the page."""
    measured = [
        (title, content)
        for name, title in (("sweep-digits", "seven α on digits"), ("sweep-cifar", "four α, 32×32×3"))
        if (content := measure.load(name)) is not None and not content.get("quick")
    ]
    if not measured:
        return ""
    figure, axes = plt.subplots(
        1, len(measured), figsize=(4.6 * len(measured), 2.4), squeeze=False, layout="constrained"
    )
    for axis, (title, content) in zip(axes[0], measured, strict=True):
        names = list(content["seconds"])
        values = [content["seconds"][name] for name in names]
        middle = [entry["median"] for entry in values]
        error = [
            [m - entry["min"] for m, entry in zip(middle, values, strict=True)],
            [entry["max"] - m for m, entry in zip(middle, values, strict=True)],
        ]
        colours = ["0.65" if name == "plain script" else "C0" for name in names]
        axis.barh(names, middle, xerr=error, color=colours, capsize=3)
        for place, (name, entry) in enumerate(zip(names, values, strict=True)):
            factor = content["times faster than the plain script"].get(name)
            words = f" {entry['median']:.0f} s" + (f", {factor['median']:.1f} ×" if factor else "")
            axis.text(entry["max"] + 0.02 * max(middle), place, words, va="center", fontsize=8)
        axis.set(title=title, xlabel="seconds, start to exit", xlim=(0, 1.35 * max(entry["max"] for entry in values)))
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
    FIGURES.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURES / "performance-sweeps.png", dpi=120)
    plt.close(figure)
    return "![seconds of whole sweeps](figures/performance-sweeps.png)"


FILES = (
    *("sweep-digits", "sweep-cifar", "lightly", "sharing", "evaluate", "epoch", "augmentation", "linear", "means"),
    *("overhead", "growth"),
)
"""The files of results that the tables show."""

TABLES: dict[str, Callable[[], str]] = {
    "machines": machines,
    "figure": draw,
    "sweep-digits": lambda: table("sweep-digits", sweep),
    "sweep-cifar": lambda: table("sweep-cifar", sweep),
    "lightly": lambda: table("lightly", lightly),
    "sharing": lambda: table("sharing", sharing),
    "evaluate": lambda: table("evaluate", evaluations),
    "overhead": lambda: table("overhead", overhead),
}


def main() -> int:
    """Rewrite the page."""
    text = PAGE.read_text(encoding="utf-8")
    for name, make in TABLES.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        assert len(pattern.findall(text)) == 1, f"{PAGE} has no place for {name}"
        text = pattern.sub(lambda match, make=make: f"{match[1]}{make()}\n{match[2]}", text)  # type: ignore[misc]
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
