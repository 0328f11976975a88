"""Sentences about points that were evaluated without labels: the choice of a measure, and why it can be wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from raysweep.config import SETTINGS, Settings, about, has_effect
from raysweep.parts import Chooses
from raysweep.report.choosing import LEAST_POINTS, MEASURES, best_by, tau_words, usable
from raysweep.report.points import LEAST_SEEDS, confidence
from raysweep.report.sentences import (
    alone_words,
    best_titles,
    few_seeds,
    first_names,
    joined_words,
    named,
    others_sentence,
    tie_words,
    value_words,
)
from raysweep.report.verdicts import Group
from raysweep.space import Agreement, Sweep
from raysweep.system.terminal import counted

CAUTION = (
    "The points were evaluated without labels, so nothing could check this choice, and it can be wrong. Evaluate them "
    "on labelled images before you rely on it."
)
READING = "High values of RankMe and LiDAR are good, and α-ReQ is best near 1."
NETWORK = ("method", "encoder", "head", "loss")
"""The kinds of parts that decide what the embedding is. RankMe compares runs in which they are the same."""


def choice_sentences(group: Group, more: str) -> list[str]:
    """Say which point the metric chooses, from which points it shows no difference, and what other measures choose.

    Args:
        group: The points. At least one point competes.
        more: The sentence that says how to get enough seeds for a verdict.
    """
    if not group.rivals:
        return [f"{alone_words(group)}."]
    if group.best:
        titles = best_titles(group)
        equally = " equally" if len(titles) > 1 else ""
        lines = [f"{group.metric} chooses {first_names(titles)}{equally} ({value_words(group)})."]
    else:
        lines = [f"{group.metric} chooses no point: {tie_words(group, [group.metric])}"]
    if group.best and len(group.ranked[0].by_seed) < LEAST_SEEDS:
        lines += [f"{few_seeds(len(group.ranked[0].by_seed))} which differences are real.", more]
    elif group.best:
        subject = "the chosen point" if len(best_titles(group)) == 1 else group.ranked[0].title
        lines.append(others_sentence(group, group.families[group.metric], subject))
    lines += [others_choose(group), method_sentence(group, group.metric)]
    return [line for line in lines if line]


def others_choose(group: Group) -> str:
    """Say which points the other measures choose, and among how many if some points lack the measure."""
    points = group.complete
    choices: dict[tuple[bool, str], list[str]] = {}
    for measure, scale in usable(points).items():
        measured = [point for point in points if not point.lacks(measure)]
        if measure != group.metric and len(measured) > 1:
            chosen = best_by(measured, measure, scale)
            if not chosen:
                continue
            lacks = "" if len(measured) == len(points) else f" among {len(measured)} of {len(points)} points"
            agrees = [point.title for point in chosen] == [point.title for point in group.best]
            words = ("the same point" if len(chosen) == 1 else "the same points") if agrees else named(chosen)
            if len(chosen) > 1 and not agrees:
                words = "no point, because all are equal" if len(chosen) == len(measured) else f"{words} equally"
            choices.setdefault((not agrees, f"{words}{lacks}"), []).append(measure)
    texts = [
        f"{joined_words(names)} {'chooses' if len(names) == 1 else 'choose'} {words}"
        for (_, words), names in sorted(choices.items(), key=lambda item: item[0][0])
    ]
    return f"{'; '.join(texts)}." if texts else ""


def method_sentence(group: Group, metric: str) -> str:
    """Warn if the points differ in something that the metric depends on besides quality; else return an empty text.

    Garrido et al. 2023 (arXiv 2210.02885) compare the ranks of runs of one method only. LiDAR is computed on augmented
    views.
    """
    if metric.endswith("rankme"):
        differ = list(differing(group, [name for name in SETTINGS if decides_embedding(name)]))
        words = "RankMe is meant for runs of one method"
    elif metric.endswith("lidar"):
        differ = list(differing(group, [name for name in SETTINGS if about(name).group == "Augmentation"]))
        words = "LiDAR depends on the augmentation"
    else:
        return ""
    return f"{words}, and the points differ in {joined_words(differ)}." if differ else ""


def differing(group: Group, names: Sequence[str]) -> Iterator[str]:
    """Yield the settings that differ between the points, counting only values that have an effect."""
    for name in names:
        values = {str(getattr(point.settings, name)) for point in group.points if has_effect(name, point.settings)}
        if len(values) > 1:
            yield name


def decides_embedding(name: str) -> bool:
    """Return whether a setting chooses the method or the network, or is the width of the embedding."""
    marks = Settings.model_fields[name].metadata
    return name == "embedding_dim" or any(isinstance(mark, Chooses) and mark.kind in NETWORK for mark in marks)


def agreement_sentences(sweep: Sweep) -> list[str]:
    """Say how well the measure ranked the points of the sweep that trained the encoders, or how to find this out."""
    if not sweep.encoders:
        return []
    if isinstance(sweep.agreement, Agreement):
        return [tau_sentence(sweep.agreement)]
    points = {trial.point for trial in sweep.encoders if not trial.baseline and trial.settings.probe_labels}
    if len(points) < LEAST_POINTS or sweep.metric not in MEASURES:
        return []
    if sweep.agreement is not None:
        return [f"The sweep cannot tell how well this measure ranks its points: {sweep.agreement}."]
    return [
        "Evaluate the sweep on labelled images with `label_free=true` to see how well this measure ranks its points "
        "there."
    ]


def tau_sentence(agreement: Agreement) -> str:
    """Return Kendall's τ between the measure and the score of the sweep, with its meaning."""
    tau = tau_words(agreement.tau, agreement.low, agreement.high, agreement.seeds)
    seeds = "one seed" if agreement.seeds == 1 else f"mean of {agreement.seeds} seeds"
    if agreement.seeds >= LEAST_SEEDS:
        seeds += f", with the {100 * confidence(agreement.divisor):.5g} % interval over seeds"
    text = (
        f"In the sweep, on {agreement.dataset}, Kendall's τ between {agreement.measure} and {agreement.score} is {tau} "
        f"over {agreement.points} points ({seeds}). A τ of 1 means the same order of the points, 0 no relation, and -1 "
        "the reverse. On other images τ can differ."
    )
    if agreement.unfinished:
        text += f" When the evaluation started, {counted(agreement.unfinished, 'trial')} of the sweep had not ended."
    return text
