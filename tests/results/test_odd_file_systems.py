"""File systems that lack chmod (FAT, WSL's /mnt/c), fsync or flock (some network and FUSE file systems).

A small preloaded library makes the call fail for every file below a directory, as it does on such a file system.
"""

import errno
import os
import shutil
import subprocess

import pytest

from raysweep.system import files
from tests.support import ROOT, forked

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int refused(const char *call, const char *path) {
    const char *directory = getenv("ODD_DIRECTORY"), *refuses = getenv("ODD_CALL");
    char full[PATH_MAX];
    if (!directory || !refuses || strcmp(call, refuses) || !realpath(path, full)) return 0;
    if (strncmp(full, directory, strlen(directory))) return 0;
    errno = atoi(getenv("ODD_ERRNO"));
    return 1;
}

static int refused_open(const char *call, int descriptor) {
    const char *directory = getenv("ODD_DIRECTORY"), *refuses = getenv("ODD_CALL");
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (!directory || !refuses || strcmp(call, refuses) || length < 0) return 0;
    path[length] = 0;
    if (strncmp(path, directory, strlen(directory))) return 0;
    errno = atoi(getenv("ODD_ERRNO"));
    return 1;
}

#define REAL(name, ...) ((int (*)(__VA_ARGS__)) dlsym(RTLD_NEXT, name))

int chmod(const char *path, mode_t mode) {
    return refused("chmod", path) ? -1 : REAL("chmod", const char *, mode_t)(path, mode);
}
int fchmodat(int at, const char *path, mode_t mode, int flags) {
    return refused("chmod", path) ? -1 : REAL("fchmodat", int, const char *, mode_t, int)(at, path, mode, flags);
}
int fchmod(int descriptor, mode_t mode) {
    return refused_open("chmod", descriptor) ? -1 : REAL("fchmod", int, mode_t)(descriptor, mode);
}
int fsync(int descriptor) { return refused_open("fsync", descriptor) ? -1 : REAL("fsync", int)(descriptor); }
int flock(int descriptor, int how) {
    return refused_open("flock", descriptor) ? -1 : REAL("flock", int, int)(descriptor, how);
}
"""
COMMAND = ROOT / "run_sweep.py"
TINY = ("--usl_epochs", "0", "--le_epochs", "1", "--local")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of forked processes that has the library preloaded."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "odd.c").write_text(SHIM)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", "odd.so", "odd.c", "-ldl"], cwd=folder, check=True)
    server = forked.Server(LD_PRELOAD=str(folder / "odd.so"))
    yield server
    server.end()


@pytest.fixture
def odd(server, few, tmp_path):
    """A function that runs Python, or a small sweep, in a process for which a call fails below `tmp_path`."""
    sweep = [COMMAND, *TINY, *(word for name, value in few.items() for word in (f"--{name}", str(value)))]

    def run(call, number, *arguments):
        settings = {"ODD_DIRECTORY": str(tmp_path.resolve()), "ODD_CALL": call, "ODD_ERRNO": str(number)}
        return server.run(*(arguments or sweep), cwd=tmp_path, **settings)

    return run


def refused(process, *words):
    """Check that a command refused its input in one line."""
    assert process.returncode == 2, process.stderr
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(word in line for word in words), line


def test_the_library_refuses_the_calls(odd, tmp_path):
    (tmp_path / "x").touch()
    script = f"import os, fcntl; file = open({str(tmp_path / 'x')!r}); "
    calls = {"chmod": "os.chmod(file.name, 0o644)", "fsync": "os.fsync(file)", "flock": "fcntl.flock(file, 6)"}
    for call, statement in calls.items():
        assert "OSError: [Errno 95]" in odd(call, errno.ENOTSUP, "-c", script + statement).stderr
        assert odd("none", errno.ENOTSUP, "-c", script + statement).returncode == 0


def test_a_sweep_needs_no_chmod(odd, tmp_path):
    process = odd("chmod", errno.EPERM)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "runs" / "ae_parallel" / "seed=0" / "result.json").is_file()
    assert (tmp_path / "runs" / "ae_parallel" / "results.csv").is_file()


def test_a_sweep_needs_no_fsync(odd, tmp_path):
    process = odd("fsync", errno.EINVAL)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "runs" / "ae_parallel" / "seed=0" / "result.json").is_file()


def test_files_are_written_where_fsync_is_not_supported(odd, tmp_path):
    numbers = [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS]
    script = f"""
import os
from pathlib import Path
from raysweep.system.files import write_atomically
for number in {numbers}:
    os.environ["ODD_ERRNO"] = str(number)
    write_atomically(Path(str(number)), b"x")
"""
    process = odd("fsync", errno.EIO, "-c", script)
    assert process.returncode == 0, process.stderr
    assert all((tmp_path / str(number)).read_bytes() == b"x" for number in numbers)


def test_an_fsync_that_fails_is_a_failure_and_leaves_no_directory_that_blocks_the_name(odd, tmp_path):
    process = odd("fsync", errno.EIO)
    refused(process, "runs/ae_parallel/sweep.yaml", "Input/output error")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_place_without_locks_is_refused_and_nothing_is_left(odd, tmp_path, number):
    process = odd("flock", number)
    refused(process, "cannot lock files", os.strerror(number), "choose a directory on another file system")
    assert not list(tmp_path.iterdir())


def test_a_sweep_that_was_copied_to_a_place_without_locks_is_not_gone_on_with(odd, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "sweep.yaml").write_text("name: x\nbase: {usl_epochs: 0, le_epochs: 1}\n")
    refused(odd("flock", errno.ENOLCK, COMMAND, "--resume", "x", "--local"), "cannot lock files")
    assert not (tmp_path / "x" / "seed=0").exists()


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_files_have_the_mode_that_the_umask_leaves(tmp_path, umask):
    before = os.umask(umask)
    try:
        files.write_atomically(tmp_path / "atomic", b"")
        (tmp_path / "plain").touch()
    finally:
        os.umask(before)
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_link_to_nowhere_as_the_output_is_refused(odd, tmp_path):
    (tmp_path / "runs").symlink_to(tmp_path / "nowhere")
    refused(odd("none", 0), "--output runs", "runs is not a directory")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
