"""Which kind of failure an exception is, so that the server hears the kind and nothing else."""

from __future__ import annotations

import torch
from safetensors import SafetensorError

from fl_app.errors import ConfigError, DataError, PolicyError, ProcessError, TrainingError, UserError
from fl_app.messages import SiteFailure


def classify(error: BaseException) -> SiteFailure:
    """The kind of failure to report to the server."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return SiteFailure(kind="memory")
    if isinstance(error, DataError):
        return SiteFailure(kind="data")
    if isinstance(error, PolicyError):
        return SiteFailure(kind="policy")
    if isinstance(error, TrainingError):
        return SiteFailure(kind="training")
    if isinstance(error, ProcessError):
        return SiteFailure(kind="process")
    if isinstance(error, (ConfigError, UserError)):
        return SiteFailure(kind="configuration")
    if isinstance(error, (OSError, SafetensorError)):  # the latter from writing a prepared case to a full disk
        return SiteFailure(kind="disk")
    if isinstance(error, torch.AcceleratorError):
        return SiteFailure(kind="device")
    if isinstance(error, RuntimeError) and "allocate memory" in str(error):
        return SiteFailure(kind="memory")  # torch's CPU allocator has no class of its own
    return SiteFailure(kind="internal")
