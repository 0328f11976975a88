"""`raysweep.trainable` in Tuners that a user makes, on one Ray that all tests share."""

import itertools
import logging
import math
from pathlib import Path

import pandas
import pytest
import ray
import torch
from PIL import Image
from ray import tune
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining

import raysweep
from raysweep.backends.ray.open_trainable import adapted, load_data, read_config
from raysweep.config import make_settings
from raysweep.data.selection import select_data
from raysweep.errors import InputError
from raysweep.portable import load
from raysweep.results.checkpoints import load_plain
from raysweep.training.compute import resident
from raysweep.training.loop import pretrain
from raysweep.training.state import fresh_state
from tests.support.shared_ray import init_patiently

BASE = {"usl_type": "simclr", "usl_epochs": 2, "le_epochs": 1}
METRIC = "online/knn_val_accuracy"
ALONE = 1.5  # of the two CPUs: trials run one after the other, in one worker and with one thread each


@pytest.fixture(scope="module", autouse=True)
def one_ray():
    """A Ray that the user has started, whose workers must find raysweep by themselves."""
    init_patiently(num_cpus=2, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def base(few):
    """The settings of a short trial."""
    return {**few, **BASE, "images_every": 0, "projector_images": 0}


def fit(folder, space, callbacks=(), cpus=ALONE, **options):
    """Run a Tuner of the user, and return its ResultGrid."""
    tuner = tune.Tuner(
        tune.with_resources(raysweep.trainable, {"cpu": cpus}),
        param_space=space,
        tune_config=tune.TuneConfig(reuse_actors=True, **{"metric": METRIC, "mode": "max", **options}),
        run_config=tune.RunConfig(name="mine", storage_path=str(folder), verbose=0, callbacks=list(callbacks)),
    )
    return tuner.fit()


def states(path):
    """Return the contents of all checkpoints of a trial, in their order."""
    files = sorted(Path(path).glob("checkpoint_*/checkpoints/*.pt"))
    return [load_plain(file) for file in files]


def test_the_trainable_reports_every_metric_each_epoch_to_tune_and_to_trackers(tmp_path, base):
    callbacks = []
    try:
        import mlflow
        from ray.air.integrations.mlflow import MLflowLoggerCallback
    except ImportError:
        mlflow = None
    else:
        place = (tmp_path / "mlruns").as_uri()
        callbacks.append(MLflowLoggerCallback(tracking_uri=place, experiment_name="mine"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        grid = fit(tmp_path, {**base, "strength": tune.grid_search([0.0, 1.0])}, callbacks)
        assert not grid.errors
        table = grid.get_dataframe()
        if mlflow is not None:
            runs = mlflow.tracking.MlflowClient(place).search_runs(["0", *experiments(mlflow, place)])
            assert sorted(run.data.metrics["linear/test_accuracy"] for run in runs) == sorted(
                table["linear/test_accuracy"]
            )
    alone = raysweep.run({"base": base, "search": {"strength": [0, 1]}}, output=tmp_path / "runs", local=True).frame()
    for name in ("linear/test_accuracy", "knn/test_accuracy", "kmeans/nmi", "pretrain/loss", METRIC):
        mine = dict(zip(table["config/strength"], table[name]))
        assert mine == dict(zip(alone["strength"], alone[name])), name
    for result in grid:
        log = pandas.read_csv(Path(result.path, "progress.csv"))  # Tune's own CSV logger
        assert list(log["epoch"]) == [1, 2, 2]
        assert list(log["training_iteration"]) == [1, 2, 3]
        assert log[METRIC].notna().all()
        assert [math.isnan(value) for value in log["linear/test_accuracy"]] == [True, True, False]
        with result.checkpoint.as_directory() as directory:
            assert load(Path(directory))(torch.rand(2, 3, 8, 8)).shape == (2, 512)


def experiments(mlflow, place):
    return [each.experiment_id for each in mlflow.tracking.MlflowClient(place).search_experiments()]


def test_asha_stops_a_trainable_between_epochs(tmp_path, base):
    asha = ASHAScheduler(grace_period=1, max_t=10, reduction_factor=2)
    # The second trial hardly learns, so its loss is larger.
    space = {**base, "usl_epochs": 3, "usl_lr": tune.grid_search([1e-3, 1e-8])}
    grid = fit(tmp_path, space, scheduler=asha, metric="pretrain/loss", mode="min")
    assert not grid.errors
    assert [result.metrics["epoch"] for result in grid] == [3, 1]


def test_a_trainable_that_pbt_perturbs_continues_from_the_checkpoint_of_its_donor(tmp_path, base):
    pbt = PopulationBasedTraining(
        time_attr="training_iteration",
        perturbation_interval=2,
        quantile_fraction=0.5,
        resample_probability=1.0,
        hyperparam_mutations={"usl_lr": tune.loguniform(1e-4, 1e-2), "strength": tune.uniform(0.1, 1)},
        synch=True,
    )
    space = {**base, "usl_epochs": 4, "usl_lr": tune.grid_search([1e-6, 1e-3]), "strength": 0.5}
    # If both trials ran at once, one could still be saving when the other becomes its donor. Ray 2.60 then ends that
    # trial after its next checkpoint.
    grid = fit(tmp_path, space, cpus=ALONE, scheduler=pbt)
    assert not grid.errors
    histories = [states(result.path) for result in grid]
    perturbed = continued = 0
    for mine, donor in (histories, histories[::-1]):
        for before, after in itertools.pairwise(mine):
            is_copy = any(state["losses"] == after["losses"] for state in donor)  # of a donor that had finished
            if before["settings"] == after["settings"] or is_copy:
                continue
            perturbed += 1
            given = [state for state in donor if state["losses"] == after["losses"][:-1]]
            assert given, "its first epochs are the donor's epochs"
            settings = make_settings(after["settings"], "test")
            assert given[0]["settings"]["usl_lr"] != settings.usl_lr
            assert given[0]["settings"]["strength"] != settings.strength
            continued += same_weights(one_epoch_on(given[0], settings), after["state"]["method"])
    assert perturbed == continued >= 1
    assert {result.metrics["epoch"] for result in grid} == {4}


def one_epoch_on(given, settings):
    """Train one epoch from a checkpoint under other settings; return the weights."""
    data = select_data(settings, {}, load=True)
    state = fresh_state(settings, *data.pretrain.shape[1:3], torch.device("cpu"))
    state.load_state_dict(given["state"])
    for group in state.optimizers[0].param_groups:
        group["lr"] = settings.usl_lr
    next(pretrain(settings, state, resident(data.pretrain, torch.device("cpu"))))
    return state.method.state_dict()


def same_weights(one, other):
    return all(torch.equal(one[name], other[name]) for name in other)


def test_optuna_searches_over_the_last_score_of_a_trainable(tmp_path, base):
    optuna = pytest.importorskip("ray.tune.search.optuna")
    space = {**base, "usl_epochs": 1, "strength": tune.uniform(0, 1), "probe_every": 0}
    grid = fit(tmp_path, space, search_alg=optuna.OptunaSearch(seed=0), num_samples=3, metric="linear/val_accuracy")
    assert not grid.errors
    assert len(set(grid.get_dataframe()["config/strength"])) == 3
    assert grid.get_best_result().metrics["linear/val_accuracy"] == max(grid.get_dataframe()["linear/val_accuracy"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning:hpbandster")
def test_bohb_pauses_a_trainable_and_continues_it(tmp_path, base):
    pytest.importorskip("ConfigSpace")
    pytest.importorskip("hpbandster")
    from ray.tune.schedulers import HyperBandForBOHB
    from ray.tune.search.bohb import TuneBOHB

    scheduler = HyperBandForBOHB(time_attr="training_iteration", max_t=4, reduction_factor=2)
    space = {**base, "usl_epochs": 3, "strength": tune.uniform(0, 1)}
    grid = fit(tmp_path, space, cpus=1, scheduler=scheduler, search_alg=TuneBOHB(seed=0), num_samples=3)
    assert not grid.errors
    for result in grid:
        epochs = [state["state"]["epoch"] for state in states(result.path)]
        assert epochs == sorted(epochs), "a paused trial continues where it was"
        assert epochs[0] == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"alpah": 1}, "trainable: unknown key 'alpah', did you mean 'alpha'"),
        ({"usl_lr": -1}, "usl_lr"),
        ({"checkpoint_every": 0}, "checkpoint_every: must be a whole number of epochs, at least 1, not 0"),
    ],
)
def test_a_faulty_setting_of_a_trainable_is_one_line(config, message):
    with pytest.raises(InputError, match=r"^trainable: ") as caught:
        read_config({**BASE, **config})
    assert message in str(caught.value)


def test_data_that_a_trainable_cannot_use_are_refused_as_in_a_sweep(tmp_path):
    for number in range(4):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    flat = f"folder:{tmp_path}"
    for config, message in (
        ({"dataset": "cifar11"}, "unknown dataset 'cifar11', did you mean 'cifar10'?"),
        ({"probe_dataset": "cifar11"}, "unknown dataset 'cifar11', did you mean 'cifar10'?"),
        ({"dataset": f"{flat}/none"}, "there is no folder"),
        ({"dataset": flat, "usl_type": "supervised", "label_free": True}, f"supervised: dataset {flat} has no labels"),
    ):
        with pytest.raises(InputError) as caught:
            load_data(read_config({**BASE, "batch_size": 2, **config})[0])
        assert message in str(caught.value)


def test_a_faulty_trainable_says_so_in_the_result_grid(tmp_path):
    grid = fit(tmp_path, {**BASE, "alpah": 1})
    assert "InputError: trainable: unknown key 'alpah', did you mean 'alpha'" in str(grid.errors[0])


def test_the_trainable_refuses_a_checkpoint_of_another_network():
    settings = make_settings(BASE, "test")
    saved = {"settings": settings.model_dump() | {"encoder": "resnet18"}}
    with pytest.raises(InputError, match="was made with encoder: 'resnet18', so it cannot be continued with 'conv6'"):
        adapted(saved, settings, "checkpoint")


@pytest.mark.parametrize("changed", [{"optimizer": "sgd"}, {"weight_decay": 0.1}, {"decay_norms_and_biases": False}])
def test_the_trainable_refuses_another_optimiser(changed):
    """Its state in the checkpoint has the old options."""
    before = make_settings({**BASE, "optimizer": "adamw"}, "test")
    saved = {"settings": before.model_dump()}
    with pytest.raises(InputError, match=f"was made with {next(iter(changed))}: "):
        adapted(saved, make_settings({**BASE, "optimizer": "adamw", **changed}, "test"), "checkpoint")


@pytest.mark.parametrize(("changed", "is_kept"), [({}, True), ({"images_every": 3}, True), ({"le_lr": 0.1}, False)])
def test_the_trainable_keeps_an_evaluation_only_under_its_own_settings(changed, is_kept):
    before, done = make_settings(BASE, "test"), {"is_scored": True, "done": ["linear"]}
    state = {"epoch": BASE["usl_epochs"], "optimizers": [{"param_groups": [{"lr": 1.0}]}]}
    saved = {"settings": before.model_dump(), "state": state, "evaluation": done}
    after = adapted(saved, make_settings({**BASE, **changed}, "test"), "checkpoint")
    assert (after["evaluation"] == done) == is_kept
    assert state["optimizers"][0]["param_groups"][0]["lr"] == before.usl_lr
