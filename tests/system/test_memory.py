"""The memory that a process may use, from a real cgroup or from files in the kernel's format."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raysweep.system.memory import allowed_memory
from tests.support import ROOT
from tests.system.test_cpus import process_files

CGROUP = Path("/sys/fs/cgroup/memory")
MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
CHECK = """
from raysweep.data.dataset import check_memory
check_memory("photographs", 3000, 3, 200)
try:
    check_memory("photographs", 3000, 3, 500)
except Exception as fault:
    print(fault)
"""


def test_a_dataset_must_fit_into_the_limit_of_a_cgroup_above():
    inner = CGROUP / f"raysweep-test-{os.getpid()}" / "inner"
    try:
        inner.mkdir(parents=True)
        (inner.parent / "memory.limit_in_bytes").write_text(str(2**32))
    except OSError:
        pytest.skip("needs to make cgroups of version 1")
    try:
        process = subprocess.run(
            ["sh", "-c", f'echo $$ > {inner}/cgroup.procs && exec "$@"', "sh", sys.executable, "-c", CHECK],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert process.stdout == (
            "dataset 'photographs': 3,000 images of 3×500×500 take 2.1 GiB, more than 50% of the 4.0 GiB that this "
            "process may use: lower image_size, or use fewer images\n"
        )
    finally:
        inner.rmdir()
        inner.parent.rmdir()


@pytest.mark.parametrize(
    ("path", "root", "limits", "expected"),
    [
        ("/user/job", "/", {"user": "1000"}, 1000),
        ("/user/job", "/", {"user": "max", "user/job": "2000"}, 2000),
        ("/user/job", "/", {"user": "1000", "user/job": "2000"}, 1000),
        ("/user/job", "/", {"user": "max", "user/job": "max"}, MACHINE),
        ("/user/job", "/", {"user": str(2**63 - 4096)}, MACHINE),
        ("/docker/x/job", "/docker/x", {"job": "1000"}, 1000),
        ("/../elsewhere", "/", {".": "1000"}, 1000),
        ("/user/job", "/", {}, MACHINE),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_the_smallest_limit_counts(tmp_path, version, path, root, limits, expected):
    mount = tmp_path / "cgroup"
    (mount / path.removeprefix(root).lstrip("/")).resolve().mkdir(parents=True)
    mount.mkdir(exist_ok=True)
    for folder, limit in limits.items():
        (mount / folder / ("memory.max" if version == 2 else "memory.limit_in_bytes")).write_text(f"{limit}\n")
    if version == 2:
        memberships, kind = f"0::{path}\n", "cgroup2 cgroup2 rw,nsdelegate"
    else:
        memberships, kind = f"2:cpu:/other\n1:memory:{path}\n", "cgroup cgroup rw,memory"
    proc = process_files(tmp_path / "proc", memberships, f"30 23 0:26 {root} {mount} rw,nosuid - {kind}\n")
    assert allowed_memory(proc) == expected


def test_without_cgroups_the_memory_of_the_machine_counts(tmp_path):
    assert allowed_memory(tmp_path / "no-proc") == MACHINE
