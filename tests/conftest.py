"""Settings and fixtures that several tests need."""

import os
import random
import signal
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image
from sklearn.datasets import load_digits

from raysweep import plugins
from tests.support import PATIENCE
from tests.support.commands import here
from tests.support.order import pytest_collection_modifyitems  # noqa: F401 (a hook of pytest)
from tests.support.shared_ray import end_shared_ray, uses_shared_ray

# The suite compares bits, plans and messages. All of these differ on a machine with GPUs: cuDNN does not repeat bits in
# fp32, and a plan names the GPUs. `make test-gpu` runs the tests of the GPU itself.
if os.environ.get("RAYSWEEP_TEST_GPU") != "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# Keep Ray from starting workers ahead. Trials do not use them, and they cost 0.7 s of a core per sweep.
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")

# Ray gives its workers a low priority (niceness 15). Beside other tests that compute, a trial would then get 3 % of a
# core, and a test that waits for the trial would run out of time.
os.environ.setdefault("RAY_worker_niceness", "0")

# On a busy machine, Ray's dashboard and workers may need longer than 60 s. Ray would print an error, or end the worker.
os.environ.setdefault("RAY_DASHBOARD_STARTUP_TIMEOUT_S", "600")
os.environ.setdefault("RAY_worker_register_timeout_seconds", "600")

# Ray must not send statistics from the tests.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

# A shell ignores Ctrl-C for the commands that it starts in the background, and the tests' processes would inherit this.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The models are tiny. With more threads than free cores, the threads wait for each other.
torch.set_num_threads(1)

# Every run of the suite tests the same examples, and no example fails because the machine is busy.
settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

LONGEST = 2 * PATIENCE  # seconds for the set-up, the body or the end of a test; a test itself waits for PATIENCE
AGAIN = 60.0  # seconds until the next alarm, for code that waits once more while it handles the first one


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """End the run if one of its processes ends early. pytest-xdist would start the same test again 16 times."""
    if getattr(config.option, "maxworkerrestart", "") is None:
        config.option.maxworkerrestart = "0"


@contextmanager
def alarm():
    """Fail a test if the block takes too long, for example because it reads from a pipe to which nobody writes.

    The alarm acts like Ctrl-C, the only interruption that Ray's functions pass on. Python handles it as soon as the
    main thread runs Python code or waits in the kernel. If the thread does neither, `faulthandler_timeout` in setup.cfg
    ends the process. A fork inherits no alarm.
    """
    rang = []

    def interrupt(number, frame):
        rang.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, LONGEST, AGAIN)
    try:
        yield
    except KeyboardInterrupt:
        if not rang:
            raise
        pytest.fail(f"not finished after {LONGEST:g} s")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if rang:
        pytest.fail(f"not finished after {LONGEST:g} s")


def seed():
    """Seed the global random generators, so that no values depend on the tests that ran before in this process."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup():
    seed()  # for the fixtures that several tests share and this test creates
    with alarm():
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call():
    with alarm():
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown():
    with alarm():
        return (yield)


@pytest.fixture(autouse=True)
def _seeded():
    """Seed once more after the shared fixtures, because only the first test that needs them creates them."""
    seed()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Keep the user's caches out of the tests, also for the processes that the tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSWEEP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _end_shared_ray_at_last():
    yield
    end_shared_ray()


@pytest.fixture(scope="module", autouse=True)
def _end_shared_ray(request):
    """End the Ray that tests share before the tests of a module that does not use it."""
    if not uses_shared_ray(request.module):
        end_shared_ray()


@pytest.fixture(scope="module", autouse=True)
def _no_plugins_of_other_modules():
    """End the plugins of a module's tests, because the settings and the reference page depend on active plugins."""
    yield
    plugins.activate(())


@pytest.fixture
def run_sweep(tmp_path):
    """A function that runs the real command in an empty directory without Ray, and returns the completed process."""

    def run(*arguments, **environment):
        return here("run_sweep.py", *arguments, cwd=tmp_path, **environment)

    return run


@pytest.fixture
def refused(run_sweep, tmp_path):
    """A function that runs the command, checks that it is refused and leaves no files, and returns its one line."""

    def run(*arguments, **environment):
        before = sorted(tmp_path.rglob("*"))
        process = run_sweep(*arguments, **environment)
        assert process.returncode == 2, process
        assert process.stdout == ""
        assert process.stderr.startswith("error: ")
        assert process.stderr.count("\n") == 1
        assert "Traceback" not in process.stderr
        assert sorted(tmp_path.rglob("*")) == before
        return process.stderr

    return run


@pytest.fixture(scope="session")
def few(tmp_path_factory):
    """Settings of a sweep on 120 of the digits. Training on all of them takes ten times as long."""
    folder = tmp_path_factory.mktemp("few")
    images, labels = load_digits(return_X_y=True)
    for number, (pixels, label) in enumerate(zip(images[:120].reshape(-1, 8, 8) * 15, labels)):
        directory = folder / ("test" if number % 3 == 0 else "train") / str(label)
        directory.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(directory / f"{number}.png")
    return {"dataset": f"folder:{folder}", "image_size": 8, "batch_size": 20, "knn_k": 5}


@pytest.fixture(scope="module")
def no_figures():
    """Write no figures in the tests of a module. They take most of the time of a report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raysweep.report.building.figures_of", lambda report: {})
        yield
