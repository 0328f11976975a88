"""Faults injected into the real command: each costs at most the trial that it hits, and the command says why."""

import os
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import PATIENCE
from tests.support.cluster import wait_for
from tests.support.commands import alone, on_ray, result, resume_command, scores, start

pytestmark = pytest.mark.slow

BRIEF = ["--le_epochs", "3", "--probe_every", "0", "--images_every", "0", "--projector_images", "0"]
STEPS = [*BRIEF, "--usl_epochs", "6", "--set", "tune.checkpoint_seconds=0", "--set", "tune.max_failures=1"]


@contextmanager
def mounted(folder, *options):
    """Mount a separate file system at `folder`."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", *options, str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs to mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def small(folder, megabytes):
    """Mount a small file system at `folder`."""
    return mounted(folder, "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs")


def fill(folder):
    """Fill the file system of `folder`, and return the file that takes the space."""
    path = folder / "filler"
    with open(path, "wb", buffering=0) as file:  # with a buffer, closing the file would write the rest, and fail too
        try:
            while True:
                file.write(bytes(2**16))
        except OSError:
            return path


def checkpoints(trial):
    return sorted(path.name for path in trial.glob("checkpoints/*"))


def lines(text):
    """Return the lines of the output, and check that there is no traceback."""
    assert "Traceback" not in text
    return text.splitlines()


def test_too_little_memory_and_too_small_a_disk_fail_their_trials_only(tmp_path):
    with small(tmp_path / "disk", 48):
        completed = on_ray(
            *BRIEF,
            *("--usl_epochs", "1", "--usl_type", "simclr", "--output", "disk", "--name", "x"),
            *("--set", "embedding_dim=[64, 20000, 1000000000000]"),
            *("--set", "tune.checkpoint_seconds=0", "--set", "tune.max_failures=1"),
            cwd=tmp_path,
        )
        root = tmp_path / "disk" / "x"
        assert completed.returncode == 1, completed.stderr
        assert result(root, "embedding_dim=64,seed=0")["status"] == "finished"
        full, memory = (result(root, f"embedding_dim={width},seed=0") for width in (20000, 10**12))
        assert full["error"].startswith("disk full: No space left on device: ")
        assert memory["error"].startswith("out of memory: ")
        assert full["attempts"] == memory["attempts"] == 2
        assert lines(completed.stderr) == [f"failed: {one['trial']}: {one['error']}" for one in (full, memory)]
        assert "attempt 1 broke off; resuming from its last checkpoint (out of memory: " in completed.stdout


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The scores of a trial without any fault."""
    folder = tmp_path_factory.mktemp("undisturbed")
    completed = alone(*STEPS, "--name", "x", cwd=folder)
    assert completed.returncode == 0, completed.stderr
    return scores(folder / "runs" / "x", "seed=0")


@pytest.mark.parametrize(("disk_fault", "where"), [("full", []), ("read-only", ["--local"])])
def test_a_disk_that_fails_in_mid_run_leaves_checkpoints_from_which_it_is_finished_later(
    undisturbed, tmp_path, disk_fault, where
):
    disk = tmp_path / "disk"
    with small(disk, 64):
        process = start(*STEPS, *where, "--output", "disk", "--name", "x", cwd=tmp_path)
        root = disk / "x"
        wait_for(lambda: len(list(root.glob("seed=0/checkpoints/*.json"))) == 2, process)
        if disk_fault == "full":
            fault, words = None, "disk full: No space left on device"
            filler = fill(disk)
        else:
            fault, words = mounted(root, "--bind", "-o", "ro", str(root)), "OSError: Read-only file system"
            fault.__enter__()
        try:
            out, err = process.communicate(timeout=PATIENCE)
            assert checkpoints(root / "seed=0")
        finally:
            filler.unlink() if fault is None else fault.__exit__(None, None, None)
        assert process.returncode == 1, err
        assert f"seed=0  FAILED: {words}" in out
        messages = lines(err)
        assert any(line.startswith("warning: seed=0: the end of the trial cannot be recorded: ") for line in messages)
        assert messages[-1].startswith(f"the report cannot be written: {words}: ")
        assert len(messages) == 2
        assert not (root / "seed=0" / "result.json").exists()

        completed = alone("--resume", "disk/x", cwd=tmp_path)
        assert completed.returncode == 0, completed.stderr
        assert scores(root, "seed=0") == undisturbed


def test_a_full_directory_of_ray_breaks_the_sweep_off_and_it_is_finished_later(undisturbed, tmp_path):
    ray_directory = Path(tempfile.mkdtemp(prefix="full-", dir="/tmp"))  # Ray needs a short path
    with small(ray_directory, 300):
        process = start(*STEPS, "--name", "x", cwd=tmp_path, RAY_TMPDIR=str(ray_directory))
        root = tmp_path / "runs" / "x"
        wait_for(lambda: list(root.glob("seed=0/checkpoints/*.json")), process)
        fill(ray_directory)
        _, err = process.communicate(timeout=PATIENCE)
    ray_directory.rmdir()
    assert process.returncode == 1, err
    (message,) = [line for line in lines(err) if line.startswith("the sweep broke off: ")]  # Ray adds its own lines
    assert message.startswith("the sweep broke off: disk full: No space left on device")
    assert message.endswith(f"resume with: {resume_command('runs/x')}")
    completed = alone("--resume", "runs/x", cwd=tmp_path)
    assert completed.returncode == 0, completed.stderr
    assert scores(root, "seed=0") == undisturbed


def test_a_trial_that_ray_ends_for_want_of_memory_says_so(tmp_path):
    completed = on_ray(
        *BRIEF,
        *("--usl_epochs", "6", "--set", "tune.checkpoint_seconds=0", "--set", "tune.max_failures=0", "--name", "x"),
        cwd=tmp_path,
        RAY_memory_usage_threshold="0.001",  # any memory use is too much
    )
    assert completed.returncode == 1
    failed = result(tmp_path / "runs" / "x", "seed=0")
    assert failed["error"] == "out of memory: Ray ended its process as its node ran low on memory"
    assert lines(completed.stderr) == [f"failed: seed=0: {failed['error']}"]
