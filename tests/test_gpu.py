"""Transfers between the GPU and the host while a trial trains, and the moments when the host waits for the GPU.

On any machine, PyTorch's meta device stands for the GPU. Its tensors have no values, so the host cannot compute from
them. A dispatch mode counts the transfers to the device and answers the reads from it.
"""

from collections import Counter
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from raysweep import parts
from raysweep.augment import affine, mask, noise, simclr
from raysweep.augment.operations import packed, unpacked
from raysweep.config import Settings
from raysweep.probes.evaluation import Evaluation
from raysweep.probes.features import extract_layers
from raysweep.probes.finetune import FineTuning
from raysweep.probes.knn import knn_accuracy
from raysweep.probes.linear import LinearProbes, train_classifiers
from raysweep.probes.probes import candidate_specs
from raysweep.training import loop
from raysweep.training.loop import pretrain
from raysweep.training.state import fresh_state
from tests.support.images import augment, random_images, seeded
from tests.support.trials import Killed, few_digits, run, trial_of

META = torch.device("meta")
NO_GPU = "no GPU is visible"
STEPS, BATCH = 3, 10


class Traffic(TorchDispatchMode):
    """Counts transfers between the meta device and the host, and refuses operations that mix tensors of both.

    Every value read from the device is 1. For masks and `nonzero`, the host would wait until the GPU reports the size;
    the meta device itself refuses them.
    """

    def __init__(self):
        super().__init__()
        self.sent = self.read = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # `item` and the like are not decomposed yet
            with self:
                result = function.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        name = function.overloadpacket._qualified_op_name
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        on_device = [tensor for tensor in tensors if tensor.is_meta]
        on_host = [tensor for tensor in tensors if not tensor.is_meta]
        if name == "aten::_local_scalar_dense" and on_device:
            self.read += 1
            return torch.ones((), dtype=on_device[0].dtype).item()
        if name == "aten::_to_copy" and on_device and torch.device(kwargs.get("device") or META) != META:
            self.read += 1
            return torch.ones(on_device[0].shape, dtype=kwargs.get("dtype") or on_device[0].dtype)
        if name == "aten::_to_copy" and on_host and torch.device(kwargs.get("device") or "cpu") == META:
            self.sent += 1
        elif name == "aten::copy_" and on_host and on_device:
            self.sent += args[0].is_meta
            self.read += not args[0].is_meta
        else:
            assert not (on_device and any(tensor.dim() for tensor in on_host)), f"{name} of tensors here and there"
        return function(*args, **kwargs)

    def since(self):
        """Return the numbers of tensors sent and read since the last call."""
        counts = self.sent, self.read
        self.sent = self.read = 0
        return counts


def test_traffic_notices_what_a_gpu_would_do():
    with Traffic() as traffic:
        tensor = torch.zeros(3, device=META)
        assert traffic.since() == (0, 0)
        torch.ones(3).to(META)
        tensor.copy_(torch.ones(3))
        tensor[0] = torch.ones(())
        assert traffic.since() == (3, 0)
        assert [tensor.sum().item(), tensor.tolist(), tensor.cpu().sum().item()] == [1, [1, 1, 1], 3]
        assert traffic.since() == (0, 3)
        with pytest.raises(AssertionError, match="here and there"):
            tensor + torch.ones(3)
        with pytest.raises(AssertionError, match="here and there"):
            tensor[torch.tensor([0, 1])]
        for waits in (lambda: tensor.nonzero(), lambda: tensor[tensor > 0]):
            with pytest.raises((NotImplementedError, RuntimeError)):
                waits()


def settings_of(**chosen):
    return Settings(**{"usl_epochs": 2, "batch_size": BATCH, "embedding_dim": 8, "strength": 1.0, **chosen})


def on_meta(settings, channels, monkeypatch):
    """Return the state before the first epoch, on the meta device, with operations that PyTorch supports there."""
    # Neither autocast (switched off here) nor Adam's fused kernel supports the meta device.
    monkeypatch.setattr(loop, "autocast_for", lambda settings, like: nullcontext())
    state = fresh_state(settings, channels, 16, META)
    state.optimizers = [torch.optim.Adam(each.param_groups[0]["params"]) for each in state.optimizers]
    return state


METHODS = {
    "autoencoder": {"usl_type": "ae_single"},
    "denoising": {"usl_type": "ae_single", "denoising": True},
    "simclr": {"usl_type": "simclr"},
    "resnet18": {"usl_type": "simclr", "encoder": "resnet18"},
    **{name: {"emb_loss": name} for name in ("mse", "l1", "barlow", "vicreg", "hinge")},
    "byol": {"usl_type": "byol", "head": "mlp"},
    "simsiam": {"usl_type": "simsiam"},
    "greedy": {"layerwise": "greedy", "usl_epochs": 1},
    "random": {"layerwise": "random", "denoising": True, "usl_epochs": 1},
}
POLICIES = {
    "blur": {"blur": True, "blur_probability_second": 0.1},
    "solarize": {"solarize_probability": 0.5, "solarize_probability_second": 0.1},
    **{name: {"policy": name} for name in tuple(parts.policy)},
    "every policy": {"policy": "+".join(tuple(parts.policy))},
    "no augmentation": {"strength": 0.0},
}


@pytest.mark.parametrize(
    ("method", "channels"),
    [
        *(pytest.param(method, 3, id=name) for name, method in METHODS.items()),
        *(pytest.param(policy, n, id=f"{name}-{n}") for name, policy in POLICIES.items() for n in (1, 3)),
    ],
)
def test_a_step_sends_the_parameters_of_a_policy_at_once_and_reads_nothing(method, channels, monkeypatch):
    settings = settings_of(**method)
    state = on_meta(settings, channels, monkeypatch)
    images = random_images(STEPS * BATCH, channels, 16, 16).to(META)
    parameters = len(settings.policies) if settings.strength else 0
    epochs = settings.usl_epochs * len(state.optimizers)
    with Traffic() as traffic:
        steps = pretrain(settings, state, images, pause=lambda: True)
        for _ in range(epochs):
            assert next(steps) is None
            assert traffic.since() == (parameters + 1, 0), "once an epoch, the order of the images is sent too"
            for _ in range(STEPS - 2):
                assert next(steps) is None
                assert traffic.since() == (parameters, 0)
            assert next(steps) is not None
            sent, read = traffic.since()
            assert sent == parameters
            assert read == 1, "one read holds the losses and whether the weights are finite"
        assert next(steps, "the end") == "the end"


def test_an_epoch_of_linear_probes_sends_the_order_and_reads_the_losses():
    heads = candidate_specs(settings_of())
    layer = heads[0].layer
    features = {layer: torch.zeros(40, 6, device=META)}
    labels = torch.zeros(40, dtype=torch.int64, device=META)
    probes = LinearProbes(heads, {layer: 6}, 10, 0, META)
    # Adam's fused kernel does not support the meta device, as in `on_meta`.
    probes.optimizer = torch.optim.Adam([w for group in probes.optimizer.param_groups for w in group["params"]])
    with Traffic() as traffic:
        for _ in train_classifiers(probes, features, labels, epochs=2, batch_size=BATCH):
            assert traffic.since() == (1, 1)
        probes.accuracy(features, labels)
        assert traffic.since() == (0, 1)


def test_only_images_that_are_read_are_sent():
    """Pretraining that trials share has an evaluation for each of them, and measures kNN on fit and val alone."""
    dataset = few_digits(train=30, test=20)
    encoder = fresh_state(settings_of(), 1, 8, torch.device("cpu")).encoder
    images = dataset.train_images, torch.from_numpy(dataset.train_images).to(META)
    with Traffic() as traffic:
        evaluation = Evaluation(settings_of(), encoder, dataset, images, META)
        assert traffic.since() == (8, 0), "indices and labels of three splits, and the images for kNN by their number"
        assert evaluation.splits["fit"].images is evaluation.splits["val"].images is images[1]
        assert traffic.since() == (0, 0)
        assert evaluation.splits["test"].images is evaluation.splits["test"].images
        assert traffic.since() == (1, 0)


@pytest.mark.parametrize(("augment", "sent"), [("none", 1), ("crop_mirror", 1 + 6)])
def test_an_epoch_of_fine_tuning_sends_the_order_and_the_crops_and_reads_the_loss(augment, sent):
    dataset = few_digits(train=30, test=20)
    encoder = fresh_state(settings_of(), 1, 8, torch.device("cpu")).encoder
    images = dataset.train_images, torch.from_numpy(dataset.train_images).to(META)
    evaluation = Evaluation(settings_of(val_fraction=0), encoder, dataset, images, META)
    arguments = {"batch_size": 5, "lr": 1e-3, "weight_decay": 0.0, "standardize": False, "labels_per_class": None}
    tuning = FineTuning(evaluation, epochs=2, augment=augment, **arguments)
    tuning.optimizer = torch.optim.Adam(tuning.network.parameters())
    with Traffic() as traffic:
        for _ in tuning.run():
            if tuning.batch == 0 and tuning.progress < 1:
                assert traffic.since() == (sent, 2), "the host reads the loss, and whether the weights are finite"


def test_features_and_neighbours_stay_on_the_device():
    encoder = fresh_state(settings_of(), 3, 16, torch.device("cpu")).encoder.to(META)
    images = random_images(30, 3, 16, 16).to(META)
    index = torch.arange(30, device=META)
    labels = torch.zeros(30, dtype=torch.int64, device=META)
    with Traffic() as traffic:
        features = extract_layers(encoder, images, index, ("trunk", "embedding", "layer1"))
        assert traffic.since() == (0, 3), "for each layer, the host reads whether it is finite"
        trunk = features["trunk"]
        knn_accuracy(trunk, labels, trunk, labels, classes=10, k=5, temperature=0.07)
        assert traffic.since() == (0, 1)


# Several tensors in one transfer


def test_property_what_is_packed_comes_out_bit_for_bit():
    tensors = [
        torch.rand(3, 5, generator=seeded()),
        torch.rand(7, generator=seeded()) < 0.5,
        torch.arange(5),
        torch.tensor([float("nan"), -0.0, float("inf")], dtype=torch.float64),
        torch.empty(0, dtype=torch.int64),
        torch.rand(4, 6, generator=seeded()).T[..., None, None],
        torch.tensor(3),
        torch.empty(2, 0),
    ]
    buffer, places = packed(tensors, page_locked=False)
    copies = unpacked(buffer.clone(), tensors, places)
    for before, after in zip(tensors, copies, strict=True):
        assert after.dtype == before.dtype
        assert after.shape == before.shape
        assert after.contiguous().numpy().tobytes() == before.contiguous().numpy().tobytes()
        assert after.data_ptr() % 16 == 0
    assert packed([], page_locked=False)[0].shape == (0,)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("strength", [0.01, 0.5, 2.0])
@pytest.mark.parametrize("count", [1, 40])
def test_property_views_do_not_depend_on_the_transfer(channels, strength, count, monkeypatch):
    images = random_images(count, channels, 16, 16)
    expected = augment(images, tuple(parts.policy), strength, True, seeded())

    def in_one(device, *tensors):
        buffer, places = packed(tensors, page_locked=False)
        return unpacked(buffer.clone(), tensors, places)

    for module in (affine, mask, noise, simclr):
        monkeypatch.setattr(module, "to_device", in_one)
    assert torch.equal(augment(images, tuple(parts.policy), strength, True, seeded()), expected)


# With a GPU


@pytest.fixture
def cuda():
    if not torch.cuda.is_available():
        pytest.skip(NO_GPU)
    return torch.device("cuda")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_cuda_counts_the_same(method, precision, cuda):
    """CUDA's profiler counts one copy from page-locked memory per policy, no copy back, and no call that waits."""
    settings = settings_of(**method, precision=precision)
    state = fresh_state(settings, 3, 16, cuda)
    steps = pretrain(settings, state, random_images(20 * BATCH, 3, 16, 16).to(cuda), pause=lambda: True)
    for _ in range(5):  # creates optimizer states and allocates memory; `random` may still reach a new block later
        next(steps)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            for _ in range(3):
                next(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    calls = Counter(event.name for event in profiler.events())
    sent = sum(count for name, count in calls.items() if name.startswith("Memcpy HtoD"))
    assert sent == sum(count for name, count in calls.items() if name.startswith("Memcpy HtoD (Pinned"))
    assert sent == 3 * (len(settings.policies) if settings.strength else 0)
    assert not [name for name in calls if name.startswith("Memcpy DtoH")]
    # The profiler itself ends with cudaDeviceSynchronize.
    assert not [name for name in calls if name in ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", [*tuple(parts.policy), "+".join(tuple(parts.policy))])
def test_cuda_makes_the_views_of_the_cpu(policy, channels, cuda):
    images = random_images(200, channels, 32, 32)
    for strength in (0.3, 1.0):
        on_cpu, on_gpu = seeded(), seeded()
        expected = augment(images, policy.split("+"), strength, True, on_cpu)
        views = augment(images.to(cuda), policy.split("+"), strength, True, on_gpu)
        assert views.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(views.cpu(), expected, rtol=0, atol=5e-5)
        assert torch.equal(on_cpu.get_state(), on_gpu.get_state())


def test_cuda_goes_on_from_a_checkpoint(tmp_path, cuda):
    trial = trial_of(usl_epochs=4)
    whole = run(tmp_path / "whole", trial)

    def die(at):
        if at.fraction > 0.5:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path / "broken", trial, checkpoint_seconds=0, report=die)
    result = run(tmp_path / "broken", trial, checkpoint_seconds=0)
    assert result.device == "cuda"
    # cuDNN's choice of algorithms decides whether the bits are the same.
    np.testing.assert_allclose(result.metrics["pretrain/loss"], whole.metrics["pretrain/loss"], rtol=1e-2)
