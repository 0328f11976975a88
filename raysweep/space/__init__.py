"""Turning a search-space file into a checked sweep, which is a list of trials. Needs neither torch nor Ray."""

from raysweep.space.building import build
from raysweep.space.checking import check_name
from raysweep.space.controls import CONTROLS, RANDOM
from raysweep.space.encoder_entry import Agreement, EncoderSource
from raysweep.space.evaluation import build_evaluation, missing_words, rebuild
from raysweep.space.expansion import computed, control_settings, draw, make_control, propose, shorten
from raysweep.space.extension import extend
from raysweep.space.labels import short_names
from raysweep.space.model import FrozenDict, Proposal, Resources, Sweep, Trial
from raysweep.space.race import add_round, complete_rounds, race_words
from raysweep.space.race_settings import Race, Round
from raysweep.space.reading import LONGEST_WRITTEN, mapping, parse_assignments, parse_value, read, to_yaml
from raysweep.space.tables import count_tables
from raysweep.space.unlabelled import words_without_labels

__all__ = [
    "CONTROLS",
    "LONGEST_WRITTEN",
    "RANDOM",
    "Agreement",
    "EncoderSource",
    "FrozenDict",
    "Proposal",
    "Race",
    "Resources",
    "Round",
    "Sweep",
    "Trial",
    "add_round",
    "build",
    "build_evaluation",
    "check_name",
    "complete_rounds",
    "computed",
    "control_settings",
    "count_tables",
    "draw",
    "extend",
    "make_control",
    "mapping",
    "missing_words",
    "parse_assignments",
    "parse_value",
    "propose",
    "race_words",
    "read",
    "rebuild",
    "short_names",
    "shorten",
    "to_yaml",
    "words_without_labels",
]
