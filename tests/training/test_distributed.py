"""Pretraining in several processes computes the same as pretraining in one."""

from contextlib import closing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from raysweep import space
from raysweep.augment.operations import all_views, to_float
from raysweep.augment.views import augment
from raysweep.config import Settings
from raysweep.results.result import read_result
from raysweep.training.distributed import SINGLE_PROCESS, join
from raysweep.training.follower import follow_trial
from raysweep.training.loop import pretrain
from raysweep.training.state import broadcast_state, fresh_state
from raysweep.trial import run_trial
from tests.support import ROOT, forked
from tests.support.trials import few_digits

pytestmark = pytest.mark.cluster

LOSSES = ("mse", "l1", "simclr", "barlow", "vicreg", "hinge")
PARALLEL = {
    **{f"parallel, {loss}": {"usl_type": "ae_parallel", "emb_loss": loss, "alpha": 0.7} for loss in LOSSES},
    "parallel, denoising": {"usl_type": "ae_parallel", "denoising": True},
    "autoencoder": {"usl_type": "ae_single", "denoising": False},
    "denoising autoencoder": {"usl_type": "ae_single", "denoising": True},
    "simclr": {"usl_type": "simclr"},
    "barlow twins": {"usl_type": "barlow_twins"},
    "vicreg": {"usl_type": "vicreg"},
}
BLOCKWISE = {
    "greedy": ("parallel, barlow", "parallel, denoising", "autoencoder", "denoising autoencoder", "simclr", "vicreg"),
    "random": ("parallel, mse", "autoencoder", "simclr"),
}
"""A block is trained with the same losses as the whole encoder, so each kind of loss is here once."""
METHODS = {
    **PARALLEL,
    **{f"{way}, {name}": {**PARALLEL[name], "layerwise": way} for way, names in BLOCKWISE.items() for name in names},
    # PyTorch synchronises batch normalisation between GPUs only, so the predictor and the head have none here.
    "byol": {"usl_type": "byol", "predictor_batch_norm": False},
    "simsiam": {"usl_type": "simsiam", "predictor_batch_norm": False},
    "head with hidden layers": {"usl_type": "simclr", "head": "mlp", "head_batch_norm": False},
    "all policies": {"usl_type": "ae_parallel", "policy": "affine+noise+mask+simclr", "strength": 1.0},
}
# Adam and LARS divide gradients by their size, which would hide a wrong common factor, so the first two use plain SGD.
PLAIN_SGD = {"optimizer": "sgd", "momentum": 0.0}
SCHEDULED = {"warmup_epochs": 1, "usl_lr": 1e-3, "weight_decay": 1e-2}
TRAINED = {
    "parallel, barlow": PLAIN_SGD,
    "greedy, simclr": PLAIN_SGD,
    "byol": {},
    "simclr": {**SCHEDULED, "optimizer": "lars", "schedule": "cosine"},
    "random, autoencoder": {**SCHEDULED, "optimizer": "adamw", "schedule": "wsd", "decay_epochs": 1},
}
BATCH = 11  # no number of processes in these tests divides it


EXPERIMENT = {"usl_epochs": 3, "le_epochs": 2, "batch_size": 50, "images_every": 0, "projector_images": 0}
TRIAL = space.build({"base": {**EXPERIMENT, "precision": "fp32", "alpha": 0.7}}, {}, "test").trials[0]
CONTROLLED = {**EXPERIMENT, "usl_epochs": 2, "precision": "fp32", "probe_every": 1, "embedding_dim": 16}
CONTROLS = [
    trial
    for trial in space.build({"base": CONTROLLED, "baseline": list(space.controls.CONTROLS)}, {}, "test").trials
    if trial.control
]
DATASETS = {("digits", 8, None): few_digits(train=600, test=200)}


def settings_of(name, **changes):
    return Settings(**{"batch_size": BATCH, "usl_epochs": 2, "precision": "fp32", **METHODS[name], **changes})


def images_of(count):
    return torch.randint(256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def gradients(settings, ranks):
    """For each optimizer, return the losses of one batch and the gradients of all parameters, in float64."""
    state = fresh_state(settings, 3, 8, torch.device("cpu"))
    for module in state.modules().values():
        module.double()
    share, images = ranks.shard(BATCH), images_of(BATCH)
    part = all_views(settings.views, BATCH) if share is None else share.views(settings.views)
    clean = to_float(images if share is None else images[share.start : share.end])
    # The two views have different augmentations.
    blurred = settings.model_copy(update={"blur": True, "blur_probability_second": 0.1, "solarize_probability": 0.3})
    views = augment(clean.repeat(settings.views, 1, 1, 1), blurred, state.generator, part)
    state.method.shard = share
    steps = []
    for step in state.steps():
        network = ranks.parallel(step)
        losses = network(views.double(), clean.double())
        ranks.backward(losses.total)
        sums = torch.stack([value.detach() for value in (losses.total, *losses.parts.values())])
        ranks.all_reduce(sums)
        steps.append((sums, [weight.grad for weight in step.parameters() if weight.requires_grad]))
        step.zero_grad()
    return steps


def trained(settings, ranks):
    """Train, with one interruption by the leader in the middle of an epoch; return the state and its metrics."""
    images = images_of(3 * BATCH)
    state = fresh_state(settings, 3, 8, torch.device("cpu"))
    metrics = []

    def run(pause):
        with closing(pretrain(settings, state, images, pause, ranks)) as epochs:
            for at in epochs:
                if at is None and ranks.is_main:
                    return
                if at is not None:
                    metrics.append({name: value for name, value in at.items() if name != "pretrain/images_per_s"})

    run(lambda: state.epoch == 1 and state.step == 2)
    assert (state.epoch, state.step) == (1, 2), "all processes leave at the same step as the leader"
    saved = state.state_dict()
    if not ranks.is_main:  # only the leader's state counts
        state = fresh_state(settings, 3, 8, torch.device("cpu"))
    broadcast_state(state, ranks)
    run(lambda: False)
    return metrics, saved["sums"], list(state.encoder.state_dict().values())


def small_trial(directory, ranks, pauses=None, trial=TRIAL):
    """Run a small trial in `directory` and return its result. It leaves after `pauses` checks whether to leave."""
    if not ranks.is_main:
        return follow_trial(trial.settings, DATASETS, ranks, threads=1, gpu=False)
    asked = iter(range(10**9))
    leave = (lambda: next(asked) >= pauses) if pauses is not None else (lambda: False)
    return run_trial(trial, DATASETS, directory, threads=1, gpu=False, stop=leave, context=ranks)


def work(rank, size, folder, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    ranks = join()
    values = {name: gradients(settings_of(name), ranks) for name in METHODS}
    after = {name: trained(settings_of(name, **changes), ranks) for name, changes in TRAINED.items()}
    assert small_trial(folder / "trial", ranks, pauses=6) is None
    for trial in CONTROLS:
        small_trial(folder / trial.control, ranks, trial=trial)
    if rank == 0:
        torch.save((values, after), results)
    dist.destroy_process_group()


def fork(size, folder):
    """Let `size` processes work. They are forks of this process, which has imported torch and computed nothing."""
    mp.start_processes(work, (size, Path(folder), Path(folder, "results")), nprocs=size, start_method="fork")


@pytest.fixture(scope="module", params=[2])
def folder(request, tmp_path_factory):
    """The directory in which `request.param` processes have worked."""
    directory = tmp_path_factory.mktemp("processes")
    program = f"from tests.training.test_distributed import fork; fork({request.param}, {str(directory)!r})"
    process = forked.run("-c", program, cwd=ROOT, GLOO_SOCKET_IFNAME="lo")
    assert process.returncode == 0, process.stderr
    return directory


@pytest.fixture(scope="module")
def together(folder):
    """The results that these processes saved."""
    return torch.load(folder / "results", weights_only=False)


def test_gradients_and_losses_are_those_of_one_process(together):
    for name, steps in together[0].items():
        alone = gradients(settings_of(name), SINGLE_PROCESS)
        assert len(steps) == len(alone)
        for (sums, of_many), (alone_sums, of_one) in zip(steps, alone, strict=True):
            assert sums.tolist() == pytest.approx(alone_sums.tolist(), rel=1e-9), name
            assert len(of_many) == len(of_one) > 0
            for many, one in zip(of_many, of_one, strict=True):
                assert one.dtype == torch.float64
                assert one.abs().max() > 0, name
                error = (many - one).abs().max() / one.abs().max()
                assert error < 1e-6, (name, error)


def test_a_trial_that_several_processes_left_is_finished_by_one(folder, tmp_path):
    assert list(folder.glob("trial/checkpoints/*"))
    trial_result = small_trial(folder / "trial", SINGLE_PROCESS)
    whole = small_trial(tmp_path, SINGLE_PROCESS)
    assert (trial_result.status, trial_result.attempts, trial_result.warnings) == ("finished", 2, [])
    expected = {name: value for name, value in whole.metrics.items() if name != "pretrain/images_per_s"}
    assert {name: trial_result.metrics[name] for name in expected} == pytest.approx(expected, rel=0.01, abs=0.03)
    assert trial_result.metrics["pretrain/loss"] == pytest.approx(expected["pretrain/loss"], rel=1e-4)


@pytest.mark.parametrize("trial", CONTROLS, ids=lambda trial: trial.control)
def test_a_control_has_the_same_scores(folder, tmp_path, trial):
    several = read_result(folder / trial.control)
    one = small_trial(tmp_path, SINGLE_PROCESS, trial=trial)
    assert (several.status, several.warnings) == ("finished", one.warnings)
    if trial.control == "supervised":
        assert several.metrics["pretrain/loss"] == pytest.approx(one.metrics["pretrain/loss"], rel=1e-4)
    else:
        assert several.metrics == one.metrics


def test_training_is_that_of_one_process_though_it_leaves_in_the_middle(together):
    for name, (metrics, sums, weights) in together[1].items():
        alone_metrics, alone_sums, alone_weights = trained(settings_of(name, **TRAINED[name]), SINGLE_PROCESS)
        assert len(metrics) == len(alone_metrics) > 1
        for many, one in zip(metrics, alone_metrics, strict=True):
            assert many == pytest.approx(one, rel=1e-4), name
        torch.testing.assert_close(sums, alone_sums, rtol=1e-4, atol=1e-6)
        for many, one in zip(weights, alone_weights, strict=True):
            # Adam moves a weight whose gradient is only a rounding error as far as any other weight, so very few
            # weights may differ by a part of one step; all others are equal to rounding.
            differ = ~torch.isclose(many, one, rtol=1e-3, atol=1e-5)
            assert differ.float().mean() < 1e-3, name
            assert (many - one).abs().max() < settings_of(name, **TRAINED[name]).usl_lr, name
