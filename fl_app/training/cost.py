"""What a network costs: floating-point operations, memory and time of training steps."""

from __future__ import annotations

import copy
import statistics
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from fl_app.config import TrainingSettings
from fl_app.training.adapting import adapt_layers
from fl_app.training.device import peak_memory
from fl_app.training.precision import MixedPrecision, Name
from fl_app.training.step import RandomSteps

_WINDOWS = 5  # that are timed


@dataclass(frozen=True)
class Memory:
    """Where the memory of a training step goes, in bytes.

    Attributes:
        parameters: the network's parameters and buffers.
        gradients: of the parameters.
        optimizer: the optimiser's state.
        activations: what the forward pass and the loss keep for the backward pass, the input left out.
        peak: CPU: most bytes of all tensors alive at one time, without what operators use inside; GPU: most bytes
            that torch had allocated for the step.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    peak: int

    @property
    def total(self) -> int:
        """Parameters, gradients, optimiser state and activations together."""
        return self.parameters + self.gradients + self.optimizer + self.activations


def forward_flops(network: nn.Module, patch: Sequence[int], batch_size: int = 1) -> int:
    """Floating-point operations of one forward pass, a multiply-add counted as two, on the network's device."""
    image = torch.zeros(batch_size, 1, *patch, device=next(network.parameters()).device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    return int(counter.get_total_flops())


def training_memory(
    network: nn.Module,
    patch: Sequence[int],
    batch_size: int,
    device: torch.device,
    precision: Name,
    settings: TrainingSettings | None = None,
    pulled: bool = False,
) -> Memory:
    """Count the memory of a training step by taking two of them with a copy of the network on random patches.

    Args:
        network: any module that maps (batch, 1, x, y, z) to logits (batch, classes, x, y, z); it stays as it is.
        patch: voxels along each axis.
        batch_size: patches in a step.
        device: where to take the steps.
        precision: what they compute in.
        settings: names the loss and the optimiser; none: the defaults.
        pulled: whether the weights are pulled to others (FedProx, Ditto), which are then held, too.
    """
    on_gpu = device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if on_gpu else 0
    rehearsal = RandomSteps(copy.deepcopy(network), patch, batch_size, device, precision, settings, pulled)
    rehearsal.step()  # from now on there are gradients and an optimiser state
    own = [*rehearsal.network.parameters(), *rehearsal.network.buffers()]
    gradients = [each.grad for each in rehearsal.network.parameters() if each.grad is not None]
    state = [each for each in tree_leaves(dict(rehearsal.optimizer.state)) if isinstance(each, torch.Tensor)]
    parameters, gradient_bytes, state_bytes = (_bytes(each) for each in (own, gradients, state))
    apart = {each.untyped_storage().data_ptr() for each in [*own, rehearsal.images]}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in apart:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    live = _LiveBytes([*own, *gradients, *state, rehearsal.images, *(start for _, start in rehearsal.reference)])
    del gradients, state
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), live:
        rehearsal.step()
    peak = live.peak
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
        rehearsal.step()
        peak = torch.cuda.max_memory_allocated(device) - before
    return Memory(parameters, gradient_bytes, state_bytes, sum(kept.values()), peak)


@torch.no_grad()
def prediction_memory(
    network: nn.Module, patch: Sequence[int], windows: int, device: torch.device, precision: Name, keep_weights: bool
) -> int:
    """The most bytes that predicting windows holds at one time, the weights among them; the volume is not.

    Args:
        network: as for `training_memory`; it stays as it is.
        patch: voxels of a window along each axis.
        windows: how many at one time.
        device: where it computes.
        precision: what it computes in.
        keep_weights: whether weights are kept in the lower precision.
    """
    on_gpu = device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if on_gpu else 0
    ready = adapt_layers(copy.deepcopy(network)).to(device).eval()
    computing = MixedPrecision(precision, device)
    images = computing.ready(torch.rand(windows, 1, *patch))
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    live = _LiveBytes([*ready.parameters(), *ready.buffers(), images])
    with live, computing.autocast(keep_weights):
        ready(images).float()
    return torch.cuda.max_memory_allocated(device) - before if on_gpu else live.peak


@dataclass(frozen=True)
class Measurement:
    """Training steps as they were seen from outside.

    Attributes:
        seconds: median time of a step.
        peak: GPU: as `Memory.peak`; CPU: by how many bytes the process grew, which is right in a fresh process only.
    """

    seconds: float
    peak: int


def measure_steps(
    network: nn.Module,
    patch: Sequence[int],
    batch_size: int,
    device: torch.device,
    precision: Name,
    settings: TrainingSettings | None = None,
    steps: int = 3,
) -> Measurement:
    """Take some steps and one before them that is not timed. Arguments as for `training_memory`; the network trains."""
    on_gpu = device.type == "cuda"
    # what torch loads at the first step is no part of a network's memory
    RandomSteps(nn.Conv3d(1, 2, 3, padding=1), (8, 8, 8), 1, device, precision, settings).step()
    parameters = 0 if on_gpu else _bytes([*network.parameters(), *network.buffers()])
    before = torch.cuda.memory_allocated(device) if on_gpu else psutil.Process().memory_info().rss
    rehearsal = RandomSteps(network, patch, batch_size, device, precision, settings)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for _ in range(1 + steps):
        started = time.monotonic()
        rehearsal.step()
        if on_gpu:
            torch.cuda.synchronize(device)
        seconds.append(time.monotonic() - started)
    # Linux gives the highest resident size in KiB
    after = torch.cuda.max_memory_allocated(device) if on_gpu else peak_memory(device)
    return Measurement(statistics.median(seconds[1:]), after - before + parameters)


@torch.no_grad()
def window_seconds(network: nn.Module, patch: Sequence[int], device: torch.device, precision: Name) -> float:
    """Seconds that predicting one window takes: the least of some tries, since other work can only add to it.

    Args:
        network: as for `training_memory`; it stays as it is.
        patch: voxels along each axis.
        device: where it computes.
        precision: what it computes in.
    """
    ready = adapt_layers(copy.deepcopy(network)).to(device).eval()
    image = torch.rand(1, 1, *patch, device=device)
    seconds = []
    for _ in range(1 + _WINDOWS):
        started = time.perf_counter()
        with MixedPrecision(precision, device).autocast():
            logits = ready(image)
        logits.flatten()[0].item()  # waits for a GPU
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


class _LiveBytes(TorchDispatchMode):
    """Watches the tensors that operators make: ``peak`` is the most bytes alive at one time.

    Args:
        tensors: those that are alive already.
    """

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._sizes: dict[int, int] = {}
        for tensor in tensors:
            self._add(tensor)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, torch.Tensor):
                self._add(each)
        return made

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self._now += storage.nbytes()
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self._now -= self._sizes.pop(key)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(each.nbytes for each in tensors)
