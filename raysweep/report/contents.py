"""The content of a report: its sweeps, their points, and the conclusions."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from raysweep import parts
from raysweep.config import METRICS, metrics_by_name
from raysweep.errors import printable
from raysweep.report.cautions import cautions
from raysweep.report.choosing import differing_objective
from raysweep.report.conclusions import conclusions
from raysweep.report.experiments import join_experiments
from raysweep.report.headings import headings
from raysweep.report.points import COLUMNS, SCORES, Point, evaluates_one, have_labels, shown_scores
from raysweep.report.race_words import race_sentences
from raysweep.report.ranking import rank_points
from raysweep.report.sentences import digits_of, first_names, more_seeds, named
from raysweep.report.unlabelled import CAUTION, agreement_sentences, choice_sentences
from raysweep.report.verdicts import Group, judge
from raysweep.results.result import Result
from raysweep.results.store import Store
from raysweep.space import RANDOM, Sweep, make_control, short_names

MOST_RACERS = 5
"""Largest number of points for which the report of a race gives the number of seeds."""


@dataclass(frozen=True)
class Member:
    """One sweep of a report."""

    store: Store
    sweep: Sweep
    results: Sequence[Result]
    label: str
    """The name of the sweep in a comparison of several sweeps; empty if it is the only one."""


@dataclass(frozen=True)
class Report:
    """The results of one sweep, or of several sweeps together."""

    name: str
    members: Sequence[Member]
    points: Sequence[Point]
    metric: str | None
    """The metric that chooses the best point; None without a validation split, or if it differs between sweeps.

    It is also None if it is a loss that measures something else in some of the points.
    """
    mode: str
    """Whether the greatest ("max") or the least ("min") value of the metric is best."""
    not_drawn: Sequence[str] = ()
    """A line for each figure that could not be drawn, and for the page if it could not be written."""

    @property
    def several(self) -> bool:
        """Whether the report compares several sweeps."""
        return len(self.members) > 1

    @property
    def single(self) -> bool:
        """Whether the report is about one experiment, which has nothing to be compared with."""
        return not self.several and self.members[0].sweep.total == 1

    @property
    def one_encoder(self) -> bool:
        """Whether each sweep is the evaluation of one encoder, so that the seeds are not the seeds of pretraining."""
        return all(evaluates_one(member.sweep) for member in self.members)

    @cached_property
    def has_labels(self) -> bool:
        """Whether the points were evaluated with labels."""
        return have_labels(self.points)

    @cached_property
    def experiments(self) -> list[Point]:
        """The points without the controls. Points of several sweeps that are the same experiment are one point."""
        return join_experiments(self.points)

    @cached_property
    def ranked(self) -> list[list[Point]]:
        """The experiments that compete, best first: a list for each evaluation protocol."""
        return rank_points(self.experiments, self.metric, self.mode)

    @cached_property
    def groups(self) -> list[Group]:
        """The verdicts: a group of experiments for each evaluation protocol. All sentences and tables use them."""
        settings = () if self.several else self.members[0].sweep.searched
        shown = shown_scores(self.points, COLUMNS) if self.has_labels else []
        scores = list(dict.fromkeys([*self.compared, *shown]))
        groups = judge(self.experiments, self.ranked, scores, settings, self.has_labels, self.metric, self.mode)
        words = headings([group.points for group in groups])
        return [replace(group, heading=heading) for group, heading in zip(groups, words, strict=True)]

    @cached_property
    def best(self) -> set[str]:
        """The titles of the points that are called best. A protocol has one, several that tie, or none."""
        best = {point.title for group in self.groups for point in group.best}
        return {point.title for point in self.points if point.experiment in best}

    @cached_property
    def scores(self) -> list[str]:
        """The test scores that any point has. Without labels it is empty.

        The first one is the score of the chosen metric. A metric of pretraining, say, has none.
        """
        if not self.has_labels:
            return []
        chosen = str(self.metric).replace("val_accuracy", "test_accuracy")
        is_score = chosen in METRICS and metrics_by_name()[chosen].uses_test
        return shown_scores(self.points, list(dict.fromkeys([*([chosen] if is_score else []), *SCORES])))

    @cached_property
    def columns(self) -> list[str]:
        """The metrics in the main table. The metric that chooses is always one of them."""
        names = shown_scores(self.points, COLUMNS)
        is_absent = self.metric is not None and self.metric not in names
        chooses = [self.metric] if is_absent and any(point.values(str(self.metric)) for point in self.points) else []
        return [*map(str, chooses), *names]

    @property
    def compared(self) -> list[str]:
        """The metrics in which points are compared with each other: the scores, or the metric that chooses."""
        return self.scores if self.has_labels or self.metric is None else [self.metric]

    @property
    def test_score(self) -> str:
        """The first score that reads test images; empty without one."""
        return next((name for name in self.scores if metrics_by_name()[name].uses_test), "")

    def in_words(self, scores: int | None = None) -> list[str]:
        """Return the conclusions as a list of sentences. The heading of a section is a line of its own; see `sections`.

        Args:
            scores: the number of test scores to speak about; None for all of them.
        """
        return [
            line for heading, lines in self.sections(scores) for line in ([f"{heading}:", *lines] if heading else lines)
        ]

    def sections(self, scores: int | None = None) -> list[tuple[str, list[str]]]:
        """Return the conclusions as sections, which consist of a heading and sentences.

        If there are several protocols, each protocol has a section. A further section has the sentences that hold for
        every protocol, and another one is about the whole sweep. The sections of a report with one protocol have an
        empty heading.
        """
        words = self.general_words()
        if words is not None:
            return [("", words)] if words else []
        sweeps = [member.sweep for member in self.members]
        more = more_seeds(
            any(sweep.encoders for sweep in sweeps),
            any(sweep.race and not sweep.encoders for sweep in sweeps),
            self.one_encoder,
        )
        sections = [(group.heading, self.words_of_group(group, scores, more)) for group in self.groups]
        if len(sections) > 1:
            first, *others = (lines for _, lines in sections)
            same = [line for line in first if all(line in lines for lines in others)]
            sections = [(heading, [line for line in lines if line not in same]) for heading, lines in sections]
            sections.append(("For every protocol", same))
        rest = [CAUTION] if any(group.ranked[1:] for group in self.groups) and not self.has_labels else []
        for member in self.members:
            prefix = f"{member.label}: " if self.several else ""
            best = {point.name for point in self.points if point.title in self.best and point.sweep == member.label}
            words = (
                race_sentences(member.sweep, MOST_RACERS, best)
                if self.has_labels
                else agreement_sentences(member.sweep)
            )
            rest += [f"{prefix}{line}" for line in words]
        whole = "All sweeps" if self.several else "The whole sweep"
        sections.append((whole if len(self.groups) > 1 else "", rest))
        return [(heading, lines) for heading, lines in sections if lines]

    def general_words(self) -> list[str] | None:
        """Return the conclusions of a report in which nothing can be ranked; None if something may be ranked."""
        if not self.groups:
            ended = any(not result.baseline for member in self.members for result in member.results)
            return ["No point is called best: no trial of any point finished."] if ended else []
        if self.single:
            return [f"{words_of_score(self.points[0], self.columns)}."] if self.columns else []
        return None if self.metric is not None else [f"No point is called best: {without_metric(self)}."]

    def words_of_group(self, group: Group, scores: int | None, more: str) -> list[str]:
        """Return the conclusions about the points of one protocol."""
        if group.ranked and not self.has_labels:
            return choice_sentences(group, more)
        if group.ranked:
            return conclusions(group, self.scores[:scores], more, without_random(self, group.ranked[0]))
        if group.complete:
            what = f"has {self.metric} in all its planned seeds" if group.incomplete else f"reports {self.metric}"
            return [f"No point is called best: no point {what}."]
        which = f"has {self.metric} in" if any(not point.missing for point in group.points) else "has"
        return [f"No point is called best: none of {named(group.points)} {which} all its planned seeds."]

    def counts(self) -> str:
        """Return how many trials have ended, in words: `20 finished, 3 stopped early, 1 failed`."""
        ended: Counter[str] = Counter(result.status for member in self.members for result in member.results)
        ended["unfinished"] = sum(member.sweep.total for member in self.members) - ended.total()
        words = {"finished": "finished", "stopped": "stopped early", "failed": "failed", "unfinished": "not finished"}
        return ", ".join(f"{ended[s]} {word}" for s, word in words.items() if ended[s] or s == "finished")

    def seconds(self) -> float:
        """Return the time that all ended trials took together. A pretraining that was continued counts once."""
        return sum(result.wall_s - result.continued_s for member in self.members for result in member.results)

    def doubts(self) -> list[str]:
        """Return a sentence for each reason to doubt the scores of some points."""
        return [*without_seeds(self), *cautions(self.groups)]


def without_seeds(report: Report) -> list[str]:
    """Return a line that names the points with ended trials but no finished one; empty without such points.

    Another line names the points whose encoders an evaluation lacks.
    """
    names, without_encoder = [], []
    for member in report.members:
        labels = short_names(member.sweep)
        points = {t.name: labels.get(t.point, t.point) for t in member.sweep.trials if not t.baseline}
        ended = [(points[result.trial], result.status) for result in member.results if result.trial in points]
        finished = {point for point, status in ended if status == "finished"}
        prefix, planned = f"{member.label}/" if report.several else "", {t.point for t in member.sweep.trials}
        names += [f"{prefix}{point}" for point in dict.fromkeys(point for point, _ in ended) if point not in finished]
        lost = dict.fromkeys(t.point for t in member.sweep.missing_trials if t.point not in planned)
        without_encoder += [f"{prefix}{labels.get(point, point)}" for point in lost]
    reasons = ((names, "finished"), (without_encoder, "had an encoder when the evaluation started"))
    return [
        f"{first_names(titles)} {'is' if len(titles) == 1 else 'are'} not ranked: no seed {words}."
        for titles, words in reasons
        if titles
    ]


def without_metric(report: Report) -> str:
    """Say why no metric chooses the best point."""
    if report.several and all(member.sweep.metric for member in report.members):
        metric = report.members[0].sweep.metric
        name = differing_objective(metric, report.points)
        if name and all(member.sweep.metric == metric for member in report.members):
            return f"{metric} cannot be compared between points that differ in {name}"
        return "the sweeps do not choose by the same metric"
    without = [member for member in report.members if member.sweep.metric is None]
    if report.has_labels and len(without) < len(report.members):
        names = [member.label for member in without]
        return f"{first_names(names)} {'has' if len(names) == 1 else 'have'} no metric to choose by"
    if report.has_labels and any(point.settings.val_fraction for point in report.points if not point.baseline):
        return "only some of the points have a validation split to choose by"
    if report.has_labels:
        return "there is no validation split to choose by"
    return "the points were evaluated without labels; set tune.metric to the measure that chooses"


def without_random(report: Report, point: Point) -> str:
    """Say why a point has no random encoder to be compared with, if it has none."""
    start = "There is no random encoder to compare with"
    if not parts.trains(point.settings):
        return f"{start}, because encoder {point.settings.encoder} is not a network."
    if report.several:
        return f"{start}."
    (member,) = report.members
    if RANDOM not in member.sweep.baseline:
        return f"{start}; add `--set baseline=true`."
    status = {result.trial: result.status for result in member.results}
    trials = [make_control(trial, RANDOM) for trial in member.sweep.trials if trial.point == point.name]
    ended = [status.get(trial.name, "") for trial in trials if trial is not None]
    failed = ended.count("failed")
    if "finished" in ended or not ended:
        return f"{start}."
    if failed == len(ended):
        return f"{start}, because {'its trial' if failed == 1 else f'all {failed} of its trials'} failed."
    if len(ended) == 1:
        return f"{start}, because its trial has not finished yet."
    some_failed = f" ({failed} failed)" if failed else ""
    return f"{start}, because none of its {len(ended)} trials has finished yet{some_failed}."


def words_of_score(point: Point, names: Sequence[str]) -> str:
    """Return the scores of a point with one trial: `linear/val_accuracy 0.9650, linear/test_accuracy 0.9583`."""
    return ", ".join(f"{name} {digits_of(point.values(name)[0], name)}" for name in names)


def labels(roots: Sequence[Path]) -> list[str]:
    """Return printable names of directories: the last part of each path, or more of it if these are not unique."""
    names = [root.resolve().name for root in roots]
    if len(set(names)) < len(names):
        common = os.path.commonpath([root.resolve() for root in roots])
        names = [os.path.relpath(root.resolve(), common) for root in roots]
    return [printable(name) for name in names]
