"""`--dry-run --estimate` times the real steps of each kind of trial once, writes nothing, and says what it found."""

import re

from raysweep import api, space
from raysweep.data.selection import data_of
from raysweep.estimate import FIXED_SECONDS, Costs, estimate, kind_of, time_steps
from raysweep.preparation import load_datasets
from raysweep.space.hints import long_defaults
from tests.support.commands import here


def test_trials_of_one_kind_differ_only_in_seeds_epochs_and_numbers():
    search = {"usl_type": ["ae_single", "simclr"], "strength": [0.2, 0.4], "seed": [0, 1], "usl_epochs": [1, 2]}
    sweep = space.build({"search": search, "baseline": True}, {}, "test")
    assert len({kind_of(trial.settings) for trial in sweep.trials}) == 3, "two methods and the random encoder"


def test_trials_with_and_without_augmentation_are_of_two_kinds(few):
    """At strength 0 nothing is augmented, so a step takes less time."""
    base = {**few, "usl_type": "simclr", "usl_epochs": 1, "le_epochs": 1}
    sweep = space.build({"base": base, "search": {"strength": [0, 0.25, 1], "seed": [0, 1]}}, {}, "test")
    kinds = {trial.settings.strength: kind_of(trial.settings) for trial in sweep.trials}
    assert kinds[0] != kinds[0.25] == kinds[1]
    whole = estimate(sweep, load_datasets(sweep, {}), local=True)
    assert whole.longest > whole.shortest, "each kind is timed"


def test_the_parts_of_a_trial_add_up():
    costs = Costs(epoch=2.0, features=3.0, probe_epoch=0.5)
    trial = space.build({"base": {"usl_epochs": 10, "le_epochs": 4}}, {}, "test").trials[0]
    assert costs.seconds(trial.settings) == FIXED_SECONDS + 10 * 2 + 3 + 4 * 0.5


def test_every_part_of_a_trial_is_timed(few):
    base = {**few, "usl_type": "simclr", "usl_epochs": 1, "le_epochs": 1}
    sweep = space.build({"base": base, "baseline": ["random", "pixels"]}, {}, "test")
    datasets = load_datasets(sweep, {})
    costs = {trial.control: time_steps(trial, data_of(trial, datasets), gpu=False) for trial in sweep.trials}
    assert costs[""].epoch > 0
    assert costs["random"].epoch == costs["pixels"].epoch == 0
    assert all(cost.features > 0 and cost.probe_epoch > 0 for cost in costs.values())
    whole = estimate(sweep, datasets, local=True)
    assert whole.at_once == 1
    assert whole.total >= whole.longest >= whole.shortest >= FIXED_SECONDS


def test_the_command_prints_the_estimate_and_leaves_nothing(tmp_path, few):
    arguments = ["--usl_type", "ae_single", *(f"--{name}={value}" for name, value in few.items()), "--dry-run"]
    process = here("run_sweep.py", *arguments, "--estimate", "--local", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    [line] = [line for line in process.stdout.splitlines() if line.startswith("# Estimate")]
    assert re.fullmatch(r"# Estimate: .+ with 1 at a time, .+ for a trial\.", line)
    assert "# The estimate is from a few timed steps of each kind of trial on this machine." in process.stdout
    assert "# Estimate" not in here("run_sweep.py", *arguments, cwd=tmp_path).stdout, (
        "only on request: it takes seconds"
    )
    assert not list(tmp_path.iterdir())


def test_a_dataset_that_does_not_fit_is_one_line(tmp_path, few):
    process = here(
        "run_sweep.py", "--dataset", few["dataset"], "--batch_size", "5000", "--dry-run", "--estimate", cwd=tmp_path
    )
    assert process.returncode == 2
    assert len(process.stderr.splitlines()) == 1


def test_an_estimate_belongs_to_a_dry_run(tmp_path):
    process = here("run_sweep.py", "--exp_type", "alpha", "--estimate", cwd=tmp_path)
    assert process.returncode == 2
    assert process.stderr == "error: --estimate is for --dry-run; a running sweep shows the time left\n"
    process = here("run_sweep.py", "--resume", "runs/a", "--dry-run", "--estimate", cwd=tmp_path)
    assert process.returncode == 2
    assert process.stderr == "error: --estimate is for a new sweep; a resumed sweep shows the time left\n"


def test_the_plan_of_python_can_be_estimated_too(few):
    sweep = api.plan({"base": {**few, "usl_epochs": 0, "le_epochs": 1}}, {})
    assert api.estimate(sweep, local=True).total > 0


def test_long_defaults_are_named_only_if_nobody_chose_the_epochs():
    def words(**base):
        return long_defaults(space.build({"base": base}, {}, "test"))

    assert words() == "usl_epochs: 400 and le_epochs: 300 are defaults; fewer epochs take less time."
    assert words(le_epochs=10) == "usl_epochs: 400 is a default; fewer epochs take less time."
    assert words(usl_epochs=400) == words(), "the same number"
    assert words(usl_epochs=20) == words(usl_epochs=0) == ""
