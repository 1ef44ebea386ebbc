"""Tests in bf16: whether this CPU has it, and freed memory that shows where somebody reads what nobody wrote."""

import math

import pytest
import torch

HAS_BF16 = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))
needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason="this CPU has no bf16 instructions")


def poison():
    """Leave NaN and huge numbers in freed memory, where uninitialised buffers will find them."""
    for number in (math.nan, 1e30):
        held = [torch.full((4**power,), number) for power in range(2, 11) for _ in range(3)]
        del held
