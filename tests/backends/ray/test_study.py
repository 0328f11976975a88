"""The Optuna study of a sweep, which other programs may change or delete while the sweep runs."""

import warnings

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from raysweep import space
from raysweep.backends.ray.study import POINT, StudyWriter, open_study
from raysweep.results.store import Store


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'studies.db'}"


@pytest.fixture
def writer(tmp_path, url):
    sweep, store = sweep_of(tmp_path, url)
    return StudyWriter(sweep, store)


def sweep_of(folder, url):
    """Return a sweep with a study, and its results directory."""
    tune = {"searcher": "optuna", "num_samples": 3, "storage": url}
    sweep = space.build({"search": {"alpha": {"uniform": [0, 1]}}, "tune": tune}, {}, "test")
    store = Store(folder / "search")
    return sweep, store if store.root.exists() else store.create(sweep, {})


def point(state, value=None):
    return create_trial(state=state, value=value)


RUNNING, ENDED = point(TrialState.RUNNING), point(TrialState.COMPLETE, 0.5)


def trials_of(url, name="search"):
    return optuna.load_study(study_name=name, storage=url).trials


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_deleted_study_is_reported_once_and_no_other_study_is_written(writer, tmp_path, url, is_replaced):
    writer.write([("a", RUNNING)])
    optuna.delete_study(study_name="search", storage=url)
    if is_replaced:  # SQLite gives it the number of the deleted one
        optuna.create_study(study_name="other", storage=url)
    with pytest.warns(UserWarning, match="the Optuna study was deleted; the sweep continues without a study"):
        writer.write([("a", ENDED)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        writer.write([("a", ENDED), ("b", RUNNING)])
    if is_replaced:
        assert trials_of(url, "other") == []
    again = open_study(*sweep_of(tmp_path, url))
    again.write([("a", ENDED), ("b", RUNNING)])
    assert [(trial.user_attrs[POINT], trial.state.name) for trial in trials_of(url)] == [
        ("a", "COMPLETE"),
        ("b", "RUNNING"),
    ]


def test_trials_that_another_program_adds_or_ends_disturb_no_point(writer, url, monkeypatch):
    other = optuna.load_study(study_name="search", storage=url)
    add = writer.study.add_trial

    def add_with_another(trial):
        add(trial)
        other.add_trial(RUNNING)

    monkeypatch.setattr(writer.study, "add_trial", add_with_another)
    writer.write([("a", RUNNING), ("b", RUNNING)])
    other.tell(next(each.number for each in other.trials if each.user_attrs.get(POINT) == "b"), 0.1)
    writer.write([("b", ENDED), ("a", ENDED)])
    values = {trial.user_attrs.get(POINT): trial.value for trial in trials_of(url)}
    assert values == {"a": 0.5, "b": 0.1, None: None}
