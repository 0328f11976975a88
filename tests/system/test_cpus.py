"""The number of cores that a process may use, from real affinities and cgroups or from files in the kernel's format."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raysweep.system.cpus import Cpus, allowed_cpus
from tests.support import ROOT

SHOW = "from raysweep.system.cpus import allowed_cpus; print(allowed_cpus())"
CGROUP = Path("/sys/fs/cgroup/cpu")


def shown(*before, **environment):
    """Return what a process prints about its cores when the command `before` starts it."""
    process = subprocess.run(
        [*before, sys.executable, "-c", SHOW],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return process.stdout.strip()


def test_the_affinity_counts():
    assert shown("taskset", "-c", str(min(os.sched_getaffinity(0)))) == "Cpus(count=1, source='CPU affinity')"


def test_a_quota_of_a_cgroup_above_counts():
    inner = CGROUP / f"raysweep-test-{os.getpid()}" / "inner"
    try:
        inner.mkdir(parents=True)
        (inner.parent / "cpu.cfs_quota_us").write_text("150000")
    except OSError:
        pytest.skip("needs to make cgroups of version 1")
    try:
        output = shown("sh", "-c", f'echo $$ > {inner}/cgroup.procs && exec "$@"', "sh")
        assert output == "Cpus(count=1, source='cgroup quota of 1.5 CPUs')"
    finally:
        inner.rmdir()
        inner.parent.rmdir()


def process_files(folder, cgroup, mountinfo):
    """Create a directory like a process's in /proc, with these two files."""
    folder.mkdir()
    (folder / "cgroup").write_bytes(os.fsencode(cgroup))
    (folder / "mountinfo").write_bytes(os.fsencode(mountinfo))
    return folder


@pytest.mark.parametrize(
    ("path", "root", "quotas", "expected"),
    [
        ("/user/job", "/", {"user": "100000 100000"}, 1),
        ("/user/job", "/", {"user": "max 100000", "user/job": "50000 100000"}, 1),
        ("/user/job", "/", {"user": "max 100000"}, None),
        ("/docker/x/job", "/docker/x", {"job": "100000 100000"}, 1),
        ("/../elsewhere", "/", {".": "100000 100000"}, 1),
    ],
)
def test_nested_quotas_of_version_2(tmp_path, path, root, quotas, expected):
    mount = tmp_path / "cgroup"
    (mount / path.removeprefix(root).lstrip("/")).resolve().mkdir(parents=True)
    mount.mkdir(exist_ok=True)
    for folder, quota in quotas.items():
        (mount / folder / "cpu.max").write_text(f"{quota}\n")
    line = f"30 23 0:26 {root} {mount} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
    proc = process_files(tmp_path / "proc", f"0::{path}\n", line)
    cpus = allowed_cpus({}, proc)
    everything = allowed_cpus({}, tmp_path / "no-proc")
    assert cpus.count == (expected or everything.count)
    assert ("cgroup" in cpus.source) == (expected is not None and expected < everything.count)


def test_a_mount_whose_path_is_not_valid_text_is_no_fault(tmp_path):
    mount = tmp_path / "cgroup"
    mount.mkdir()
    (mount / "cpu.max").write_text("100000 100000\n")
    lines = f"29 23 0:25 / {tmp_path}/caf\udce9 rw - tmpfs tmpfs rw\n30 23 0:26 / {mount} rw - cgroup2 cgroup2 rw\n"
    proc = process_files(tmp_path / "proc", "0::/caf\udce9\n", lines)
    assert allowed_cpus({}, proc).count == 1


def test_slurm_grants_cores_to_a_task(tmp_path):
    free = allowed_cpus({}, tmp_path)
    assert allowed_cpus({"SLURM_CPUS_PER_TASK": "1", "SLURM_CPUS_ON_NODE": "64"}, tmp_path).count == 1
    assert allowed_cpus({"SLURM_CPUS_ON_NODE": "1"}, tmp_path).count == 1
    for nonsense in ("", "0", "many", "-1", "72(x2)"):
        assert allowed_cpus({"SLURM_CPUS_PER_TASK": nonsense}, tmp_path) == free
    if free.count > 1:
        assert allowed_cpus({"SLURM_CPUS_PER_TASK": "1"}, tmp_path) == Cpus(1, "SLURM_CPUS_PER_TASK")
