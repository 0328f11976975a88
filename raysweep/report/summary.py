"""The page `summary.md`: the answer first, then the tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from raysweep import parts
from raysweep.config import metrics_by_name
from raysweep.errors import printable
from raysweep.report.choosing import rankings, words_of
from raysweep.report.contents import Report
from raysweep.report.method_words import method
from raysweep.report.points import LEAST_SEEDS, Point, block_scores, evaluates_one, has_block_scores, percent
from raysweep.report.sentences import NAMES, first_names, joined_words, numbers_and_count, verdict
from raysweep.report.statistics import Difference
from raysweep.report.tables import cell, differing, markdown, name_columns, names_of
from raysweep.report.unlabelled import READING
from raysweep.report.verdicts import MOST_PAIRED, Group
from raysweep.results.result import Result
from raysweep.system.terminal import counted

MOST_WARNINGS = 20
"""Most warnings that are listed; for the others only their number is given."""
STOPPED = "Trials that were stopped early have no test score and are in no mean."
SATURATED = 0.97
"""A random encoder with a higher accuracy leaves no room for differences."""


def summary_md(report: Report) -> str:
    """Return the summary: sentences, then tables, in Markdown."""
    sections = report.sections()
    text = [f"# {report.name}"]
    for heading, lines in sections:
        text += [f"{printable(heading)}:"] if heading else []
        text.append("\n".join(f"- {printable(line)}" for line in lines))
    text += [how_to_read(report)] if sections and not report.single else []
    remarks = notes(report)
    if remarks:
        text += ["Note:", "\n".join(f"- {printable(line)}" for line in remarks)]
    text += ["## Scores" if report.has_labels else "## Measures without labels", *overview(report)]
    columns = report.columns
    rows = [
        [*names_of(report, point), len(point.by_seed), *(cell(point, name) for name in columns)]
        for point in report.points
    ]
    text.append(markdown([*name_columns(report), "n", *columns], rows))
    text += [section for control in controls_of(report) for section in control_section(report, control)]
    text += best_section(report) + choosing_section(report) + blocks_section(report) + list(ended_sections(report))
    if report.groups and not report.single:
        text += ["## Method", method(report)]
    return "\n\n".join(text) + "\n"


def how_to_read(report: Report) -> str:
    """Say how the sentences and tables of differences are read."""
    if not report.has_labels:
        return f"{READING} {difference_words(report)} The adjusted interval of a difference follows it in brackets."
    others = [name for name in report.columns if not is_accuracy(name)]
    which = f"All scores except {joined_words(others)} are" if others else "All scores are"
    interval = f"The adjusted {percent(report.points)} interval of a difference follows it in brackets."
    return f"{which} accuracies between 0 and 1. {difference_words(report)} {interval}"


def difference_words(report: Report) -> str:
    """Say what a difference is."""
    if not any(map(lacks_seeds, report.groups)):
        return "A difference is a mean over the n seeds that both have."
    return (
        "A difference is between two means that are adjusted for the seeds that a point lacks, and n is the number of "
        "seeds that both have. If the spreads clearly differ, a difference with an interval is a mean over these seeds."
    )


def lacks_seeds(group: Group) -> bool:
    """Return whether a point or a control of a group lacks some of the seeds in which others have the same score."""
    for score in group.families:
        controls = [point.control_scores(control, score) for point in group.points for control in point.controls]
        seeds = {frozenset(by_seed) for by_seed in (*controls, *(point.scores(score) for point in group.points))}
        if len(seeds - {frozenset()}) > 1:
            return True
    return False


def is_accuracy(score: str) -> bool:
    """Return whether more of a score is better and 1 is most."""
    metric = metrics_by_name()[score]
    return metric.better == "max" and metric.highest == 1


def averages(report: Report) -> str:
    """Say what the numbers in the table of the points are."""
    return (
        f"Mean over the n seeds of a point ± half of the {percent(report.points)} Student-t interval of the mean; "
        f"fewer than {LEAST_SEEDS} seeds have no interval."
    )


def overview(report: Report) -> list[str]:
    """Say how many trials have run, how to read the table, and how the settings of several sweeps differ."""
    lines = []
    for member in report.members:
        ended = [result.status for result in member.results]
        stopped = f", {ended.count('stopped')} stopped early" if "stopped" in ended else ""
        lines.append(
            f"{f'{member.label}: ' if report.several else ''}{ended.count('finished')} of {member.sweep.total} "
            f"trials finished{stopped}, {ended.count('failed')} failed."
        )
    if report.single:
        return lines
    reading = averages(report)
    if not report.several:
        return [f"{lines[0]} {reading}"]
    seeds = [
        sorted({seed for point in report.points if point.sweep == member.label for seed in point.planned})
        for member in report.members
    ]
    rows = [
        [name, *(first_names([str(value) for value in values]) if values else "–" for values in by_sweep)]
        for name, by_sweep in {**differing(report), "seed": seeds}.items()
        if len({frozenset(map(repr, values)) for values in by_sweep}) > 1
    ]
    differ = ["Where the sweeps' settings differ:", markdown(["setting", *(m.label for m in report.members)], rows)]
    borrowed = [
        f"{name} is compared with {joined_words([NAMES.get(each, each) for each in controls])} of another sweep. The "
        "trials are the same: they are equal in seed and in every setting that has an effect on them."
        for name, controls in borrowed_controls(report).items()
    ]
    changed = [
        f"The pretraining images of dataset {name} are not the same ones in all sweeps, so points of different sweeps "
        "that have the same settings count as different experiments."
        for name in dict.fromkeys(point.settings.dataset for point in report.points if point.images)
    ]
    changed += [
        f"The plugin of {part} is not the same in all sweeps, so points of different sweeps that use this part and "
        "have the same settings count as different experiments."
        for part in dict.fromkeys(part for point in report.points for part in point.code)
    ]
    return ["\n".join(f"- {line}" for line in lines), *(differ if rows else []), *changed, *borrowed, reading]


def borrowed_controls(report: Report) -> dict[str, list[str]]:
    """Return, for each sweep that borrows controls from another sweep for some seed, these controls."""
    present = {
        (point.sweep, point.control, seed) for point in report.points if point.baseline for seed in point.by_seed
    }
    borrowed: dict[str, list[str]] = {}
    for point in report.points:
        for control, by_seed in point.controls.items():
            lent = any((point.sweep, control, seed) not in present for seed in by_seed)
            if lent and control not in borrowed.setdefault(point.sweep, []):
                borrowed[point.sweep].append(control)
    return {name: controls for name, controls in borrowed.items() if controls}


def notes(report: Report) -> list[str]:
    """Return the reasons to doubt some scores, and the remarks about data and evaluation that apply to this report."""
    lines = report.doubts()
    if len(report.groups) > 1:
        lines.append(
            "Scores of different evaluation protocols are not comparable, so the points of each protocol are ranked "
            "separately."
        )
    twins = [f"{point.title} counts as {point.experiment}" for point in report.points if point.same_as]
    if twins:
        lines.append(
            "Some experiments are in several sweeps. In sentences, in differences and in the order of the points each "
            f"of them counts once, with the seeds of all its sweeps: {first_names(twins)}. Means of scores are for "
            "each sweep alone."
        )
    if not report.single and any(group.incomplete for group in report.groups):
        lines.append(
            "Points that lack planned seeds, or lack the metric in some seeds, are marked as incomplete in the tables "
            "of differences. The missing seeds may have worse scores, so the verdicts about these points may be too "
            "good."
        )
    for member in report.members:
        of_member = [point for point in report.points if point.sweep == member.label and not point.baseline]
        if evaluates_one(member.sweep) and any(len(point.by_seed) >= LEAST_SEEDS for point in of_member):
            lines.append(
                f"{f'{member.label}: ' if report.several else ''}All seeds evaluate the same encoder. So the intervals "
                "cover differences between its evaluations, and not between pretrainings."
            )
    randoms = [point for point in report.points if point.control == "random"]
    saturated = [
        score
        for score in report.scores
        if is_accuracy(score) and any(mean_above(point, score, SATURATED) for point in randoms)
    ]
    if saturated:
        lines.append(
            f"The random encoder already reaches more than {100 * SATURATED:.0f} % in {' and '.join(saturated)}, so "
            "this task leaves little room for differences."
        )
    precisions = {
        result.precision
        for member in report.members
        for result in member.results
        if result.settings.get("precision") == "auto"
    } - {""}
    if len(precisions) > 1:
        lines.append(
            "`precision: auto` resolved to bf16 on some machines and to fp32 on others (`results.csv` says where). Set "
            "it to one of them for points that are compared closely."
        )
    return lines


def mean_above(point: Point, score: str, least: float) -> bool:
    """Return whether the mean of a score is above `least`."""
    value = point.estimate(score)
    return value is not None and value.mean > least


def marked_names(report: Report, point: Point) -> list[str]:
    """Return a point's name for a table of differences, where a point that lacks planned seeds is marked."""
    *sweep, name = names_of(report, point)
    is_marked = not point.baseline and point.is_incomplete(report.metric or "")
    return [*sweep, f"{name} (incomplete)" if is_marked else name]


def controls_of(report: Report) -> list[str]:
    """Return the controls with which points are compared."""
    return list(dict.fromkeys(c for group in report.groups for f in group.families.values() for c in f.controls))


def control_section(report: Report, control: str) -> list[str]:
    """Return the section with every point's difference from a control; empty without differences."""
    rows = []
    for group in report.groups:
        for point in group.points:
            differences = [group.families[score].from_control(point, control) for score in report.scores]
            if any(differences):
                rows.append([*marked_names(report, point), *cells(differences, report.scores, control)])
    if not rows:
        return []
    return [
        f"## Difference from {NAMES.get(control, control)}",
        markdown([*name_columns(report), "n", *score_columns(report.scores)], rows),
    ]


def best_section(report: Report) -> list[str]:
    """Return the section with the difference of every other point from the best point, for each protocol."""
    tables = []
    word = "best" if report.has_labels else "chosen"
    for group in report.groups if report.compared else ():
        if not group.best or len(group.points) < 2:
            continue
        best = group.ranked[0]
        rows = []
        for point in group.points:
            if point is not best:
                differences = [group.families[score].between(point, best) for score in report.compared]
                rows.append([*marked_names(report, point), *cells(differences, report.compared, word)])
        several = len(report.groups) > 1 or len(group.best) > 1
        tables += [
            *([f"Each point minus {best.title}:"] if several else []),
            markdown([*name_columns(report), "n", *score_columns(report.compared)], rows),
        ]
    if not tables:
        return []
    which = (
        f"only the pairs with the {word} point, but their intervals are adjusted for all pairs"
        if max(map(paired, report.groups)) > MOST_PAIRED
        else "all pairs of points"
    )
    which += " of the same protocol" if len(report.groups) > 1 else ""
    return [f"## Difference from the {word} point", f"`differences.csv` has {which}.", *tables]


def choosing_section(report: Report) -> list[str]:
    """Return the section that compares measures without labels with the first test score; empty without them."""
    score, tables = report.test_score, []
    for group in report.groups if score else ():
        rows = [words_of(ranking, score) for ranking in rankings(group, score)]
        if rows:
            columns = [
                "measure",
                "points",
                f"Kendall's τ ({percent(report.points)})",
                "chosen point",
                score,
                "below the best by",
            ]
            tables.append(markdown(columns, rows))
    if not tables:
        return []
    reading = (
        f"τ compares the order of the points by each measure with their order by {score}: 1 means the same "
        "order, 0 no relation, -1 the reverse. It is the mean over seeds, with its Student-t interval over seeds. On "
        "another task the order may differ. On images without labels, raysweep chooses by RankMe of the embedding "
        "(Garrido et al. 2023); none of the measures replaces labels."
    )
    if any(point.lacks(score) for group in report.groups for point in group.points):
        reading += f" Points that lack {score} in a planned seed are left out."
    return ["## Choosing without labels", reading, *tables]


def paired(group: Group) -> int:
    """Return the number of points that were compared with one another in a group."""
    return max((family.points for family in group.families.values()), default=0)


def cells(differences: Sequence[Difference | None], scores: Sequence[str], than: str) -> list[str]:
    """Return the greatest number of shared seeds, and for each score the difference and its verdict."""
    count = max((difference.n for difference in differences if difference is not None), default=0)
    pairs = zip(differences, scores, strict=True)
    texts = [[numbers_and_count(item, score, count), verdict(item, than)] for item, score in pairs]
    return [str(count), *chain.from_iterable(texts)]


def score_columns(scores: Sequence[str]) -> list[str]:
    """Return the header of `cells`, without the number of seeds."""
    return [column for score in scores for column in (score, "verdict")]


def blocks_section(report: Report) -> list[str]:
    """Return the section about the linear probes on the encoder's blocks; empty without such probes."""
    points = [point for point in report.points if has_block_scores(point)]
    if not points:
        return []
    rows = [
        [*names_of(report, point), len(point.by_seed), *(cell(point, name) for name in block_scores())]
        for point in points
    ]
    header = [*name_columns(report), "n", *(f"block {block}" for block in range(1, parts.most_blocks() + 1))]
    return ["## Linear probe on every block", "Test accuracy.", markdown(header, rows)]


def ended_sections(report: Report) -> Iterator[str]:
    """Yield the sections about failed and stopped trials, and about the warnings of all trials."""
    results = [
        (f"{member.label}/" if report.several else "", result) for member in report.members for result in member.results
    ]
    for status, title in (("failed", "## Failed"), ("stopped", "## Stopped early")):
        ended = [(prefix, result) for prefix, result in results if result.status == status]
        if ended:
            yield title
            yield "\n".join(f"- {prefix}{result.trial}: {printable(str(result.error))}" for prefix, result in ended)
    if any(result.status == "stopped" for _, result in results):
        yield STOPPED
    remarks = warnings_of(results)
    if remarks:
        yield "## Warnings"
        yield "\n".join(f"- {remark}" for remark in remarks)


def warnings_of(results: Sequence[tuple[str, Result]]) -> list[str]:
    """Return each warning once, with the first trial that gave it and the number of the other trials."""
    trials: dict[str, list[str]] = {}
    for prefix, result in results:
        for warning in result.warnings:
            trials.setdefault(printable(warning), []).append(f"{prefix}{result.trial}")
    lines = [
        f"{warning} ({names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''})"
        for warning, names in trials.items()
    ]
    more = len(lines) - MOST_WARNINGS
    if more <= 0:
        return lines
    return [*lines[:MOST_WARNINGS], f"and {counted(more, 'other warning')}, which the trials' results list"]
