"""A process that takes training steps together with the site's first one: ``python -m fl_app.training.follower``.

Started by `fl_app.training.leader` with torchrun's variables, a device, and the descriptors of a pipe and of the memory
that holds its calls. It ends when the first process does, or closes the pipe.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from multiprocessing.connection import Connection

import torch
import torch.distributed as distributed
from torch import nn

from fl_app.config import Job
from fl_app.data.cases import Case
from fl_app.data.preparation import PreparedCase, prepare_cases
from fl_app.errors import TrainingError
from fl_app.processes import end_with_parent
from fl_app.training.calling import Call
from fl_app.training.parallel import Group
from fl_app.training.trainer import Trainer, ready_network

_logger = logging.getLogger(__name__)


class Follower:
    """Takes the steps that the first process calls for.

    Args:
        device: where to compute.
        pipe: to the first process.
        memory: descriptor of the file with the calls.
    """

    def __init__(self, device: torch.device, pipe: Connection, memory: int) -> None:
        self._group = Group(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), device)
        self._pipe = pipe
        self._memory = f"/proc/self/fd/{memory}"  # opened anew for each call, to be read from its beginning
        self._sources: tuple[Case, ...] = ()
        self._cases: list[PreparedCase] = []
        self._built: tuple[Job, str, nn.Module] | None = None

    def follow(self) -> None:
        """Answer one call after the other until there is none."""
        while True:
            try:
                self._pipe.recv()
            except EOFError:
                return
            self._take_steps(torch.load(self._memory, map_location="cpu", weights_only=False))

    def _take_steps(self, call: Call) -> None:
        trainer = Trainer(call.job, self._prepared(call), self._group.device, call.stream, self._network(call))
        trainer.restore_optimizer(call.optimizer)
        trainer.precision = call.precision
        trainer.team = self._group
        self._pipe.send(None)
        if not self._group.joined:
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            store = distributed.TCPStore(address, port, wait_for_workers=False)  # type: ignore[attr-defined]
            self._group.join(store)
        try:
            trainer.train(call.round_number, call.steps, call.rounds, call.pull)
        except TrainingError as error:
            _logger.info(f"the first process has come to the same: {error}")

    def _prepared(self, call: Call) -> list[PreparedCase]:
        """The training cases, which the first process has prepared."""
        if call.cases != self._sources:
            self._cases = prepare_cases(call.cases, call.job.data, call.cache)
            self._sources = call.cases
        return self._cases

    def _network(self, call: Call) -> nn.Module:
        """The network as the first process has it, with its layout in memory."""
        if not self._built or self._built[:2] != (call.job, call.architecture):
            self._built = (call.job, call.architecture, ready_network(call.job, torch.device("cpu"), call.architecture))
        network = self._built[2]
        network.load_state_dict(call.values, assign=True)
        return network


def main(device: str, pipe: int, memory: int) -> None:
    """Follow, and tell the first process what went wrong."""
    end_with_parent()
    connection = Connection(pipe)
    try:
        Follower(torch.device(device), connection, memory).follow()
    except Exception as error:
        _logger.exception("training process failed")
        connection.send((time.monotonic(), error))
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
