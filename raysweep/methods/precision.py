"""The precision in which networks compute."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from raysweep.config import Settings


def autocast_for(settings: Settings, like: Tensor) -> torch.autocast:
    """The precision in which a network computes."""
    kind = like.device.type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=precision_of(settings, kind) == "bf16")


def fp32_region(like: Tensor) -> AbstractContextManager[Any]:
    """A context in which operations are not autocast to bf16, for losses."""
    kind = like.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def precision_of(settings: Settings, device: str) -> str:
    """Return the precision on this type of device: `fp32` or `bf16`."""
    if settings.precision == "auto":
        return "bf16" if has_bf16(device) else "fp32"
    return settings.precision


@cache
def has_bf16(device: str) -> bool:
    """Whether this type of device computes bf16 in hardware. Emulated bf16 is slower than fp32."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # PyTorch before 2.11 does not tell
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def to_fp32(x: Tensor) -> Tensor:
    """Convert bf16 to fp32. Its 8 bits of mantissa are too few for a similarity over τ or a mean of small squares."""
    return x.float() if x.dtype == torch.bfloat16 else x
