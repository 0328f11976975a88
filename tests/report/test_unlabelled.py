"""The sentences, tables and figures about points whose evaluated images have no labels, from constructed results."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest

from raysweep.report.building import build_tables, drawings_of, read
from raysweep.report.choosing import agreement
from raysweep.report.final_table import summary_table
from raysweep.report.summary import summary_md
from raysweep.report.tables import differences_csv, summary_csv
from raysweep.report.unlabelled import CAUTION, agreement_sentences
from raysweep.results.sweep_events import layout, metrics_by_group
from raysweep.space import Agreement
from tests.report.test_report import fill_with

RANKME = "label_free/embedding_rankme"
BASE = {"probe_labels": False, "label_free": True}
SEARCH = {"strength": [0.25, 0.5, 1], "seed": [0, 1, 2]}


def measured(trial):
    """Return measures: RankMe chooses strength 0.5, LiDAR of the trunk chooses 1, and α-ReQ of the trunk 0.25."""
    strength = trial.settings.strength
    noise = 0.01 * np.sin(10 * strength + 100 * trial.settings.seed)
    return {
        RANKME: 20 - 10 * abs(strength - 0.5) + noise,
        "label_free/embedding_lidar": 5 - abs(strength - 0.5) + noise,
        "label_free/trunk_lidar": 10 + strength + noise,
        "label_free/trunk_alpha_req": 1 + strength + noise,
    }


def report_of(tmp_path, metrics_of=measured, **raw):
    store, sweep = fill_with(tmp_path, {"name": "u", "base": BASE, "search": SEARCH, **raw}, metrics_of)
    return read(store, sweep)


def test_the_sentences_name_the_choice_and_the_choices_of_other_measures(tmp_path):
    first, second, third, *rest = report_of(tmp_path, baseline=True).in_words()
    assert first.startswith(f"{RANKME} chooses strength=0.5 (")
    assert first.endswith(", mean of 3 seeds).")
    assert second.startswith(
        f"In {RANKME} the chosen point is above every other ranked point; the closest is strength=0.25, +2.4"
    )
    assert third == (
        "label_free/embedding_lidar chooses the same point; label_free/trunk_lidar chooses strength=1.0; "
        "label_free/trunk_alpha_req chooses strength=0.25."
    )
    assert [line.partition(",")[0] for line in rest] == ["The points were evaluated without labels"]
    assert not any("beats" in line or "accura" in line for line in (first, second, third, *rest))


def test_what_is_true_of_the_whole_sweep_has_a_heading_after_several_protocols(tmp_path):
    one = report_of(tmp_path / "one")
    assert one.sections()[-1] == ("", [CAUTION])
    several = report_of(tmp_path / "several", search={**SEARCH, "probe_dataset": ["digits", "digits_m"]})
    headings = [heading for heading, _ in several.sections()]
    assert headings == ["With probe_dataset=digits", "With probe_dataset=digits_m", "The whole sweep"]
    assert several.in_words()[-2:] == ["The whole sweep:", CAUTION]
    assert f"\n\nThe whole sweep:\n\n- {CAUTION}\n" in summary_md(several)


@pytest.mark.parametrize(("seeds", "words"), [([0], "One seed cannot tell"), ([0, 1], "Two seeds cannot tell")])
def test_few_seeds_give_a_choice_without_a_verdict(tmp_path, seeds, words):
    report = report_of(tmp_path, search={**SEARCH, "seed": seeds})
    first, second, third = report.in_words()[:3]
    assert first.startswith(f"{RANKME} chooses strength=0.5 (")
    assert second == f"{words} which differences are real."
    assert third.startswith("Next: run at least three seeds")


def test_the_choice_of_a_point_is_the_greatest_mean_over_seeds(tmp_path):
    rng = np.random.default_rng(3)
    drawn = {}

    def metrics(trial):
        drawn.setdefault(trial.point, []).append(value := float(rng.uniform(1, 50)))
        return measured(trial) | {RANKME: value}

    report = report_of(tmp_path, metrics)
    best = max(drawn, key=lambda point: np.mean(drawn[point]))
    assert report.in_words()[0] == f"{RANKME} chooses {best} ({np.mean(drawn[best]):.4f}, mean of 3 seeds)."
    assert [ranked[0].name for ranked in report.ranked] == [best]


def test_other_methods_and_widths_are_named_as_a_reason_to_doubt(tmp_path):
    search = {"usl_type": ["simclr", "byol"], "embedding_dim": [8, 16], "seed": [0, 1, 2]}
    words = report_of(tmp_path, search=search).in_words()
    assert "RankMe is meant for runs of one method, and the points differ in usl_type and embedding_dim." in words
    assert not any("meant for runs" in line for line in report_of(tmp_path / "same").in_words())


def test_a_single_point_is_no_choice(tmp_path):
    report = report_of(tmp_path, search={"seed": [0, 1, 2]}, baseline=True)
    mean = np.mean([measured(trial)[RANKME] for trial in report.members[0].sweep.trials if not trial.baseline])
    assert report.in_words() == [
        f"default is the only point that can be ranked ({RANKME} {mean:.4f}, mean of 3 seeds)."
    ]


def test_a_single_trial_is_described_by_its_measures(tmp_path):
    assert report_of(tmp_path, search={}).in_words()[0].startswith(f"{RANKME} 19.99")


def test_equal_measures_are_called_equal(tmp_path):
    words = report_of(tmp_path, lambda trial: measured(trial) | {RANKME: 7.0}).in_words()
    points = "strength=0.25, strength=0.5 and strength=1.0"
    assert words[0] == f"{RANKME} chooses no point: {points} are equal in {RANKME}, seed by seed."


def test_points_with_the_same_mean_are_named_as_a_tie(tmp_path):
    def metrics(trial):
        strength, seed = trial.settings.strength, trial.settings.seed
        value, sign = 1.0 if strength == 0.25 else 3.0, -1 if strength == 1 else 1
        rank = value + sign * (0.5, 0, -0.5)[seed]
        return {RANKME: rank, "label_free/trunk_rankme": value, "label_free/trunk_lidar": 2.0}

    words = report_of(tmp_path, metrics).in_words()
    assert words[0] == f"{RANKME} chooses strength=0.5 and strength=1.0 equally (3.0000, mean of 3 seeds)."
    assert words[1].startswith(f"In {RANKME} strength=0.5 shows no difference from strength=1.0 (+0.0000 [")
    assert any(
        "label_free/trunk_lidar chooses no point, because all are equal" in line
        and "label_free/trunk_rankme chooses the same points" in line
        for line in words
    )


def test_a_metric_of_which_less_is_better_is_in_the_table_and_in_the_right_sentence(tmp_path):
    def metrics(trial):
        power = np.log10(trial.settings.usl_lr)
        return measured(trial) | {"pretrain/loss": power + 0.01 * np.sin(7 * power + 100 * trial.settings.seed)}

    search = {"usl_lr": [1e-4, 1e-3, 1e-2], "seed": [0, 1, 2]}
    report = report_of(tmp_path, metrics, search=search, tune={"metric": "pretrain/loss"})
    words = report.in_words()
    assert words[0].startswith("pretrain/loss chooses usl_lr=0.0001 (")
    assert words[1].startswith("In pretrain/loss (less is better) the chosen point is below every other ranked point; ")
    assert "; the closest is usl_lr=0.001, -" in words[1]
    assert "| point | n | pretrain/loss | label_free/embedding_rankme" in summary_md(report)
    assert "pretrain\nloss" in [column.header for column in summary_table(report, 300)[0].columns]


def test_points_without_a_measure_are_no_candidates(tmp_path):
    def metrics(trial):
        values = measured(trial)
        if trial.settings.strength == 0:
            values = {name: value for name, value in values.items() if not name.endswith("lidar")}
        return values

    words = report_of(tmp_path, metrics, search={"strength": [0, 0.5, 1], "seed": [0, 1, 2]}).in_words()
    assert any("label_free/trunk_lidar chooses strength=1.0 among 2 of 3 points" in line for line in words)
    lidar = {"metric": "label_free/trunk_lidar"}
    words = report_of(tmp_path / "lidar", tune=lidar).in_words()
    assert "LiDAR depends on the augmentation, and the points differ in strength." in words
    report = report_of(tmp_path / "lacks", metrics, search={"strength": [0, 0.5, 1], "seed": [0, 1, 2]})
    report = replace(report, metric="label_free/trunk_lidar")
    assert "strength=0.0 is not ranked: no seed has label_free/trunk_lidar." in report.doubts()


def test_a_metric_that_no_point_reports_is_named(tmp_path):
    """LiDAR is left out for a trunk that is too wide, which nobody knows before the trials run."""

    def narrow(trial):
        values = measured(trial)
        if trial.settings.strength != 1:
            del values["label_free/trunk_lidar"]
        return values

    def narrow_but_for_one_seed(trial):
        wide = {"label_free/trunk_lidar"} if trial.settings.seed == 1 else set()
        return {name: value for name, value in narrow(trial).items() if name not in wide}

    lidar = {"metric": "label_free/trunk_lidar"}
    search = {"strength": [0.25, 0.5], "seed": [0, 1, 2]}
    assert report_of(tmp_path / "wide", narrow, tune=lidar, search=search).in_words() == [
        "No point is called best: no point reports label_free/trunk_lidar."
    ]
    words = ["No point is called best: no point has label_free/trunk_lidar in all its planned seeds."]
    raw = {"base": BASE, "search": SEARCH, "tune": lidar}
    assert read(*fill_with(tmp_path, {"name": "a", **raw}, narrow_but_for_one_seed)).in_words() == words
    store, sweep = fill_with(tmp_path, {"name": "u", **raw}, narrow)
    (store.trial("strength=1.0,seed=1") / "result.json").unlink()
    report = read(store, sweep)
    assert report.in_words() == words
    assert report.doubts()[0] == "strength=1.0 is not ranked: 1 of its 3 seeds did not finish."


def test_settings_without_effect_are_no_reason_to_doubt(tmp_path):
    search = [
        {"usl_type": ["simclr"], "seed": [0, 1, 2]},
        {"usl_type": ["ae_parallel"], "emb_loss": ["l1"], "seed": [0, 1, 2]},
    ]
    words = report_of(tmp_path, search=search).in_words()
    assert "RankMe is meant for runs of one method, and the points differ in usl_type." in words


def test_the_sweep_says_why_it_cannot_tell_how_well_a_measure_ranks_its_points(tmp_path):
    def scored(trial):
        return measured(trial) | {"linear/test_accuracy": 0.5, "linear/val_accuracy": 0.5}

    raw = {"base": {"label_free": True}, "tune": {"metric": RANKME}}
    report = report_of(tmp_path, scored, **raw)
    reason = agreement(report, RANKME)
    assert reason == f"no seed has 3 points that differ in {RANKME} and in linear/test_accuracy"
    sweep = report.members[0].sweep
    evaluation = replace(sweep, encoders=sweep.trials, agreement=reason)
    assert agreement_sentences(evaluation) == [
        f"The sweep cannot tell how well this measure ranks its points: {reason}."
    ]
    assert agreement(report, "label_free/trunk_rankme") is None, "the sweep did not report it"


def test_the_interval_of_the_agreement_has_its_confidence_and_a_sweep_that_ran_is_named(tmp_path):
    sweep = report_of(tmp_path).members[0].sweep
    agreement = Agreement(RANKME, "linear/test_accuracy", "digits", 3, 3, 0.5, 0.1, 0.9, unfinished=2)
    [text] = agreement_sentences(replace(sweep, encoders=sweep.trials, agreement=agreement))
    assert "is +0.50 [+0.10, +0.90] over 3 points (mean of 3 seeds, with the 95 % interval over seeds)." in text
    assert text.endswith("When the evaluation started, 2 trials of the sweep had not ended.")
    one = replace(agreement, seeds=1, low=None, high=None, unfinished=0)
    assert "(one seed)" in agreement_sentences(replace(sweep, encoders=sweep.trials, agreement=one))[0]


def test_tables_have_measures_and_the_differences_of_the_metric_that_chooses(tmp_path):
    report = report_of(tmp_path, baseline=["random", "pixels"])
    text = summary_md(report)
    assert "## Measures without labels" in text
    assert "## Difference from the chosen point" in text
    assert "Difference from the random" not in text
    assert "above chosen" not in text
    assert "accurac" not in text
    columns = next(csv.reader(io.StringIO(summary_csv(report))))
    assert f"{RANKME} mean" in columns
    assert not any(" minus " in name for name in columns)
    rows = list(csv.DictReader(io.StringIO(differences_csv(report))))
    assert {row["score"] for row in rows} == {RANKME}
    assert len(rows) == 3
    table, left_out = summary_table(report, 300)
    assert [column.header for column in table.columns][1] == "n"
    assert not left_out
    assert len(table.columns) == 6


def test_figures_show_measures_beyond_one(tmp_path):
    report = report_of(tmp_path, baseline=True)
    drawn = {name: draw() for name, draw in drawings_of(report).items()}
    assert [name for name, figure in drawn.items() if figure is not None] == ["strength"]
    panels = drawn["strength"].axes
    assert panels[0].get_title() == "label free embedding rankme"
    assert {panel.get_ylabel() for panel in panels} == {"measure"}
    assert panels[0].get_ylim()[1] > 20


def test_searches_and_heatmaps_show_measures_too(tmp_path):
    search = {"strength": [0.25, 0.5, 1], "usl_lr": [1e-4, 1e-3], "seed": [0, 1, 2]}
    drawn = drawings_of(report_of(tmp_path / "grid", search=search))
    assert drawn["strength_x_usl_lr"]().axes[0].get_title().startswith("label free embedding rankme")
    search = {"strength": {"uniform": [0.1, 1]}, "usl_lr": {"loguniform": [1e-4, 1e-2]}}
    drawn = drawings_of(report_of(tmp_path / "drawn", search=search, tune={"num_samples": 10}))
    assert drawn["strength"]().axes[0].get_ylabel() == "measure"
    assert drawn["parallel_coordinates"]() is not None
    search = {"usl_type": ["simclr", "byol"], "seed": [0, 1, 2]}
    figure = drawings_of(report_of(tmp_path / "kinds", search=search, baseline=True))["comparison"]()
    assert {axes.get_xlabel() for axes in figure.axes} == {"measure"}


def test_tensorboard_opens_the_measures(tmp_path):
    store, sweep = fill_with(tmp_path, {"name": "u", "base": BASE, "search": SEARCH}, measured)
    build_tables(store, sweep)
    groups = metrics_by_group(sweep.examples)
    assert set(groups) == {"Loss", "Rank and spread of the embedding", "Measures without labels", "Other"}
    assert not any(category.closed for category in layout(groups).category)


def test_the_measures_can_choose_among_labelled_points_without_being_scored_by_themselves(tmp_path):
    def scored(trial):
        scores = {"linear/test_accuracy": 0.5 + 0.1 * trial.settings.strength, "linear/val_accuracy": 0.5}
        return measured(trial) | scores

    raw = {"base": {"label_free": True}, "tune": {"metric": RANKME}}
    section = summary_md(report_of(tmp_path, scored, **raw)).partition("## Choosing without labels")[2]
    assert "linear/test_accuracy | below the best by |" in section
