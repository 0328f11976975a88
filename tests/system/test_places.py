"""The home directory, `~`, the token file and Ray's directory on machines where they are unusual."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from raysweep.backends.ray.authentication import present_token
from raysweep.errors import InputError
from raysweep.system.places import cache_directory, settle_cache_directory, settle_ray_directory
from tests.support import PATIENCE, ROOT
from tests.support.commands import here

QUICK = ["--usl_type", "simclr", "--usl_epochs", "0", "--le_epochs", "1", "--local", "--name", "x"]
STRANGER = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]
"""Runs a command as a user unknown to the machine, as containers do."""
TOKENS = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def data(few):
    """Return the arguments that choose a few images."""
    return [word for name, value in few.items() for word in (f"--{name}", str(value))]


def can(*command):
    """Return whether this machine lets its user run the command."""
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def no_token(monkeypatch):
    for name in TOKENS:
        monkeypatch.setenv(name, "")  # monkeypatch then undoes later changes


@pytest.fixture
def ray_directory(monkeypatch):
    """A function that chooses Ray's directory in an environment and returns it."""

    def choose(**environment):
        for name in ("RAY_TMPDIR", "TMPDIR"):
            monkeypatch.setenv(name, environment.get(name, ""))
        settle_ray_directory()
        return os.environ["RAY_TMPDIR"]

    return choose


@pytest.mark.parametrize(("name", "inside"), [("RAYSWEEP_CACHE", ""), ("XDG_CACHE_HOME", "raysweep")])
def test_a_relative_cache_directory_is_the_same_in_every_working_directory(name, inside, tmp_path, monkeypatch):
    (tmp_path / "trial").mkdir()
    for variable in ("RAYSWEEP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, "cache" if variable == name else "")
    monkeypatch.chdir(tmp_path)
    settle_cache_directory()
    monkeypatch.chdir(tmp_path / "trial")
    assert cache_directory() == tmp_path / "cache" / inside


def test_a_tilde_is_the_home_directory_in_every_argument(few, no_figures, tmp_path):
    home, folder = tmp_path / "home", tmp_path / "folder"
    home.mkdir()
    folder.mkdir()

    def run(program, *arguments):
        process = here(program, *arguments, cwd=folder, HOME=str(home))
        assert process.returncode == 0, process.stderr

    base = {**few, "usl_type": "simclr", "usl_epochs": 0, "le_epochs": 1}
    (home / "s.yaml").write_text(json.dumps({"base": base, "search": {"seed": [0]}}))
    run("run_sweep.py", "~/s.yaml", "--local", "--name=x", "--output=~/runs", "--set", "data_dir=~/data")
    run("run_sweep.py", "--resume=~/runs/x", "--local", "--seed", "1")
    run("raysweep", "report", "~/runs/x")
    run("run_sweep.py", "~/s.yaml", "--local", "--name=y", "--output", "~/runs")
    run("raysweep", "report", "~/runs/x", "~/runs/y", "-o", "~/both")
    run("raysweep", "export", "~/runs/x/seed=0", "-o~/encoder.pt")
    shutil.copytree(Path(few["dataset"].removeprefix("folder:"), "test", "1"), home / "images")
    run("raysweep", "embed", "~/runs/x/seed=0/encoder.safetensors", "~/images", "--output=~/features.npz")
    run("raysweep", "preview", "~/s.yaml", "-o", "~/views.png")
    assert list(folder.iterdir()) == []
    assert f"data_dir: {home}/data" in (home / "runs" / "x" / "sweep.yaml").read_text()
    assert {"both", "encoder.pt", "features.npz", "views.png"} <= {path.name for path in home.iterdir()}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--output=~nobody-of-that-name/x"],
        ["--resume", "~nobody-of-that-name/x"],
        ["~nobody-of-that-name/s.yaml"],
        ["--data_dir", "~nobody-of-that-name/x"],
        ["--dataset", "folder:~nobody-of-that-name/x"],
    ],
)
def test_the_home_of_nobody_is_refused_in_one_line(run_sweep, tmp_path, arguments):
    process = run_sweep(*QUICK, *arguments)
    assert (process.returncode, process.stderr.count("\n")) == (2, 1)
    assert "there is no user 'nobody-of-that-name'" in process.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("home", [None, "", "relative"])
def test_a_sweep_runs_for_a_user_who_has_no_home_and_no_name(few, tmp_path, home):
    if not can(*STRANGER, "true"):
        pytest.skip("needs user namespaces (unshare --user)")
    environment = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path), **({} if home is None else {"HOME": home})}
    program = [*STRANGER, sys.executable, str(ROOT / "run_sweep.py"), *QUICK, *data(few)]

    def run(*arguments):
        return subprocess.run(
            [*program, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )

    refused = run("--output", "~/runs")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "set HOME" in refused.stderr
    if home is None:
        process = run()
        assert (process.returncode, process.stderr) == (0, "")
    directory = tmp_path / "home-54321-raysweep"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


@pytest.mark.slow
def test_ray_starts_for_a_user_who_has_no_home_and_no_name(few, tmp_path):
    if not can(*STRANGER, "true"):
        pytest.skip("needs user namespaces (unshare --user)")
    environment = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)}  # this TMPDIR is too long for Ray
    environment |= {name: os.environ[name] for name in ("RAY_prestart_worker_first_driver", "RAY_worker_niceness")}
    arguments = [each for each in QUICK if each != "--local"]
    program = [*STRANGER, sys.executable, str(ROOT / "run_sweep.py"), *arguments, *data(few)]
    process = subprocess.run(
        program, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert process.returncode == 0, process.stderr
    token = tmp_path / "home-54321-raysweep" / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600


def test_a_home_that_cannot_hold_a_token_is_no_obstacle(tmp_path, no_token, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.delitem(sys.modules, "ray", raising=False)  # as in a process that has not imported Ray
    for home in ("/proc/nobody", str(tmp_path / "file")):
        monkeypatch.setenv("HOME", home)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "")
        present_token(None)
        assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
        assert os.environ["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize("content", ["", " \n"])
def test_an_empty_token_is_none(tmp_path, no_token, monkeypatch, content):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(content)
    present_token(None)
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


READ_ONLY = 'mount --bind "$HOME" "$HOME" && mount -o remount,ro,bind "$HOME" && exec "$@"'
PRESENT = """
import os, sys
from raysweep.backends.ray.authentication import present_token
present_token(sys.argv[1] or None)
print(os.environ.get("RAY_AUTH_TOKEN"), os.environ.get("RAY_AUTH_MODE"))
"""


@pytest.mark.parametrize("address", ["", "10.0.0.1:6379"])
@pytest.mark.parametrize("given", [{}, {"RAY_AUTH_TOKEN": "b" * 64}, {"RAY_AUTH_TOKEN_PATH": "token"}])
def test_a_token_that_cannot_be_closed_is_a_warning(tmp_path, address, given):
    home = tmp_path / "home"
    within = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", READ_ONLY, "sh"]
    file = home / ".ray" / "auth_token"
    file.parent.mkdir(parents=True)
    file.write_text("a" * 64)
    file.chmod(0o644)
    (tmp_path / "token").write_text("c" * 64)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(home), **given}
    if subprocess.run([*within, "true"], env=environment, capture_output=True, check=False).returncode:
        pytest.skip("needs to mount a directory read-only for a process alone (unshare --user --mount)")
    program = [*within, sys.executable, "-c", PRESENT, address]
    process = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert f"{file}: others may read this token" in process.stderr
    assert "RAY_AUTH_TOKEN" in process.stderr
    token, mode = process.stdout.split()
    assert mode == "token"
    if given or address:
        assert token == given.get("RAY_AUTH_TOKEN", "None")
    else:  # a Ray that is started here gets a token that nobody has read
        assert len(token) == 64
        assert token != "a" * 64


def test_a_token_path_without_a_token_is_refused(tmp_path, no_token, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"RAY_AUTH_TOKEN_PATH=.*/none: no token can be read there"):
        present_token(None)


@pytest.mark.parametrize("name", ["l" * 60, "ü", "it's", "100%", "$x"])
def test_a_tmpdir_that_ray_cannot_use_is_replaced_and_a_ray_tmpdir_is_refused(tmp_path, ray_directory, name):
    directory = str(tmp_path / name)
    with pytest.warns(UserWarning, match="TMPDIR") as warned:
        assert ray_directory(TMPDIR=directory) == "/tmp"
    assert "RAY_TMPDIR" in str(warned[0].message)
    with pytest.raises(InputError, match="RAY_TMPDIR=/tmp"):
        ray_directory(RAY_TMPDIR=directory)
    assert not os.path.lexists(directory)


@pytest.mark.parametrize("directory", ["/proc", "/proc/none/x", "/dev/null"])
def test_a_ray_tmpdir_that_cannot_be_written_to_is_refused(ray_directory, directory):
    with pytest.raises(InputError, match="RAY_TMPDIR=/tmp"):
        ray_directory(RAY_TMPDIR=directory)


def test_an_empty_variable_names_no_directory_and_a_relative_one_is_made_absolute(ray_directory, monkeypatch, tmp_path):
    assert ray_directory() == "/tmp"
    monkeypatch.chdir("/")
    assert ray_directory(RAY_TMPDIR="tmp") == "/tmp"
    short = Path("/tmp") / f"r{os.getpid()}"
    short.mkdir()
    assert ray_directory(TMPDIR=str(short)) == str(short)
    short.rmdir()
