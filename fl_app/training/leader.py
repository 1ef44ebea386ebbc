"""The first process of a training that several share: it starts the others, tells them each round, ends them.

They are started as torchrun starts processes (RANK, WORLD_SIZE, MASTER_ADDR, ...), though not by torchrun: it wants to
be the parent of all of them, and the first one belongs to FLARE. What they have to know lies in memory that nobody else
can write to, for each round anew, so that they can be replaced at any time.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as distributed

from fl_app.config import Job
from fl_app.errors import ConfigError
from fl_app.networks.found import Found
from fl_app.training.calling import Call, Called
from fl_app.training.parallel import Alone, Group, Pull

if TYPE_CHECKING:
    from fl_app.training.trainer import Trainer

_NOTICE_SECONDS = 5.0  # between a process' end and the last word on it
_logger = logging.getLogger(__name__)


def gather_team(job: Job, devices: Sequence[torch.device], cache: Path | None) -> Alone:
    """The processes that take a job's steps, one on each device as far as the job can use them; they begin to start.

    Args:
        job: the job.
        devices: one for each process.
        cache: folder that holds the training cases prepared.

    Raises:
        ConfigError: several processes need a cache.
    """
    size = team_size(job, len(devices))
    if size < len(devices) and job.network.normalisation == "batch":
        _logger.warning("network.normalisation: batch needs each batch in one piece: this process trains alone")
    elif size < len(devices):
        _logger.warning(f"training.batch_size: {size} - has work for {size} of this site's {len(devices)} processes")
    if size == 1:
        return Alone()
    if cache is None:
        raise ConfigError(f"processes: {len(devices)} - they share prepared cases: name a folder for them, cache:")
    team = Leader(devices[:size], cache)
    team.start()
    return team


def team_size(job: Job, processes: int) -> int:
    """How many of a site's processes a job can use."""
    return 1 if job.network.normalisation == "batch" else min(processes, job.training.batch_size)


class Leader(Group):
    """The group's first process.

    Args:
        devices: of each process; the first one's is this one's.
        cache: folder that holds the training cases prepared.
    """

    def __init__(self, devices: Sequence[torch.device], cache: Path) -> None:
        super().__init__(0, len(devices), devices[0])
        self._devices = devices
        self._cache = cache
        self._followers: list[Called] = []

    @property
    def followers(self) -> list[int]:
        """The process identifiers of the others."""
        return [follower.process.pid for follower in self._followers]

    def start(self) -> None:
        """Start the others, unless they run; they load their software while this process does something else."""
        if self._followers:
            return
        listener = socket.create_server(("127.0.0.1", 0))  # torch's own would listen to the whole network
        port = listener.getsockname()[1]
        self._store = distributed.TCPStore(  # type: ignore[attr-defined]
            "127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )
        # a file without a name: far quicker than a pipe
        self._memory = os.fdopen(os.memfd_create("training"), "wb")
        threads = self._threads(torch.get_num_threads())
        self._followers = [
            Called(rank, self.size, device, port, self._memory.fileno(), threads)
            for rank, device in enumerate(self._devices[1:], start=1)
        ]
        if self.device.type == "cuda":
            for follower in self._followers:
                threading.Thread(target=self._watch, args=(follower,), daemon=True).start()

    def end(self) -> None:
        """End the others; the next training starts new ones."""
        followers, self._followers = self._followers, []
        for follower in followers:
            follower.end()
        if followers:
            self._memory.close()
        self.leave()

    @contextmanager
    def together(
        self, trainer: Trainer, round_number: int, steps: int, rounds: int, pull: Pull | None
    ) -> Iterator[None]:
        """The context in which all take the same steps.

        Raises:
            ProcessError: one of them has ended, or does not get ready.
            Exception: what one of them failed with.
        """
        if not steps:
            yield
            return
        self.start()
        threads = torch.get_num_threads()
        torch.set_num_threads(self._threads(threads))
        try:
            self._call(trainer, round_number, steps, rounds, pull)
            with super().together(trainer, round_number, steps, rounds, pull):
                yield
            for follower in self._followers:
                follower.check()
        except BaseException as error:
            cause = self._cause(error)
            self.end()
            if cause is error:
                raise
            raise cause from error
        finally:
            torch.set_num_threads(threads)

    def _threads(self, whole: int) -> int:
        return max(1, whole // self.size)

    def _call(self, trainer: Trainer, round_number: int, steps: int, rounds: int, pull: Pull | None) -> None:
        network = trainer.network
        architecture = getattr(network, "architecture", None)
        call = Call(
            job=trainer.job,
            cases=tuple(case.source for case in trainer.cases),
            cache=self._cache,
            stream=trainer.stream,
            architecture=architecture.to_json() if isinstance(architecture, Found) else "",
            values=network.state_dict(),
            optimizer=trainer.optimizer_state(),
            precision=trainer.precision,
            round_number=round_number,
            steps=steps,
            rounds=rounds,
            pull=pull,
        )
        self._memory.seek(0)
        self._memory.truncate()
        torch.save(call, self._memory)
        self._memory.flush()
        for follower in self._followers:
            follower.pipe.send(None)
        for follower in self._followers:
            follower.wait_until_ready()
        if not self.joined:
            self.join(self._store)

    def _cause(self, error: BaseException) -> BaseException:
        """What the error comes from: the first failure of another process, or the error itself."""
        if not isinstance(error, (RuntimeError, OSError, EOFError)):
            return error
        now = time.monotonic()
        while time.monotonic() < now + _NOTICE_SECONDS:
            if any(follower.process.poll() is not None for follower in self._followers):
                break
            time.sleep(0.05)
        failures = [failure for follower in self._followers if (failure := follower.failure())]
        # who fails takes the others along: the first one knows why
        moment, cause = min(failures, key=lambda failure: failure[0], default=(now, error))
        return cause if moment < now else error

    def _watch(self, follower: Called) -> None:
        """NCCL waits for a process that has ended until its time is up: its end is told at once."""
        follower.process.wait()
        if follower in self._followers and self.joined:
            assert distributed.group.WORLD is not None  # since they have joined
            distributed.group.WORLD.abort()
