"""Prepare this process's environment before Ray is imported. So this module does not import Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import raysweep
from raysweep.errors import InputError


def cluster_address(given: str | None) -> str | None:
    """Return the address of the Ray cluster that a sweep uses; None if Ray is started on this machine.

    As for Ray itself, an empty `RAY_ADDRESS` counts as unset, and the address `local` starts Ray.

    Args:
        given: The address from the command line or from Python; None takes `RAY_ADDRESS`.
    """
    address = (given or os.environ.get("RAY_ADDRESS", "")).strip()
    return None if address in ("", "local") else address


def check_address(address: str) -> None:
    """Raise InputError if the address contains a password, or is an address for Ray's client."""
    if "@" in address:  # the address is printed and logged
        raise InputError("an address must not contain credentials, because it is logged; set RAY_AUTH_TOKEN")
    if address.strip().startswith("ray://"):
        raise InputError(
            f"{address}: a sweep cannot run through Ray's client; start it on a machine of the cluster with the "
            f"address HOST:6379, or send it there with `ray job submit`"
        )


def prepare_environment(address: str | None) -> None:
    """Set the variables that Ray reads when it is imported; variables that the user has set stay unchanged.

    Args:
        address: The address of the cluster; None if Ray is started on this machine.
    """
    # Under `uv run`, Ray would repeat that command in every worker, in a copy of the working directory that lacks the
    # environment, and no worker would ever start.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    if address is None:  # a dead server on this machine does not return, but Ray would look for it for a minute
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "20")
        # Ray would start a worker for each CPU ahead and wait for it. Trials need workers with another environment.
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")


def import_folder() -> Path:
    """Return the folder from which workers may import, in addition to Python's own path.

    This is the checkout if raysweep is not installed elsewhere, so that `import raysweep` works in workers too. For an
    installed package it is a folder of raysweep that contains no Python module.
    """
    package = Path(raysweep.__file__).parent
    installed = package / "search_spaces"
    return installed if installed.is_dir() else package.parent


@contextmanager
def imports_from_our_folder() -> Iterator[None]:
    """Change to `import_folder()` while Ray starts.

    Ray puts the driver's working directory before the standard library in every worker. A user's `statistics.py` there
    would be imported in place of Python's.
    """
    before = os.open(".", os.O_RDONLY)  # a descriptor, because a removed directory has no name to return to
    try:
        os.chdir(import_folder())
        yield
    finally:
        os.fchdir(before)
        os.close(before)
