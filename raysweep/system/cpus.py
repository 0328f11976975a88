"""Number of processor cores that this process may use; batch systems and containers often grant only some of them."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from raysweep.system.cgroups import cgroups


@cache
def processor() -> str:
    """Return the name of the processor's model; where Linux does not tell it, the architecture."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


@dataclass(frozen=True)
class Cpus:
    """A number of cores, and what limits it to that number."""

    count: int
    """Number of cores, at least 1."""
    source: str
    """What sets the limit, in words; empty if the process may use the whole machine."""


def allowed_cpus(environment: Mapping[str, str] = os.environ, proc: Path = Path("/proc/self")) -> Cpus:
    """Return the cores that this process may use: the smallest of the limits set for it.

    The limits are the CPU affinity (`taskset`, cpusets), the CPU quotas of the process's cgroup and of all its
    ancestors (versions 1 and 2), and the cores that Slurm grants a task.

    Args:
        environment: The environment variables, which may include Slurm's.
        proc: The process's directory in /proc.

    Example:
        `allowed_cpus()` under `taskset -c 0` gives `Cpus(1, "CPU affinity")`.
    """
    machine = os.cpu_count() or 1
    limits = [Cpus(machine, "")]
    if hasattr(os, "sched_getaffinity"):
        limits.append(Cpus(len(os.sched_getaffinity(0)), "CPU affinity"))
    limits += [Cpus(max(1, int(quota)), f"cgroup quota of {quota:g} CPUs") for quota in cgroup_quotas(proc)]
    # SLURM_CPUS_PER_TASK is set only if the user asks for cores per task. The other is the job's share of this node.
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        if environment.get(name, "").isdecimal() and int(environment[name]) > 0:
            limits.append(Cpus(int(environment[name]), name))
            break
    return min(limits, key=lambda limit: limit.count)


def cgroup_quotas(proc: Path) -> Iterator[float]:
    """Yield the CPU quotas, in cores, of the process's cgroups and of all their ancestors."""
    for folder, version in cgroups(proc, "cpu"):
        quota = read_quota(folder, version)
        if quota is not None:
            yield quota


def read_quota(folder: Path, version: int) -> float | None:
    """Return the CPU quota of one cgroup in cores, None if it has no quota."""
    try:
        if version == 2:
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        return int(quota) / int(period) if quota.isdecimal() and int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # the root cgroup of version 2 has no cpu.max
        return None
