"""The Ray that a sweep starts refuses everyone without its token, and shows no dashboard."""

import http.client
import os
import re
import signal
import stat
import subprocess
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.chaos import MARK, processes
from tests.support import PATIENCE, ROOT
from tests.support.cluster import wait_for

JOIN = "import sys, ray; ray.init(address=sys.argv[1], logging_level='ERROR'); print('joined', len(ray.nodes()))"

FEW = {"RAY_NUM_REDIS_GET_RETRIES": "3"}  # seconds for which Ray retries a refused token; the default is 20


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A running sweep of a user who never used Ray before: the user's environment and the sweep's processes."""
    folder = tmp_path_factory.mktemp("security")
    environment = {**os.environ, "HOME": str(folder), MARK: folder.name}
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        environment.pop(name, None)
    program = [sys.executable, str(ROOT / "run_sweep.py"), "--usl_type", "simclr", "--usl_epochs", "10000"]
    driver = subprocess.Popen(program, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        wait_for(lambda: (folder / "runs" / "simclr" / "seed=0" / "attempt.json").exists(), driver)
        yield environment, processes(folder.name)
    finally:
        driver.kill()
        for pid in processes(folder.name):
            os.kill(pid, signal.SIGKILL)
        driver.communicate()


def join(sweep, **changes):
    """Run a process that tries to join the sweep's Ray, with these changes to its environment."""
    environment, titles = sweep
    (address,) = {match[1] for title in titles.values() if (match := re.search(r"--gcs-address=(\S+)", title))}
    environment = {name: value for name, value in environment.items() if name != MARK} | changes
    program = [sys.executable, "-c", JOIN, address]
    return subprocess.run(program, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)


@pytest.mark.slow
def test_who_has_no_token_is_refused(sweep, tmp_path):
    stranger = join(sweep, HOME=str(tmp_path), RAY_AUTH_MODE="disabled", **FEW)
    assert stranger.returncode != 0
    assert "joined" not in stranger.stdout


@pytest.mark.slow
def test_who_has_another_token_is_refused(sweep):
    stranger = join(sweep, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64, **FEW)
    assert stranger.returncode != 0
    assert "joined" not in stranger.stdout


@pytest.mark.slow
def test_the_same_user_is_admitted_by_a_token_that_only_they_can_read(sweep):
    member = join(sweep, RAY_AUTH_MODE="token")
    assert member.stdout == "joined 1\n", member.stderr
    token = Path(sweep[0]["HOME"], ".ray", "auth_token")
    assert stat.S_IMODE(token.stat().st_mode) & 0o077 == 0


@pytest.mark.slow
def test_no_dashboard_serves_who_has_no_token(sweep):
    listening = {}
    for table in ("tcp", "tcp6"):
        rows = [line.split() for line in Path("/proc/net", table).read_text().splitlines()[1:]]
        listening |= {row[9]: int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"}
    held = set()
    for pid, title in sweep[1].items():
        for opened in descriptors(pid):
            inode = re.fullmatch(r"socket:\[(\d+)\]", opened)
            if inode and inode[1] in listening:
                held.add((" ".join(title.split()[:2]), listening[inode[1]]))  # the program without its options
    assert any("/raylet/raylet" in program for program, _ in held), "the raylet's ports are among those found"
    # Without ray[default], no dashboard process listens. With it, the processes listen but show only counters.
    for program, port in held:
        if "dashboard" in program.lower():
            for path in ("", "api/version", "api/jobs/", "nodes?view=summary"):
                shown = get(f"http://127.0.0.1:{port}/{path}")
                assert shown is None or shown.startswith(b"# HELP "), (program, path, shown)


def descriptors(pid):
    """Return the target of each open file descriptor of a process. Descriptors that it has just closed are skipped."""
    opened = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):
                opened.append(os.readlink(path))
    return opened


def get(url):
    """Return what the URL serves without a token, or None if nothing."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.read(1000)
    except (OSError, http.client.HTTPException):  # the connection is refused, or is not HTTP
        return None


PRESENT = """
import os, sys
from raysweep.backends.ray.authentication import present_token
present_token(sys.argv[1] if sys.argv[1:] else None)
print(os.environ.get("RAY_AUTH_MODE"))
"""


def test_a_token_is_made_once_and_only_its_owner_can_read_it(tmp_path):
    """In processes of their own, because the mode is set only where Ray has not been imported yet."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_A")}

    def present(*address):
        command = [sys.executable, "-c", PRESENT, *address]
        return subprocess.check_output(command, env={**environment, "HOME": str(tmp_path)}, cwd=ROOT, text=True).strip()

    token = tmp_path / ".ray" / "auth_token"
    present("10.0.0.1:6379")
    assert not token.exists(), "a cluster elsewhere has its own token"
    assert present() == "token"
    content = token.read_text()
    assert len(content) == 64
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    token.chmod(0o644)  # the mode that Ray gives it
    assert present() == "token"
    assert (token.read_text(), stat.S_IMODE(token.stat().st_mode)) == (content, 0o600)
    assert [path.name for path in token.parent.iterdir()] == ["auth_token"]
