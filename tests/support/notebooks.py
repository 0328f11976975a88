"""Notebooks that are executed in a real kernel."""

import os

from nbclient import NotebookClient

from tests.support import PATIENCE, ROOT


def client_of(notebook, folder):
    """Return a client that executes the notebook in `folder`, and its kernel's environment, with inline figures."""
    client = NotebookClient(
        notebook,
        timeout=PATIENCE,
        startup_timeout=PATIENCE,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    backend = "module://matplotlib_inline.backend_inline"
    return client, {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": backend}
