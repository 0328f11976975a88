"""What `--dry-run` prints: what differs from the defaults, the plan, and the trials."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from raysweep.config import Settings
from raysweep.space import Resources, Sweep, missing_words, race_words, to_yaml, words_without_labels
from raysweep.space.hints import long_defaults, seeds_apart
from raysweep.space.model import Tune
from raysweep.space.sharing import taking_over
from raysweep.system.terminal import counted, duration

if TYPE_CHECKING:
    from raysweep.estimate import Estimate


def lines_of(
    sweep: Sweep,
    known: Collection[str] | None,
    local: bool,
    verbose: bool,
    estimate: Estimate | None = None,
    share: bool = True,
    done: Collection[str] = (),
) -> Iterator[str]:
    """Yield the lines of a dry run: a search-space file of the sweep, then comments, then the names of the trials.

    The names are not commented out, so the search-space file ends at the first comment.

    Args:
        sweep: The checked sweep.
        known: For a resume: the names of the trials that the existing sweep has; the others are marked as new.
        local: Whether the trials would run in one process.
        verbose: Whether to write every setting. Otherwise settings that have their defaults are left out.
        estimate: How long the sweep would take; None if nobody asked.
        share: Whether trials share pretrainings.
        done: For a resume: the names of the trials that have ended.
    """
    content = sweep.to_dict() if verbose else brief(sweep)
    if sweep.encoders:  # an evaluation knows the race of its encoders, but takes no such entry
        content.pop("seeds", None)
    text = to_yaml(content)
    # For example, a character could reverse the direction of the text on a terminal.
    if not all(line.isprintable() for line in text.splitlines()):
        text = to_yaml(content, ascii_only=True)
    yield text
    if not verbose:
        yield "# All other settings have their defaults; --verbose shows them."
    yield from (f"# {line}" for line in plan(sweep, local, share, done))
    if estimate is not None:
        yield from (f"# {line}" for line in words_of(estimate))
        if sweep.race is not None and not sweep.encoders:
            yield "# This is the first round of the race."
    left = sweep.tune.num_samples - len(sweep.proposed) if sweep.tune.searcher != "none" else 0
    yield f"# {counted(sweep.total, 'trial')}{':' if sweep.trials else '.'}"
    for trial in sweep.trials:
        notes = [] if known is None or trial.name in known else ["new"]
        notes += [f"continues {trial.continues}"] if trial.continues else []
        yield f"{trial.name}  # {', '.join(notes)}" if notes else trial.name
    if left > 0:
        seeds = ", ".join(map(str, sweep.seeds))
        plural = "" if len(sweep.seeds) == 1 else "s"
        points = f"{counted(left, 'point')} while the sweep runs"
        yield f"# {sweep.tune.searcher} proposes {points}, each with the seed{plural} {seeds}."


def brief(sweep: Sweep) -> dict[str, Any]:
    """Return the sweep as the shortest search-space file that rebuilds it: without the values that are defaults.

    For an evaluation this is the search-space file that `raysweep evaluate` takes, without the list of encoders.
    """
    content = sweep.to_dict()
    sections: list[tuple[str, BaseModel]] = [("tune", Tune()), ("resources", Resources())]
    if content.pop("encoders", None) is None:  # the base of an evaluation has only the settings that were given
        sections.append(("base", Settings()))
    for section, defaults in sections:
        usual = defaults.model_dump()
        content[section] = {name: value for name, value in content[section].items() if value != usual[name]}
    if len(content["search"]) == 1:
        content["search"] = content["search"][0]
    return {name: value for name, value in content.items() if value or name == "name"}


def plan(sweep: Sweep, local: bool, share: bool = True, done: Collection[str] = ()) -> Iterator[str]:
    """Yield what the sweep would do, in words: pretrainings, epochs, and what each trial gets.

    The trials in `done` do not run again, and a trial that continues a shorter one needs only the epochs after it.
    """
    if sweep.encoders:
        yield f"Plan: {counted(len(sweep.encoders), 'encoder')}, without pretraining."
    taking = taking_over(sweep, done) if share else frozenset()
    examples = [trial for trial in sweep.examples if trial.name not in done]
    trained = [trial for trial in examples if trial.source is None and trial.settings.pretrain_epochs]
    whole = {trial.name: trial.settings.pretrain_epochs for trial in sweep.trials}
    before = {trial.name: whole[trial.continues] for trial in sweep.trials if trial.continues}
    epochs = [t.settings.pretrain_epochs - before.get(t.name, 0) for t in trained if t.name not in taking]
    if sweep.race is not None and not sweep.encoders:
        listed = "" if sweep.rounds else " The first ones are listed."
        yield f"Plan: {race_words(sweep)}.{listed} More seeds go to points that are not separated."
    if done:
        yield f"{counted(len(done), 'trial')} {'has' if len(done) == 1 else 'have'} ended and will not run again."
    if epochs and sweep.tune.searcher == "none":
        total = f", {sum(epochs):,} in all" if len(epochs) > 1 else ""
        shared = f" that share {counted(len(epochs), 'pretraining')}" if taking else " with pretraining"
        each = " each" if len(trained) > 1 else ""
        yield f"Plan: {counted(len(trained), 'trial')}{shared}, {epochs_in_words(epochs)}{each}{total}."
    elif epochs:
        yield f"Plan: {epochs_in_words(epochs)} of pretraining for each trial."
    resources = sweep.resources
    if local:
        yield "The trials run one after the other in one process."
    else:
        gpus = f"{resources.gpu:g} GPU" if resources.gpu else "no GPU"
        workers = f"{resources.workers} processes with " if resources.workers > 1 else ""
        yield f"Each trial gets {workers}{counted(resources.cpu, 'core')} and {gpus} (resources.cpu, resources.gpu)."
    notes = (words_without_labels(sweep), missing_words(sweep), seeds_apart(sweep), long_defaults(sweep))
    yield from filter(None, notes)


def epochs_in_words(epochs: Sequence[int]) -> str:
    """Return the least and the greatest number of epochs in words, such as `20 epochs` or `1 to 5 epochs`."""
    least, most = min(epochs), max(epochs)
    return f"{most:,} epoch{'' if most == 1 else 's'}" if least == most else f"{least:,} to {most:,} epochs"


def words_of(estimate: Estimate) -> list[str]:
    """Return an estimate as sentences."""
    shortest, longest = duration(estimate.shortest), duration(estimate.longest)
    each = longest if shortest == longest else f"{shortest} to {longest}"
    return [
        f"Estimate: {duration(estimate.total)} with {estimate.at_once} at a time, {each} for a trial.",
        "The estimate is from a few timed steps of each kind of trial on this machine.",
        "It leaves out linear probes of single blocks, and most probes that are off by default.",
    ]
