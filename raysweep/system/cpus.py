"""How many processor cores this process may use. A batch system or a container often grants fewer than there are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cpus:
    """A number of cores, and what limits it."""

    count: int
    """At least 1."""
    source: str
    """What sets the limit, in words; empty where the process may use the whole machine."""


def allowed_cpus(environment: Mapping[str, str] = os.environ, proc: Path = Path("/proc/self")) -> Cpus:
    """The cores that this process may use: the smallest of all limits that are set for it.

    The limits are the CPU affinity (`taskset`, cpusets), the CPU quotas of its cgroup and of all cgroups above it
    (version 1 and 2), and what Slurm grants a task.

    Args:
        environment: holds Slurm's variables.
        proc: the process's directory in /proc.

    Example:
        `allowed_cpus()` under `taskset -c 0` gives `Cpus(1, "CPU affinity")`.
    """
    machine = os.cpu_count() or 1
    limits = [Cpus(machine, "")]
    if hasattr(os, "sched_getaffinity"):
        limits.append(Cpus(len(os.sched_getaffinity(0)), "CPU affinity"))
    limits += [Cpus(max(1, int(quota)), f"cgroup quota of {quota:g} CPUs") for quota in cgroup_quotas(proc)]
    # The first is set only where the user asks for cores per task; the second is what the job has on this node.
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        if environment.get(name, "").isdecimal() and int(environment[name]) > 0:
            limits.append(Cpus(int(environment[name]), name))
            break
    return min(limits, key=lambda limit: limit.count)


def cgroup_quotas(proc: Path) -> Iterator[float]:
    """The CPU quotas, in cores, of the process's cgroups and of every cgroup above them."""
    for mount, folder, version in cgroup_folders(proc):
        while True:
            quota = read_quota(folder, version)
            if quota is not None:
                yield quota
            if folder == mount:
                break
            folder = folder.parent


def cgroup_folders(proc: Path) -> Iterator[tuple[Path, Path, int]]:
    """Each cgroup hierarchy that can limit CPU time: its mount point, the process's folder in it, and its version."""
    try:
        mounts = (proc / "mountinfo").read_text().splitlines()
        memberships = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines()]
    except OSError:  # no Linux, or no /proc
        return
    for line in mounts:
        left, _, right = line.partition(" - ")
        root, mount = left.split()[3:5]
        kind, _, options = [*right.split(), "", "", ""][:3]
        for _, controllers, path in memberships:
            is_version_2 = kind == "cgroup2" and controllers == ""
            is_version_1 = kind == "cgroup" and "cpu" in controllers.split(",") and "cpu" in options.split(",")
            if is_version_2 or is_version_1:
                # In a container the mount shows only a part of the hierarchy, and `root` is where that part begins.
                inside = path.removeprefix(root) if root != "/" else path
                folder = Path(mount, inside.lstrip("/"))
                is_below = ".." not in folder.parts and folder.is_dir()
                yield Path(mount), folder if is_below else Path(mount), 2 if is_version_2 else 1


def read_quota(folder: Path, version: int) -> float | None:
    """The CPU quota of one cgroup, in cores; None where it has none."""
    try:
        if version == 2:
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        return int(quota) / int(period) if quota.isdecimal() and int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # the root of version 2 has no such file
        return None
