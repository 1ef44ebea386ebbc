"""One seed, many streams: every (seed, site, round) draws its own numbers, whatever else runs."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import torch


def stream_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream of these names, such as ``(seed, "site-1", round)``."""
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def start_stream(seed: int, *names: str | int) -> np.random.Generator:
    """Seed torch (dropout) and return NumPy's generator (patches, augmentation) for a stream."""
    value = stream_seed(seed, *names)
    torch.manual_seed(value)
    return np.random.default_rng(value)


def make_deterministic() -> None:
    """Same inputs, same machine, same threads: the same bits, or an error where torch has no such algorithm."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
