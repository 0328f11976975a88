"""The rules that `tests/conftest.py` sets for all tests."""

import os
import random
import signal
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import settings

from tests import conftest

DRAWN = []


def test_what_hangs_fails(monkeypatch):
    assert signal.getitimer(signal.ITIMER_REAL)[0] > conftest.PATIENCE
    monkeypatch.setattr(conftest, "LONGEST", 0.1)
    reading, writing = os.pipe()
    with pytest.raises(pytest.fail.Exception, match=r"not finished after 0\.1 s"), conftest.alarm():
        os.read(reading, 1)
    swallowed = suppress(KeyboardInterrupt)  # as a command does that ends at Ctrl-C
    with pytest.raises(pytest.fail.Exception, match=r"not finished after 0\.1 s"), conftest.alarm(), swallowed:
        os.read(reading, 1)
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("number", range(2))
def test_every_test_starts_with_the_same_random_numbers(number):
    DRAWN.append((torch.rand(1).item(), np.random.rand(), random.random()))
    assert DRAWN[-1] == DRAWN[0]


def test_properties_are_tested_without_a_deadline_on_the_same_examples():
    assert settings().deadline is None
    assert settings().derandomize
