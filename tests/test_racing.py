"""Racing seeds through the real command: rounds, resume after an interrupt, the time budget, and refusals."""

import json
import shutil

import pytest

import raysweep
from raysweep import api
from raysweep.errors import InputError, SweepInterrupted
from raysweep.results.store import Store
from tests.support.commands import here, on_shared_ray
from tests.support.racing import SAME, Interrupting, content, race_of

RACE = ["--set", "seeds.most=4", "--set", "alpha=[0.01, 10]", "--set", "baseline=true"]
QUICK = ["--usl_epochs", "1", "--le_epochs", "2", "--probe_every", "0", "--images_every", "0"]

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def space_of(few):
    """The content of a search-space file with two points, of which each pretrains for one epoch on few images."""
    return race_of(few)


@pytest.fixture(scope="module")
def undisturbed(space_of, tmp_path_factory):
    """The results directory of the race, which ran without Ray to its end."""
    store = Store(api.run(space_of, output=str(tmp_path_factory.mktemp("race")), options=LOCAL).store.root)
    assert json.loads((store.root / "race.json").read_text())["rounds"], "the first seeds do not settle the race"
    return store


LOCAL = api.RunOptions(local=True)


def test_a_race_adds_seeds_until_nothing_is_open(undisturbed):
    recorded = json.loads((undisturbed.root / "race.json").read_text())
    assert recorded["end"] in ("settled", "most")
    assert [each["seeds"] for each in recorded["rounds"]] == list(range(4, 4 + len(recorded["rounds"])))
    _, sweep = Store.open(undisturbed.root)
    for trial in sweep.trials:
        assert undisturbed.result(trial.name).status == "finished"
    seeds = {point: max(t.settings.seed for t in sweep.trials if t.point == point) for point in sweep.proposed}
    for number, each in enumerate(recorded["rounds"], 1):
        assert all(seeds[name] >= 2 + number for name in each["points"] if name in seeds)
    summary = (undisturbed.root / "summary.md").read_text()
    assert "Every point started with 3 seeds" in summary
    assert "The race ended because" in summary


@pytest.mark.parametrize("moment", ["round", "trial"])
def test_an_interrupted_race_resumes_with_the_same_decisions_and_results(moment, space_of, undisturbed, tmp_path):
    with pytest.raises(SweepInterrupted):
        api.run(space_of, output=str(tmp_path), options=LOCAL, progress=Interrupting(moment))
    root = tmp_path / "race"
    assert json.loads((root / "race.json").read_text())["end"] == ""
    assert "The race has not ended; a resume continues it" in "".join(raysweep.open(root).conclusions())
    outcome = api.resume(str(root), options=LOCAL)
    assert outcome.sweep.race_end
    for name in SAME:
        assert content(root, name) == content(undisturbed.root, name), name


def test_a_race_on_ray_makes_the_same_decisions(space_of, undisturbed, tmp_path):
    pytest.importorskip("ray")
    file = tmp_path / "race.yaml"
    file.write_text(json.dumps(space_of))
    one_worker = ["--set", "tune.max_concurrent=1"]  # every round starts its workers, which takes 4 s of a core each
    process = on_shared_ray(file, *one_worker, "--output", tmp_path / "out", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "2 points and 1 control, 3 seeds each, at most 5; 9 to 15 trials" in process.stdout
    root = tmp_path / "out" / "race"
    assert content(root, "race.json") == content(undisturbed.root, "race.json")
    assert content(root, "differences.csv") == content(undisturbed.root, "differences.csv")


def test_the_time_budget_ends_a_race_and_a_resume_continues_it(space_of, undisturbed, tmp_path):
    short = {**space_of, "tune": {"time_budget": 1e-3}}
    outcome = api.run(short, output=str(tmp_path), options=LOCAL)
    assert outcome.sweep.race_end == "budget"
    assert json.loads((tmp_path / "race" / "race.json").read_text())["end"] == "budget"
    outcome = api.resume(str(tmp_path / "race"), None, {"tune.time_budget": None}, options=LOCAL)
    assert content(tmp_path / "race", "race.json") == content(undisturbed.root, "race.json")
    assert api.resume(str(tmp_path / "race"), options=LOCAL).sweep.race_end == outcome.sweep.race_end


def test_a_race_that_its_time_budget_ends_between_two_rounds_has_status_1(undisturbed, tmp_path):
    root = tmp_path / "race"
    shutil.copytree(undisturbed.root, root)
    (root / "race.json").write_text(json.dumps({"rounds": [], "end": ""}))
    for trial in Store.open(undisturbed.root)[1].trials:
        if trial.settings.seed >= 3:  # of a later round
            shutil.rmtree(root / trial.name)
    # The budget is over before the next round begins, and every trial of the first round has its result.
    process = here("run_sweep.py", "--local", "--resume", root, "--set", "tune.time_budget=1e-9", cwd=tmp_path)
    assert json.loads((root / "race.json").read_text()) == {"rounds": [], "end": "budget"}
    assert process.returncode == 1
    last = process.stderr.splitlines()[-1]
    assert last.startswith("the race of seeds has not finished; resume with: ")
    assert last.endswith("run_sweep.py --resume race --local")
    report = here("raysweep", "report", root, cwd=tmp_path)
    assert report.returncode == 1
    assert "the race of seeds has not finished" in report.stderr


def test_a_race_that_has_ended_decides_again_if_one_of_its_trials_must_run_again(undisturbed, tmp_path):
    root = tmp_path / "race"
    shutil.copytree(undisturbed.root, root)
    shutil.rmtree(root / next(trial.name for trial in Store.open(root)[1].trials if not trial.baseline))
    race = json.loads((root / "race.json").read_text())
    (root / "race.json").write_text(json.dumps({**race, "end": "incomparable"}))
    api.resume(str(root), options=LOCAL)
    assert content(root, "race.json") == content(undisturbed.root, "race.json")
    assert content(root, "differences.csv") == content(undisturbed.root, "differences.csv")


def test_a_race_refuses_other_points_and_another_correction(space_of, undisturbed):
    place = str(undisturbed.root)
    for changed, name in (({"alpha": [0.01, 1, 10]}, "search"), ({"seeds.most": 6}, "seeds"), ({"le_epochs": 3}, "le")):
        with pytest.raises(InputError, match=f"{name}.*: cannot change in a race of seeds") as refusal:
            api.plan_resume(place, None, changed, LOCAL)
        assert "\n" not in str(refusal.value)


def test_an_evaluation_of_a_race_keeps_its_correction(undisturbed):
    planned = api.plan_evaluation(str(undisturbed.root), None, {"knn_k": 3}, LOCAL)
    assert planned.sweep.divisor == Store.open(undisturbed.root)[1].divisor == 6
    assert not planned.sweep.races
    with pytest.raises(InputError, match="seeds: an evaluation has the seeds of its encoders"):
        api.plan_evaluation(str(undisturbed.root), {"seeds": {"most": 4}}, {}, LOCAL)


@pytest.mark.parametrize("more", [[], ["--verbose"]])
def test_a_dry_run_of_an_evaluation_of_a_race_is_a_search_space_of_it(more, undisturbed, tmp_path):
    command = ["raysweep", "evaluate", undisturbed.root]
    first = here(*command, "--set", "knn_k=3", "--dry-run", *more, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    (tmp_path / "again.yaml").write_text(first.stdout.partition("\n# ")[0])
    again = here(*command, "again.yaml", "--dry-run", *more, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.stdout


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["seed=[0,1]"], "seeds: a race gives every point the seeds 0, 1, 2, …; remove the setting seed"),
        (["seed=3"], "remove the setting seed"),
        (["seeds.least=1"], "seeds.least"),
        (["seeds.least=5"], "seeds: least: 5 is above most: 4"),
        (["seeds.most=2"], "seeds.most"),
        (["seeds.mots=4"], "seeds"),
        (["seeds.until=never"], "seeds.until"),
        (["tune.scheduler=asha"], "seeds: a race adds trials, and tune.scheduler: asha stops some"),
        (["tune.searcher=optuna", "tune.num_samples=2"], "seeds: a race needs all points from the start"),
        (["alpha=1", "baseline=false"], "seeds: one point has nothing to race with"),
        (["val_fraction=0"], "seeds: a race needs a best point"),
    ],
)
def test_what_a_race_cannot_do_is_refused_in_one_line(changes, message, refused):
    words = [word for change in changes for word in ("--set", change)]
    given = {change.partition("=")[0] for change in changes}
    race = [w for pair in zip(RACE[::2], RACE[1::2]) if pair[1].partition("=")[0] not in given for w in pair]
    assert message in refused("--dataset", "digits", *QUICK, *race, *words, "--dry-run")


def test_drawn_points_are_refused(tmp_path):
    space = {"search": {"alpha": {"uniform": [0, 1]}}, "seeds": {"most": 4}, "tune": {"num_samples": 3}}
    with pytest.raises(InputError, match="seeds: a race cannot draw points at random"):
        api.plan(space, {})


def test_a_dry_run_says_how_many_trials_a_race_may_have(run_sweep):
    lines = run_sweep("--dataset", "digits", *QUICK, *RACE, "--dry-run").stdout
    assert "2 points and 1 control, 3 seeds each, at most 4; 9 to 12 trials" in lines
    assert "seeds:\n  most: 4\n" in lines
