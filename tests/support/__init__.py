"""Helpers that several test modules use."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The root of the checkout."""

PATIENCE = 600.0
"""Seconds for which a test waits for another process. It is long because the machine may be busy with other tests."""
