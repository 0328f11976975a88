"""One Ray that serves all tests of a test process which do not care when Ray starts.

To start and end a Ray takes about 5 s of a core. `tests/conftest.py` ends this Ray before the tests of a module that
names none of the `HELPERS`, so no other test sees an initialised Ray.
"""

from __future__ import annotations

import logging
import os
import sys

from raysweep.backends.ray.authentication import present_token
from raysweep.backends.ray.environment import imports_from_our_folder, prepare_environment
from raysweep.backends.ray.session import VARIABLES, is_initialized
from raysweep.system.places import settle_ray_directory
from tests.support.cluster import TRIES

CPUS = 2
HELPERS = ("on_shared_ray", "start_shared_ray")
"""The functions that start the shared Ray. A module that imports one of them by this name keeps it running."""
_is_running = False


def uses_shared_ray(module):
    """Return whether the tests of a module use the shared Ray."""
    return any(hasattr(module, name) for name in HELPERS)


def init_patiently(**options):
    """Start Ray on this machine as a user does. If a busy machine exceeds Ray's own limits, start it again."""
    import ray

    for number in range(TRIES):
        try:
            return ray.init(address="local", include_dashboard=False, log_to_driver=False, **options)
        except Exception as fault:  # Ray raises a plain Exception for a timeout
            if number == TRIES - 1 or "timed out during startup" not in str(fault):
                raise
            ray.shutdown()
    raise AssertionError("the last try returns or raises")


def start_shared_ray():
    """Start the shared Ray as `raysweep.backends.ray.cluster.connect` starts one, with two CPUs, unless it runs.

    Its workers keep the environment of this process at the start. Each trial still runs in a new process of Ray's.
    """
    global _is_running
    if _is_running:
        return
    assert not is_initialized(), "this process uses another Ray"
    before = {name: os.environ.get(name) for name in VARIABLES}
    level = logging.getLogger("ray").level
    try:
        settle_ray_directory()
        present_token(None)
        prepare_environment(None)
        from raysweep.backends.ray.cluster import keeping_signals, quieten, show_chatter, start_or_attach

        quieten()
        with imports_from_our_folder(), keeping_signals():
            start_or_attach(None, CPUS)
        show_chatter()
        _is_running = True
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        logging.getLogger("ray").setLevel(level)


def end_shared_ray():
    """End the shared Ray if it runs."""
    global _is_running
    if _is_running:
        sys.modules["ray"].shutdown()
        _is_running = False
