"""Fixtures of the tests of sweeps on Ray."""

import pytest

from tests.support.commands import flags


@pytest.fixture(scope="session")
def few_flags(few):
    """The arguments for a sweep on few images."""
    return flags(few)
