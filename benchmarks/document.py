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

import check
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
    """Give the command, the date and the commit, with a warning if the file holds only a quick run."""
    machine = content["machine"]
    words = f"`{content['command']}`, {machine['date'][:10]}, commit {machine['commit']}."
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


def targets() -> str:
    """List all targets with their verdicts."""
    return rows(
        ["target", "asked", "measured", ""],
        [(target.words, target.asked(), *check.verdict(target)) for target in check.TARGETS],
    )


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


def within_plain(content: Content) -> str:
    """Show where the trials of the plain script spend their time."""
    trials = content["trials of the last turn"]["plain script"]
    total = {name: sum(entry[name] for entry in trials) / len(trials) for name in ("pretraining_s", "linear_s")}
    ours = {
        name: sum(entry["wall_s"] for entry in runs) / len(runs)
        for name, runs in content["trials of the last turn"].items()
        if name != "plain script"
    }
    words = "; ".join(f"{name}, {seconds:.1f} s" for name, seconds in ours.items())
    return (
        f"A mean trial of the plain script pretrains for {total['pretraining_s']:.1f} s and evaluates for "
        f"{total['linear_s']:.1f} s.\nA whole mean trial takes: {words}."
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


def epoch(content: Content) -> str:
    """Show ratios, rates, and shares of the machine's peak."""
    head = [
        "",
        "epoch / bare step",
        "within an experiment",
        "images/s",
        "GFLOP/s of the bare step",
        "share of the peak",
    ]
    share = "share of the matrix products' rate"
    body = []
    for name, case in content["cases"].items():
        within = case["epoch within an experiment over bare"]
        if within is None:
            continue
        body.append(
            (
                name,
                spread(case["epoch over bare"]),
                f"{within:.3f}",
                f"{case['images per second']['median']:.0f}",
                f"{case['GFLOP per second']:.4g}",
                f"{100 * case[share]:.0f} %" if share in case else "–",
            )
        )
    rates = content["matrix products, GFLOP per second"]
    peak = ", ".join(f"{name} {max(entry.values()):.4g}" for name, entry in rates.items())
    return f"{rows(head, body)}\n\nMatrix products on one thread reach, in GFLOP per second: {peak}."


def augmentation(content: Content) -> str:
    """Show microseconds per image."""
    cases = content["cases"]
    names = list(next(iter(cases.values()))["microseconds per image"])
    body = []
    for name, case in cases.items():
        each = [spread(case["microseconds per image"][entry]) for entry in names]
        body.append((name, *each, " and ".join(f"{entry['median']:.1f}" for entry in case["times faster"].values())))
    return rows(["µs per image", *names, "times faster"], body)


def linear(content: Content) -> str:
    """Show the seconds of 300 epochs."""
    body = [
        (
            f"{name}, {case['work']['images']} images",
            *map(spread, case["seconds"].values()),
            spread(case["times faster"]),
        )
        for name, case in content["cases"].items()
    ]
    first = next(iter(content["cases"].values()))
    few = first["work"]["epochs measured of those encoded anew, then scaled"]
    note = f"We measured {few} epochs of encoding anew, and scaled the time to {first['work']['epochs']} epochs."
    return rows(["seconds", *first["seconds"], "times faster"], body) + f"\n\n{note}"


def means(content: Content) -> str:
    """Show how many times faster each change is than the unchanged step."""
    cases = {shape: case["times faster than as it is"] for shape, case in content["cases"].items()}
    names = dict.fromkeys(name for entry in cases.values() for name in entry)
    tables = rows(
        ["changed", *cases],
        [(name, *(spread(entry[name]) if name in entry else "–" for entry in cases.values())) for name in names],
    )
    body = []
    for shape, cases in content["memory"].items():
        for precision, entry in cases.items():
            faults = " and ".join(f"{count:.0f}" for count in entry["page faults per step"].values())
            body.append((f"{shape}, {precision}", spread(entry["times faster"]), faults))
    head = ["freed memory kept", "times faster", "page faults per step, given back and kept"]
    return tables + (f"\n\n{rows(head, body)}" if body else "")


def growth(content: Content) -> str:
    """Show the rates by size of the batch, and by processes and threads."""
    sections = []
    if "batch" in content:
        cases = content["batch"]["images per second"]
        sizes = list(next(iter(cases.values())))
        body = [(shape, *(f"{entry[size]['median']:.0f}" for size in sizes)) for shape, entry in cases.items()]
        sections.append(rows(["images per second", *(f"batch {size}" for size in sizes)], body))
    if "cores" in content:
        cases = content["cores"]["images per second"]
        names = list(next(iter(cases.values())))
        body = [(shape, *(f"{entry[name]['median']:.0f}" for name in names)) for shape, entry in cases.items()]
        sections.append(rows(["images per second in all", *names], body))
    return "\n\n".join(sections)


OVERHEAD_ROWS = {
    "total, s": "whole sweep, s",
    "total / (trials' own seconds / slots)": "whole sweep / (trials' work / cores)",
    "each further trial, overhead s": "overhead of each trial after the first, s",
    "from the last trial's end to the command's, s": "from the last trial's end to the command's, s",
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

    body = [
        ("the dataset that two workers share, MiB", f"{shared:.1f}"),
        ("the two workers at their largest, resident, MiB", workers),
        ("TensorBoard, share of a trial's time", share("TensorBoard's share by its calls")),
        ("checkpoints, one every 30 s, share of a trial's time", share("checkpoints' share, one every 30 s")),
    ]
    return f"{tables}\n\n{rows(['', 'measured'], body)}"


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


FILES = ("sweep-digits", "sweep-cifar", "lightly", "epoch", "augmentation", "linear", "means", "overhead", "growth")
"""The files of results that the tables show."""

TABLES: dict[str, Callable[[], str]] = {
    "machines": machines,
    "targets": targets,
    "figure": draw,
    "sweep-digits": lambda: table("sweep-digits", lambda entry: f"{sweep(entry)}\n\n{within_plain(entry)}"),
    "sweep-cifar": lambda: table("sweep-cifar", lambda entry: f"{sweep(entry)}\n\n{within_plain(entry)}"),
    "lightly": lambda: table("lightly", lightly),
    "epoch": lambda: table("epoch", epoch),
    "augmentation": lambda: table("augmentation", augmentation),
    "linear": lambda: table("linear", linear),
    "means": lambda: table("means", means),
    "overhead": lambda: table("overhead", overhead),
    "growth": lambda: table("growth", growth),
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
