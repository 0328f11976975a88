"""The Ray of a sweep refuses everyone without its token, shows no dashboard, and writes down no credentials."""

import http.client
import logging
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from benchmarks.chaos import MARK, processes
from tests.support import PATIENCE, ROOT, forked
from tests.support.cluster import USERS_OWN, wait_for
from tests.support.gate import Gate

JOIN = "import sys, ray; ray.init(address=sys.argv[1], logging_level='ERROR'); print('joined', len(ray.nodes()))"

AT_ONCE = {"RAY_NUM_REDIS_GET_RETRIES": "1"}  # seconds for which Ray retries a refused token; the default is 20
SECRET = "SECRETXYZ"


@pytest.fixture(scope="module")
def bucket():
    """A bucket on a local server that accepts any credentials, and the environment for reaching it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs a line for every request
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    environment = {name: f"{SECRET}_{name}" for name in (*names, "AWS_SECURITY_TOKEN")}
    keys = {name.lower(): environment[name] for name in names}
    client = boto3.client("s3", endpoint_url=address, region_name="us-east-1", **keys)
    client.create_bucket(Bucket="results")
    yield client, {**environment, "AWS_ENDPOINT_URL": address, "AWS_DEFAULT_REGION": "us-east-1"}
    server.stop()


@dataclass
class Running:
    """A sweep whose trial waits between two steps."""

    folder: Path
    """The home directory and the working directory of its user."""
    ray_directory: Path
    environment: dict[str, str]
    driver: forked.Process
    gate: Gate

    def processes(self):
        """Return its processes as a mapping from pid to title."""
        return processes(self.folder.name)


@pytest.fixture(scope="module")
def sweep(bucket, few_flags, tmp_path_factory):
    """A sweep of a user who never used Ray before. Its results go to a bucket, with credentials in the environment."""
    folder = tmp_path_factory.mktemp("security")
    ray_directory = Path(tempfile.mkdtemp(dir="/tmp"))  # the path must be short, because Ray puts sockets there
    cache = {"RAY_TMPDIR": str(ray_directory), "RAYSWEEP_CACHE": str(folder / "cache")}
    # All Rays of a machine try to serve the dashboard's counters at one port, and only the first one gets it.
    counters = {"DASHBOARD_METRIC_PORT": "0"}
    environment = {**os.environ, "HOME": str(folder), MARK: folder.name, **cache, **counters, **bucket[1]}
    for name in USERS_OWN:
        environment.pop(name, None)
    gate = Gate(folder, step=1)
    settings = [*few_flags, "--usl_type", "simclr", "--usl_epochs", "1", "--le_epochs", "1", *gate.arguments]
    program = [ROOT / "run_sweep.py", *settings, "--output", "s3://results/x", "--name", "n"]
    driver = forked.start(*program, cwd=folder, environment=environment)
    try:
        gate.wait(driver)
        yield Running(folder, ray_directory, environment, driver, gate)
    finally:
        driver.kill()
        for pid in processes(folder.name):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        driver.communicate()
        shutil.rmtree(ray_directory, ignore_errors=True)  # a process that is being killed may still write there


def join(sweep, **changes):
    """Run a process that tries to join the sweep's Ray, with these changes to its environment."""
    titles = sweep.processes().values()
    (address,) = {match[1] for title in titles if (match := re.search(r"--gcs-address=(\S+)", title))}
    environment = {name: value for name, value in sweep.environment.items() if name != MARK} | changes
    program = [sys.executable, "-c", JOIN, address]
    return subprocess.run(program, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)


@pytest.mark.slow
def test_who_has_no_token_is_refused(sweep, tmp_path):
    stranger = join(sweep, HOME=str(tmp_path), RAY_AUTH_MODE="disabled", **AT_ONCE)
    assert stranger.returncode != 0
    assert "AuthenticationError" in stranger.stderr
    assert "joined" not in stranger.stdout


@pytest.mark.slow
def test_who_has_another_token_is_refused(sweep):
    stranger = join(sweep, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64, **AT_ONCE)
    assert stranger.returncode != 0
    assert "AuthenticationError" in stranger.stderr
    assert "joined" not in stranger.stdout


@pytest.mark.slow
def test_the_same_user_is_admitted_by_a_token_that_only_they_can_read(sweep):
    member = join(sweep, RAY_AUTH_MODE="token")
    assert member.stdout == "joined 1\n", member.stderr
    token = sweep.folder / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) & 0o077 == 0


@pytest.mark.slow
def test_no_dashboard_serves_who_has_no_token(sweep):
    wait_for(lambda: ports(sweep, "/raylet/raylet"), sweep.driver)
    if find_spec("aiohttp") is None:
        pytest.skip("ray[default] is not installed, so no dashboard process listens")
    # With ray[default], dashboard processes listen, some seconds after the raylet. They show only counters.
    for program, port in wait_for(lambda: ports(sweep, "dashboard"), sweep.driver):
        for path in ("", "api/version", "api/jobs/", "nodes?view=summary"):
            shown = get(f"http://127.0.0.1:{port}/{path}")
            assert shown is None or shown.startswith(b"# HELP "), (program, path, shown)


@pytest.mark.slow
def test_no_log_and_no_result_has_the_credentials_of_the_environment(sweep, bucket):
    """This test comes after the others, because it lets the sweep end."""
    client, _ = bucket
    sweep.gate.open()
    stdout, stderr = sweep.driver.communicate(timeout=PATIENCE)
    assert sweep.driver.returncode == 0, stderr
    objects = {
        each["Key"]: client.get_object(Bucket="results", Key=each["Key"])["Body"].read()
        for each in client.list_objects_v2(Bucket="results")["Contents"]
    }
    assert any(name.endswith("result.json") for name in objects), "workers on this machine reach the bucket"
    wait_for(lambda: not sweep.processes())  # the last ones still remove files
    folders = (sweep.ray_directory, sweep.folder)
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "runtime_env_agent.log" for path in files), (
        "the search includes the log that used to hold the credentials"
    )
    written = {"stdout": stdout.encode(), "stderr": stderr.encode(), **objects}
    written |= {str(path): path.read_bytes() for path in files}
    assert [name for name, content in written.items() if SECRET.encode() in content or SECRET in name] == []


def ports(sweep, words):
    """Return the sweep's programs that have these words and listen, each with a port."""
    listening = {}
    for table in ("tcp", "tcp6"):
        rows = [line.split() for line in Path("/proc/net", table).read_text().splitlines()[1:]]
        listening |= {row[9]: int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"}
    held = set()
    for pid, title in sweep.processes().items():
        program = " ".join(title.split()[:2])  # without its options
        for opened in descriptors(pid) if words in program.lower() else ():
            inode = re.fullmatch(r"socket:\[(\d+)\]", opened)
            if inode and inode[1] in listening:
                held.add((program, listening[inode[1]]))
    return held


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
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            return answer.read(1000)
    except (OSError, http.client.HTTPException) as fault:  # the connection is refused, or is not HTTP
        if isinstance(getattr(fault, "reason", fault), TimeoutError):
            raise
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


@pytest.mark.parametrize("address", ["", " ", "local"])
def test_an_address_that_names_no_cluster_leaves_the_token_private_and_the_directory_checked(tmp_path, address):
    """`RAY_ADDRESS= python run_sweep.py …` starts Ray, as it does without the variable."""
    environment = {name: value for name, value in os.environ.items() if name not in USERS_OWN}
    environment |= {"HOME": str(tmp_path), "RAY_ADDRESS": address, "RAY_TMPDIR": str(tmp_path / "it's")}
    process = forked.run(ROOT / "run_sweep.py", "--usl_type", "simclr", cwd=tmp_path, environment=environment)
    assert process.returncode == 2
    assert "Ray cannot keep its files in RAY_TMPDIR" in process.stderr
    assert stat.S_IMODE((tmp_path / ".ray" / "auth_token").stat().st_mode) == 0o600
