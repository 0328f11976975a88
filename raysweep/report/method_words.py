"""The paragraph of a report that says how its intervals and verdicts are computed."""

from __future__ import annotations

from raysweep.report.contents import Report
from raysweep.report.points import divisor_of, percent


def method(report: Report) -> str:
    """Say how the intervals and verdicts of a report are computed."""
    points, labels = report.points, report.has_labels
    divisor = divisor_of(points)
    runs = "evaluations of one encoder" if report.one_encoder else "runs"
    race = (
        ""
        if divisor == 1
        else " The seeds were a race: after every round a look at the results decided which points get more seeds. The "
        "looks, and the tables of pairs and of each control, divide the error of 5 % into "
        f"{divisor} equal parts (Bonferroni). So every interval is at {percent(points)}, and every p-value is "
        f"multiplied by {divisor}. The points are ranked by their means adjusted for the seeds that some of them lack. "
        "The mean of a point that left the race early tends to lie a little too far from the best one."
    )
    images = (
        f" All seeds share one division of the images. So the intervals cover differences between {runs}, and not the "
        "choice of the test images."
        if labels
        else f" All seeds share the images. So the intervals cover differences between {runs}, and not the choice of "
        "the images."
    )
    scope = (
        "Each score, each evaluation protocol and each control (such as the random encoder of one architecture)"
        if labels
        else "Each measure and each evaluation protocol"
    )
    return (
        f"{'Scores' if labels else 'Measures'} are modelled as point + seed + residual. Intervals are at "
        f"{percent(points)}. Dunnett's method adjusts the differences of all points from a control, and Tukey's method "
        f"adjusts the differences of all pairs of points. {scope} is adjusted separately. Both methods use the "
        "residual spread of all points together. A test compares the spreads of the points. If the result is unclear, "
        "each interval uses the larger of the pooled spread and the spread of its two points. If the spreads clearly "
        "differ, each pair has the spread of its differences, and Holm's method adjusts them. A simulated sweep of "
        "seven equal points shows a false difference in at most 5 % of cases, or in up to 11 % with three seeds and "
        "very unequal spreads. Page's trend test and a quadratic contrast test how "
        f"{'a score' if labels else 'a measure'} depends on a numeric setting. Each seed counts once: its values are "
        "first averaged over the other varied settings."
        f"{images}{race}"
    )
