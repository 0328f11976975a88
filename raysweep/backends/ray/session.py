"""Runs of sweeps on Ray in a process that continues afterwards, such as a notebook. This module does not import Ray."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from raysweep.errors import InputError

VARIABLES = (
    *("RAY_AIR_NEW_OUTPUT", "RAY_ENABLE_UV_RUN_RUNTIME_ENV", "RAY_NUM_REDIS_GET_RETRIES", "RAY_TMPDIR"),
    *("RAY_gcs_rpc_server_reconnect_timeout_s", "RAY_prestart_worker_first_driver", "RAYSWEEP_CACHE"),
    *("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "TUNE_DISABLE_SIGINT_HANDLER", "TUNE_FUNCTION_THREAD_TIMEOUT_S"),
)
"""The environment variables that a run on Ray sets, and that would change a later Tuner of the user.

The variables of Ray's token stay, because Ray stores the token for the whole life of a process."""
_busy = threading.Lock()


def is_initialized() -> bool:
    """Return whether this process is connected to Ray."""
    ray: Any = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def leave() -> None:
    """Leave Ray at the end of a command. If Ray left by itself at the exit, it would first wait half a second."""
    if is_initialized():
        sys.modules["ray"].shutdown()


@contextmanager
def session() -> Iterator[None]:
    """Run one sweep on Ray inside the block, and leave the process as it was before.

    A Ray that the block starts, or a cluster that it connects to, is left at the end. A Ray that was already
    initialised stays.

    Raises:
        InputError: Another thread of this process runs a sweep on Ray.
    """
    if not _busy.acquire(blocking=False):
        raise InputError("another thread of this process runs a sweep on Ray; wait until it has ended")
    try:
        variables = {name: os.environ.get(name) for name in VARIABLES}
        was_initialized = is_initialized()
        logger = logging.getLogger("ray")
        level = logger.level
        try:
            yield
        finally:
            if not was_initialized and is_initialized():
                sys.modules["ray"].shutdown()
            for name, value in variables.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
            if "ray" in sys.modules:
                from raysweep.backends.ray.cluster import show_chatter

                show_chatter()
                logger.setLevel(level)
    finally:
        _busy.release()
