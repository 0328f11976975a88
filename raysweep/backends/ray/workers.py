"""A trial in several processes: Ray Train's workers inside Tune's trial, each with a part of every batch."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayActorError
from ray.train import (
    ControllerError,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    get_context,
)
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from raysweep.backends.ray.relay import ReportRelay
from raysweep.backends.ray.trainable import TrialOptions, WorkerFailure, attempt, died
from raysweep.results.result import describe_error
from raysweep.space import Resources, Trial
from raysweep.system.temporary import temporary_directory


def run_parallel_trial(
    config: Mapping[str, Any],
    datasets: list[ray.ObjectRef[Any]],
    how: TrialOptions,
    resources: Resources,
) -> None:
    """The function trainable: one trial, led from the first of its workers, whose reports are passed on to Tune."""
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    each = resources_of_a_worker(config["trial"], how.token, resources)
    free_resources(each)  # of an attempt whose process was killed
    desk: Any = ray.remote(num_cpus=0)(ReportRelay).remote()
    with temporary_directory() as state, ThreadPoolExecutor(1) as thread:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={
                "trial": config["trial"],
                "datasets": datasets,
                "desk": desk,
                "how": how,
            },
            torch_config=TorchConfig(backend="nccl" if how.gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=resources.workers, use_gpu=how.gpu, resources_per_worker=each, placement_strategy="PACK"
            ),
            # A trial that fails is begun again by Tune, from its own checkpoint.
            run_config=RunConfig(
                name="workers",
                storage_path=str(state),
                failure_config=FailureConfig(max_failures=0, max_preemption_failures=0),  # type: ignore[call-arg]
            ),
        )
        workers = thread.submit(trainer.fit)
        try:
            while not workers.done():
                report = ray.get(desk.take.remote())
                if report is not None:
                    tune.report(report)  # SystemExit where the trial was stopped
                    ray.get(desk.answer.remote())
        except RayActorError as fault:  # the workers break off at their next report, and this waits for them
            raise WorkerFailure(died(str(fault), "the process that passes on its reports")) from None
        finally:
            desk.close.remote()
        try:
            workers.result()
        except RayActorError as fault:
            raise WorkerFailure(died(str(fault), "Ray Train's controller")) from None
        except ControllerError as fault:  # the workers never came to work together
            raise WorkerFailure(describe_error(fault.controller_failure)) from None
        except TrainingFailedError as fault:
            told: dict[int, str] = ray.get(desk.faults.remote())
            for rank, failure in getattr(fault, "worker_failures", {}).items():
                if rank not in told:  # the others lost their connection to it
                    raise WorkerFailure(died(str(failure))) from None
            raise WorkerFailure(next(iter(told.values()), died(str(fault)))) from None
        finally:
            free_resources(each)


def resources_of_a_worker(trial: Trial, token: str, resources: Resources) -> dict[str, float]:
    """What Ray Train asks for for each worker of a trial, by which its placement group is found again.

    Ray Train's controller makes that group, without a name, and where the controller or the trial's own process was
    killed, it keeps its cores until the sweep ends: the trial would wait for them for ever. Every node has some MB of
    memory to spare, and how many bytes of them a group asks for says whose it is.

    Args:
        trial: the trial.
        token: tells the runs of sweeps on one cluster apart.
        resources: those of the sweep.
    """
    digest = hashlib.sha256(f"{token} {trial.name}".encode()).digest()
    each: dict[str, float] = {"CPU": resources.cpu, "memory": 2 + int.from_bytes(digest[:3], "big")}  # Tune asks for 1
    if resources.gpu:
        each["GPU"] = resources.gpu
    return each


def free_resources(each: Mapping[str, float]) -> None:
    """Remove the placement groups of workers with these resources, which ends the workers, if there are any."""
    for name, group in placement_group_table().items():
        if group["state"] != "REMOVED" and each in group["bundles"].values():
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name))))


class Freeing(tune.Callback):
    """Frees what a trial's workers had where the trial's own process died and cannot.

    Args:
        token: the run's.
        resources: those of the sweep.
    """

    def __init__(self, token: str, resources: Resources) -> None:
        self.token, self.resources = token, resources

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its attempt broke off; it will go on."""
        free_resources(resources_of_a_worker(trial.config["trial"], self.token, self.resources))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its last attempt broke off."""
        free_resources(resources_of_a_worker(trial.config["trial"], self.token, self.resources))


def train_worker(config: dict[str, Any]) -> None:
    """What each worker does."""
    import torch

    from raysweep.training.distributed import join
    from raysweep.trial import follow_trial

    how, desk, ranks = config["how"], config["desk"], None

    def tell(report: dict[str, Any]) -> None:
        if not ray.get(desk.tell.remote(report)):
            sys.exit()  # as in a trial that has one process

    try:
        if how.gpu and torch.cuda.is_available():
            torch.cuda.set_device(get_device())  # a node's workers see all the GPUs of its trial
        ranks = join()
        datasets = ray.get(config["datasets"][0])
        if ranks.is_main:
            with suppress(SystemExit):
                attempt(config["trial"], datasets, how, tell, ranks)
        else:
            settings = config["trial"].settings
            follow_trial(settings, datasets, ranks, threads=how.threads, gpu=how.gpu)
    except Exception as fault:
        ray.get(desk.fail.remote(get_context().get_world_rank(), describe_error(fault)))
        raise
    finally:
        if ranks is not None and ranks.is_main:
            ranks.dismiss()
