"""Faults injected into the real command: each costs at most the trial that it hits, and the command says why."""

import os
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support import PATIENCE
from tests.support.commands import alone, flags, on_shared_ray, patiently, result, resume_command, scores
from tests.support.gate import Gate, lives

SOURCE = "raysweep-test-"  # the begin of the source of each mounted file system; the id of the test process follows
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_figures")]


@pytest.fixture(scope="module")
def brief(few):
    """The arguments of short trials."""
    settings = {**few, "le_epochs": 3, "probe_every": 0, "images_every": 0, "projector_images": 0}
    return [*flags(settings), "--set", "tune.max_failures=1"]


@pytest.fixture(scope="module")
def steps(brief):
    """The arguments of a trial with 12 steps, and a checkpoint after each step."""
    return [*brief, "--usl_epochs=3", "--set", "tune.checkpoint_seconds=0", "--name", "x"]


@contextmanager
def mounted(folder, *options):
    """Mount a separate file system at `folder`. Those of test processes that were killed are unmounted first."""
    for source, place in (line.split()[:2] for line in Path("/proc/mounts").read_text().splitlines()):
        if source.startswith(SOURCE) and not lives(int(source.removeprefix(SOURCE))):
            subprocess.run(["umount", "--lazy", place], check=False)
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
    return mounted(folder, "-t", "tmpfs", "-o", f"size={megabytes}m", f"{SOURCE}{os.getpid()}")


def fill(folder):
    """Fill the file system of `folder`, and return the file that takes the space."""
    path = folder / "filler"
    with open(path, "wb", buffering=0) as file:  # with a buffer, closing the file would write the rest, and fail too
        try:
            while True:
                file.write(bytes(2**16))
        except OSError:
            return path


def lines(text):
    """Return the lines of the output, and check that there is no traceback."""
    assert "Traceback" not in text
    return text.splitlines()


def test_too_little_memory_and_too_small_a_disk_fail_their_trials_only(tmp_path, brief):
    with small(tmp_path / "disk", 48):
        completed = on_shared_ray(
            *brief,
            *("--usl_epochs", "1", "--usl_type", "simclr", "--output", "disk", "--name", "x"),
            *("--set", "tune.max_concurrent=1"),  # one worker serves all trials
            *("--set", "embedding_dim=[64, 20000, 1000000000000]", "--set", "tune.checkpoint_seconds=0"),
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
def undisturbed(tmp_path_factory, steps):
    """The scores of a trial without any fault."""
    folder = tmp_path_factory.mktemp("undisturbed")
    completed = alone(*steps, cwd=folder)
    assert completed.returncode == 0, completed.stderr
    return scores(folder / "runs" / "x", "seed=0")


def finish(root, undisturbed):
    """Resume the sweep; its trial must end as the undisturbed one."""
    completed = alone("--resume", root, cwd=root.parent)
    assert completed.returncode == 0, completed.stderr
    assert result(root, "seed=0")["attempts"] > 1
    assert scores(root, "seed=0") == undisturbed


@pytest.mark.parametrize(("disk_fault", "run"), [("full", on_shared_ray), ("read-only", alone)])
def test_a_disk_that_fails_in_mid_run_leaves_checkpoints_from_which_it_is_finished_later(
    undisturbed, steps, tmp_path, disk_fault, run
):
    disk, gate = tmp_path / "disk", Gate(tmp_path, step=6)
    root, faults = disk / "x", ExitStack()

    def break_disk():
        gate.wait()
        if disk_fault == "full":
            faults.callback(fill(disk).unlink)
        else:
            faults.enter_context(mounted(root, "--bind", "-o", "ro", str(root)))

    with small(disk, 64):
        with faults, gate.meanwhile(break_disk):
            completed = run(*steps, *gate.arguments, "--output", "disk", cwd=tmp_path)
        words = "disk full: No space left on device" if disk_fault == "full" else "OSError: Read-only file system"
        assert list(root.glob("seed=0/checkpoints/*.json"))
        assert completed.returncode == 1, completed.stderr
        assert f"seed=0  FAILED: {words}" in completed.stdout
        messages = lines(completed.stderr)
        assert any(line.startswith("warning: seed=0: the end of the trial cannot be recorded: ") for line in messages)
        assert messages[-1].startswith(f"the report cannot be written: {words}: ")
        assert len(messages) == 2
        assert not (root / "seed=0" / "result.json").exists()
        finish(root, undisturbed)


def test_a_sweep_that_finishes_although_the_directory_of_ray_is_full_ends_as_usual(undisturbed, steps, tmp_path):
    ray_directory = Path(tempfile.mkdtemp(prefix="full-", dir="/tmp"))
    gate = Gate(tmp_path, step=6)
    with small(ray_directory, 300):
        # Tune writes its state every ten seconds, which would end the sweep, and at the end.
        options = {"RAY_TMPDIR": str(ray_directory), "TUNE_GLOBAL_CHECKPOINT_S": "3600"}
        process = patiently(*steps, *gate.arguments, cwd=tmp_path, **options)
        gate.wait(process)
        fill(ray_directory)
        gate.open()
        _, err = process.communicate(timeout=PATIENCE)
    ray_directory.rmdir()
    assert process.returncode == 0, err
    assert not [line for line in lines(err) if "snapshotting" in line]  # Ray adds its own lines
    assert scores(tmp_path / "runs" / "x", "seed=0") == undisturbed


def test_a_full_directory_of_ray_breaks_the_sweep_off_and_it_is_finished_later(undisturbed, steps, tmp_path):
    ray_directory = Path(tempfile.mkdtemp(prefix="full-", dir="/tmp"))  # Ray needs a short path
    gate = Gate(tmp_path, step=6)
    with small(ray_directory, 300):
        options = {"RAY_TMPDIR": str(ray_directory), "TUNE_GLOBAL_CHECKPOINT_S": "1"}
        process = patiently(*steps, *gate.arguments, cwd=tmp_path, **options)
        gate.wait(process)
        fill(ray_directory)  # the trial is held until Tune writes there next, which ends the sweep
        _, err = process.communicate(timeout=PATIENCE)
    gate.open()
    ray_directory.rmdir()
    assert process.returncode == 1, err
    (message,) = [line for line in lines(err) if line.startswith("the sweep broke off: ")]  # Ray adds its own lines
    assert message.startswith("the sweep broke off: disk full: No space left on device")
    assert message.endswith(f"resume with: {resume_command('runs/x')}")
    finish(tmp_path / "runs" / "x", undisturbed)
