"""Sentences about points whose evaluated images have no labels: the choice of a measure, and why it can be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from raysweep.config import SETTINGS, Settings
from raysweep.parts import Chooses
from raysweep.report.choosing import LEAST_POINTS, MEASURES, Scale, tau_words, usable
from raysweep.report.points import LEAST_SEEDS, Point, mean_of
from raysweep.report.sentences import few_seeds, listed, others_sentence
from raysweep.report.verdicts import Group, same_experiment
from raysweep.space import Sweep
from raysweep.system.terminal import counted

CAUTION = (
    "The images have no labels, so nothing could check this choice, and it can be wrong. Label some images and "
    "evaluate again before you rely on it."
)
READING = (
    "High values of RankMe and LiDAR are good, and α-ReQ is best near 1. A difference is a mean over seeds. Its "
    "adjusted interval follows it in brackets."
)
NETWORK = ("method", "encoder", "head", "loss")
"""The kinds of parts that decide what the embedding is. RankMe compares runs in which they are the same."""


def choice_sentences(group: Group, metric: str, searched: Sequence[str], is_evaluation: bool) -> list[str]:
    """Say which point the metric chooses, from which points it shows no difference, and what other measures choose.

    Args:
        group: The points, of which at least one competes.
        metric: The metric that chooses.
        searched: The settings that the sweep varies.
        is_evaluation: Whether the points are evaluations of trained encoders, whose seeds are fixed.
    """
    best = group.ranked[0]
    others = [point for point in group.ranked[1:] if not same_experiment(point, best)]
    count = len(best.by_seed)
    value = f"{mean_of(best, metric):.4f}, {'one seed' if count == 1 else f'mean of {count} seeds'}"
    if not others:
        return [f"{best.title} is the only point that can be ranked ({metric} {value})."]
    lines = [f"{metric} chooses {best.title} ({value})."]
    if count < LEAST_SEEDS:
        lines.append(f"{few_seeds(count)} which differences are real.")
        lines.append(
            "Next: pretrain at least three seeds; an evaluation has the seeds of its encoders."
            if is_evaluation
            else "Next: run at least three seeds, for example `--set 'seed=[0,1,2]'`."
        )
    else:
        lines.append(others_sentence(best, others, group.families[metric]))
    lines += [text for text in (others_choose(group, metric, searched), method_sentence(group, metric)) if text]
    return lines


def others_choose(group: Group, metric: str, searched: Sequence[str]) -> str:
    """Say which points the other measures choose; empty without other measures."""
    best = group.ranked[0]
    choices: dict[str, list[str]] = {}
    for measure, scale in usable(group.points, searched).items():
        measured = [point for point in group.points if not point.missing and point.values(measure)]
        if measure != metric and len(measured) > 1:
            choices.setdefault(chosen(measured, measure, scale).title, []).append(measure)
    if not choices:
        return ""
    agreeing = choices.pop(best.title, [])
    if not choices:
        verb = "chooses" if len(agreeing) == 1 else "choose"
        return f"{listed(agreeing)} {verb} the same point."
    words = [
        f"{listed(names)} {'chooses' if len(names) == 1 else 'choose'} {title}" for title, names in choices.items()
    ]
    if agreeing:
        words.insert(0, f"{listed(agreeing)} {'chooses' if len(agreeing) == 1 else 'choose'} the same point")
    return f"{'; '.join(words)}."


def chosen(points: Sequence[Point], measure: str, scale: Scale) -> Point:
    """Return the point whose mean of a measure is best. All points have the measure."""
    return max(points, key=lambda point: fmean(map(scale, point.values(measure))))


def method_sentence(group: Group, metric: str) -> str:
    """Warn that RankMe compares runs of one method, if the points differ in it; else return an empty text.

    Garrido et al. 2023 (arXiv 2210.02885) say so, because the rank is not the only thing that decides about a score.
    """
    names = [name for name in SETTINGS if decides_embedding(name)]
    differ = [name for name in names if len({str(getattr(point.settings, name)) for point in group.points}) > 1]
    if not metric.endswith("rankme") or not differ:
        return ""
    return f"RankMe is meant for runs of one method, and the points differ in {listed(differ)}."


def decides_embedding(name: str) -> bool:
    """Return whether a setting chooses the method or the network, or is the width of the embedding."""
    marks = Settings.model_fields[name].metadata
    return name == "embedding_dim" or any(isinstance(mark, Chooses) and mark.kind in NETWORK for mark in marks)


def agreement_sentences(sweep: Sweep) -> list[str]:
    """Say how well the measure ranked the points of the sweep that trained the encoders, or how to find this out."""
    if not sweep.encoders:
        return []
    known = sweep.agreement
    if known is not None:
        tau = tau_words(known.tau, known.low, known.high, known.seeds)
        return [
            f"In the sweep, on {known.dataset}, Kendall's τ between {known.measure} and {known.score} is {tau} over "
            f"{known.points} points (mean of {counted(known.seeds, 'seed')}): 1 means the same order of the points, 0 "
            "no relation, -1 the reverse. On other images it can differ."
        ]
    points = {trial.point for trial in sweep.encoders if not trial.baseline and trial.settings.probe_labels}
    if len(points) < LEAST_POINTS or sweep.metric not in MEASURES:
        return []
    return [
        "Evaluate the sweep on labelled images with `label_free=true` to see how well this measure ranks its points "
        "there."
    ]
