"""The order in which the test files are handed out to the test processes.

With `--dist loadfile --no-loadscope-reorder`, a process that is free gets the next file of the collection. A long file
must not begin when the others are nearly over. Files that share a Ray follow each other, because each process starts
this Ray once for the files that it gets in a row.
"""

from pathlib import Path

from tests.support.shared_ray import uses_shared_ray

LONGEST = (
    "backends/ray/test_workers_on_nodes.py",
    "backends/ray/test_nodes.py",
    "backends/ray/test_environment.py",
    "backends/ray/test_trainable.py",
    "results/test_bucket.py",
    "backends/ray/test_jobs.py",
    "test_chaos.py",
    "backends/ray/test_security.py",
    "test_examples_notebook.py",
    "test_notebook.py",
    "backends/ray/test_command.py",
    "backends/ray/test_faults.py",
    "backends/ray/test_stopping.py",
)
"""The longest files, in the order in which they begin. The last ones share a Ray, as the files after them do."""
TESTS = Path(__file__).parents[1]
assert all((TESTS / name).exists() for name in LONGEST), "a file has another name now"


def pytest_collection_modifyitems(items):
    """Sort the tests: the longest files, then the files that share a Ray, then the others; each file as it was."""

    def rank(item):
        name = str(item.path).removeprefix(f"{TESTS}/")
        if name in LONGEST:
            return LONGEST.index(name)
        return len(LONGEST) + (not uses_shared_ray(item.module))

    items.sort(key=rank)
