"""Every random draw of a trial comes from a `torch.Generator` named here; no global one.

Modules draw their initial weights from PyTorch's global generator, which is seeded for it and put back afterwards.
"""

from __future__ import annotations

import hashlib

import torch


def seed_of(seed: int, purpose: str) -> int:
    """A 63-bit seed for one purpose of a trial, so that no two purposes share a stream."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator for one purpose. CPU, so that a trial draws the same numbers on every device."""
    return torch.Generator().manual_seed(seed_of(seed, purpose))
