"""Trials in several processes: Ray Train workers inside a Tune trial, each with its rows of every batch."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayActorError
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, get_context
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from raysweep.backends.ray.relay import ReportRelay
from raysweep.backends.ray.trainable import TrialOptions, WorkerFailure, attempt, died
from raysweep.results.result import describe_error
from raysweep.space import Resources, Trial
from raysweep.system.temporary import temporary_directory


def run_parallel_trial(
    config: Mapping[str, Any], datasets: list[ray.ObjectRef[Any]], options: TrialOptions, resources: Resources
) -> None:
    """Run one trial in several workers (the function trainable). Reports of the main worker are passed on to Tune."""
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    # Ray's watcher tells the workers that a node is going to be taken away. They would not listen, and its process
    # takes 2 s of a core to start.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    each = resources_of_a_worker(config["trial"], options.token, resources)
    free_resources(each)  # an earlier attempt whose process was killed may still hold its resources
    relay: Any = ray.remote(num_cpus=0)(ReportRelay).remote()
    with temporary_directory() as state, ThreadPoolExecutor(1) as thread:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={
                "trial": config["trial"],
                "role": config.get("role"),
                "datasets": datasets,
                "relay": relay,
                "options": options,
            },
            torch_config=TorchConfig(backend="nccl" if options.gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=resources.workers, use_gpu=options.gpu, resources_per_worker=each, placement_strategy="PACK"
            ),
            # Tune restarts a trial that failed; the trial resumes from its own checkpoint.
            run_config=RunConfig(
                name="workers",
                storage_path=str(state),
                failure_config=FailureConfig(max_failures=0, max_preemption_failures=0),  # type: ignore[call-arg]
            ),
        )
        workers = thread.submit(trainer.fit)
        try:
            while not workers.done():
                report = ray.get(relay.take.remote())
                if report is not None:
                    tune.report(report)  # raises SystemExit if the trial was stopped
                    ray.get(relay.answer.remote())
        except RayActorError as fault:  # the workers break off at their next report, and `finally` waits for them
            raise WorkerFailure(died(str(fault), "the process that passes on its reports")) from None
        finally:
            relay.close.remote()
        try:
            workers.result()
        except RayActorError as fault:
            raise WorkerFailure(died(str(fault), "Ray Train's controller")) from None
        except ControllerError as fault:  # the workers never started to work together
            raise WorkerFailure(describe_error(fault.controller_failure)) from None
        except TrainingFailedError as fault:
            told: dict[int, str] = ray.get(relay.faults.remote())
            for rank, failure in getattr(fault, "worker_failures", {}).items():
                if rank not in told:  # this worker failed first; the others only lost their connection to it
                    raise WorkerFailure(died(str(failure))) from None
            raise WorkerFailure(next(iter(told.values()), died(str(fault)))) from None
        finally:
            free_resources(each)


def resources_of_a_worker(trial: Trial, token: str, resources: Resources) -> dict[str, float]:
    """Return the resources of each worker of a trial. They identify the placement group of the workers.

    Ray Train's controller creates this group without a name. If the controller or the process of the trial is killed,
    the group keeps its cores until the sweep ends, and the trial would wait for them for ever. Each group therefore
    requests a number of bytes of memory that no other trial requests. Every node has some megabytes to spare.

    Args:
        trial: The trial.
        token: A token that distinguishes the runs of sweeps on one cluster.
        resources: The resources of the sweep.
    """
    digest = hashlib.sha256(f"{token} {trial.name}".encode()).digest()
    each: dict[str, float] = {"CPU": resources.cpu, "memory": 2 + int.from_bytes(digest[:3], "big")}  # Tune asks for 1
    if resources.gpu:
        each["GPU"] = resources.gpu
    return each


def free_resources(each: Mapping[str, float]) -> None:
    """Remove the placement groups of workers with these resources, which ends these workers."""
    for name, group in placement_group_table().items():
        if group["state"] != "REMOVED" and each in group["bundles"].values():
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name))))


class Freeing(tune.Callback):
    """Frees the resources of a trial's workers after the process of the trial has died.

    Args:
        token: The token of the run.
        resources: The resources of the sweep.
    """

    def __init__(self, token: str, resources: Resources) -> None:
        self.token, self.resources = token, resources

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """An attempt of the trial failed, and the trial resumes."""
        free_resources(resources_of_a_worker(trial.config["trial"], self.token, self.resources))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The last attempt of the trial failed."""
        free_resources(resources_of_a_worker(trial.config["trial"], self.token, self.resources))


def train_worker(config: dict[str, Any]) -> None:
    """Train in one worker. The main worker also evaluates and reports."""
    import torch

    from raysweep.training.distributed import join
    from raysweep.training.follower import follow_trial

    options, relay, context = config["options"], config["relay"], None

    def tell(report: dict[str, Any]) -> None:
        if not ray.get(relay.tell.remote(report)):
            sys.exit()  # as in a trial with a single process

    try:
        if options.gpu and torch.cuda.is_available():
            torch.cuda.set_device(get_device())  # all workers on a node see all GPUs of the trial there
        context = join()
        datasets = ray.get(config["datasets"][0])
        if context.is_main:
            with suppress(SystemExit):
                attempt(config["trial"], datasets, options, tell, context, config["role"])
        else:
            options.load_plugins()
            settings = config["trial"].settings
            follow_trial(settings, datasets, context, threads=options.threads, gpu=options.gpu)
    except Exception as fault:
        ray.get(relay.fail.remote(get_context().get_world_rank(), describe_error(fault)))
        raise
    finally:
        if context is not None and context.is_main:
            context.dismiss()
