"""What a training step is made of when several processes take it together, and when one takes it alone.

The processes of a `Group` hold the same network and draw the same batches. Each computes its share of the patches;
the loss is that of the whole batch, since Dice over a batch is not the mean of its parts', and torch's
DistributedDataParallel brings the gradients together. So the step is the one that a single process would take, up to
rounding; dropout, which each process draws for its own patches, is another sample.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as distributed
from torch import nn
from torch.distributed.distributed_c10d import Store
from torch.nn.parallel import DistributedDataParallel

from fl_app.training.dice_ce import DiceCrossEntropy, Rest

if TYPE_CHECKING:
    from fl_app.training.trainer import Trainer

_JOIN_SECONDS = 60.0  # for all to meet, once they are ready to
_STEP_SECONDS = 300.0  # that one may wait for the others within a step; a process that ends is noticed at once

Pull = tuple[float, Mapping[str, torch.Tensor]]


class Alone:
    """One process takes the steps.

    Attributes:
        size: how many processes there are.
    """

    size = 1

    def end(self) -> None:
        """End the processes that were started for it."""

    def together(
        self, trainer: Trainer, round_number: int, steps: int, rounds: int, pull: Pull | None
    ) -> AbstractContextManager[None]:
        """The context in which `Trainer.train`, whose arguments these are, takes its steps."""
        return nullcontext()

    def share(self, batch_size: int) -> slice:
        """Which patches of a batch are this process'."""
        return slice(None)

    def forward(self, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """The network's logits of this process' patches."""
        logits: torch.Tensor = network(images)
        return logits

    def loss(self, loss: nn.Module, logits: torch.Tensor, labels: torch.Tensor, batch_size: int) -> torch.Tensor:
        """The loss of the whole batch, of which these are this process' patches."""
        value: torch.Tensor = loss(logits, labels)
        return value


class Group(Alone):
    """Several processes take the steps together.

    Args:
        rank: this process' place, from 0.
        size: how many they are, at most as many as a batch has patches.
        device: where this one computes; GPUs talk by NCCL, processors by gloo.
    """

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank, self.size, self.device = rank, size, device
        self.joined = False
        self._replica: DistributedDataParallel | None = None

    def join(self, store: Store) -> None:
        """Meet the others, who find each other in a store; returns when all are there."""
        store.set_timeout(timedelta(seconds=_JOIN_SECONDS))
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, "lo")  # no other machine has to do with it
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        distributed.init_process_group(
            "nccl" if self.device.type == "cuda" else "gloo",
            store=store,
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=_STEP_SECONDS),
        )
        self.joined = True

    def leave(self) -> None:
        """Forget the others."""
        if self.joined:
            distributed.destroy_process_group()
            self.joined = False

    @contextmanager
    def together(
        self, trainer: Trainer, round_number: int, steps: int, rounds: int, pull: Pull | None
    ) -> Iterator[None]:
        """The context in which this process takes its share of the steps."""
        torch.manual_seed(torch.initial_seed() + self.rank)  # or all would drop out the same
        warnings.filterwarnings(
            "ignore", "Grad strides do not match", UserWarning
        )  # of kernels of one voxel: no matter
        # a static graph may hold parameters that are never used, or only pulled
        self._replica = DistributedDataParallel(trainer.network, init_sync=False, static_graph=True)
        try:
            yield
        finally:
            self._replica = None

    def share(self, batch_size: int) -> slice:
        """Which patches of a batch are this process': as many as the others', give or take one."""
        return self._share(self.rank, batch_size)

    def forward(self, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """The network's logits of this process' patches; gradients will be the mean over the processes."""
        assert self._replica is not None  # steps are taken together
        logits: torch.Tensor = self._replica(images)
        return logits

    def loss(self, loss: nn.Module, logits: torch.Tensor, labels: torch.Tensor, batch_size: int) -> torch.Tensor:
        """The loss of the whole batch, the same at every process; its gradient is that of the own patches."""
        value: torch.Tensor
        if isinstance(loss, DiceCrossEntropy):
            value = loss(logits, labels, Rest(batch_size, distributed.all_reduce))
        else:
            whole = self._gather(logits.detach(), batch_size)
            whole[self.share(batch_size)] = logits
            value = loss(whole, self._gather(labels, batch_size))
        # the gradients of the shares add up, and DistributedDataParallel takes their mean
        value.register_hook(lambda gradient: gradient * self.size)
        return value

    def _gather(self, own: torch.Tensor, batch_size: int) -> torch.Tensor:
        """All processes' parts of a batch, one after the other."""
        whole = own.new_empty(batch_size, *own.shape[1:])
        whole[self.share(batch_size)] = own
        parts = [whole[self._share(rank, batch_size)] for rank in range(self.size)]
        under_way = [distributed.broadcast(part, rank, async_op=True) for rank, part in enumerate(parts)]
        for each in under_way:
            each.wait()
        return whole

    def _share(self, rank: int, batch_size: int) -> slice:
        return slice(rank * batch_size // self.size, (rank + 1) * batch_size // self.size)
