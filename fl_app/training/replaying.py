"""Training passes as CUDA graphs: launched at once, where a GPU else waits for one small kernel after the other."""

from __future__ import annotations

import logging
import warnings

import torch
from torch import nn

from fl_app.config import Job
from fl_app.training.precision import MixedPrecision

_REPLAYED = {"unet", "segresnet", "dynunet"}  # never wait for the GPU within a pass, which no graph can hold

_logger = logging.getLogger(__name__)


def may_replay(job: Job, device: torch.device) -> bool:
    """Whether the passes of a job's own network can be replayed on a device.

    A deterministic job computes kernel by kernel, as its first run did. What saves memory computes at other moments
    than a graph does, and a step of several batches would add up gradients that lie in the same place.
    """
    training = job.training
    saving = training.recompute or training.early_update or training.frozen_share > 0 or training.accumulate > 1
    usual = job.network.name in _REPLAYED and not training.deterministic
    return device.type == "cuda" and usual and not saving


def replay(network: nn.Module, images: torch.Tensor, precision: MixedPrecision) -> bool:
    """Record a network's forward and backward passes; from now on it replays them in training mode.

    They are replayed for images of the same shape, with the weights where they now are. Torch's
    `make_graphed_callables` does it.

    Args:
        network: on a GPU, in training mode; it stays as it is.
        images: of the shape and type that the network will get.
        precision: that it computes in.

    Returns:
        Whether the GPU's memory was enough: if not, the network computes as before.
    """
    # gradients are added up on the stream that the graphs were recorded on: no matter, it is waited for
    warnings.filterwarnings("ignore", "The AccumulateGrad node's stream", UserWarning)
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        with precision.autocast(keep_weights=False):
            torch.cuda.make_graphed_callables(network, (images,), allow_unused_input=True)
    except torch.OutOfMemoryError:
        _logger.info("too little memory to replay training steps")
        stop_replaying(network)
        torch.cuda.empty_cache()
        return False
    finally:
        # passes are tried before they are recorded, which moves the statistics of batch normalisation
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
    return True


def is_replayed(network: nn.Module) -> bool:
    """Whether a network replays its training passes."""
    return "forward" in vars(network)  # what torch sets in place of the class' own


def stop_replaying(network: nn.Module) -> None:
    """Have a network compute kernel by kernel again, and free what its graphs hold, if it replays them."""
    vars(network).pop("forward", None)
