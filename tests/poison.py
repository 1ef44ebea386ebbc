"""Freed memory that shows where somebody reads what nobody wrote."""

import math

import torch


def poison():
    """Leave NaN and huge numbers in freed memory, where uninitialised buffers will find them."""
    for number in (math.nan, 1e30):
        held = [torch.full((4**power,), number) for power in range(2, 11) for _ in range(3)]
        del held
