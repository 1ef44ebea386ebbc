"""How the first process of a training starts another one, calls it each round, and hears of its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import torch

from fl_app.config import Job
from fl_app.data.cases import Case
from fl_app.errors import ProcessError
from fl_app.training.parallel import Pull
from fl_app.training.precision import MixedPrecision

_READY_SECONDS = 600.0  # to load the software and, the first time, the prepared cases


@dataclass(frozen=True)
class Call:
    """All that a follower is told before a round's steps.

    Attributes:
        job: the job.
        cases: the training cases' files.
        cache: folder that holds them prepared.
        stream: name of the random stream.
        architecture: of a network that was searched, as JSON; empty: the job's own network.
        values: all of the network's.
        optimizer: its state.
        precision: with its scale of the gradients.
        round_number: as the rest, what `Trainer.train` is called with.
        steps: see there.
        rounds: see there.
        pull: see there.
    """

    job: Job
    cases: tuple[Case, ...]
    cache: Path
    stream: str
    architecture: str
    values: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    precision: MixedPrecision
    round_number: int
    steps: int
    rounds: int
    pull: Pull | None


class Called:
    """Another process, as the first one sees it. It is started at once.

    Args:
        rank: its place, from 1.
        size: how many processes there are.
        device: where it computes.
        port: of the store where they meet.
        memory: descriptor of the file with its calls; each is announced in the pipe.
        threads: processor threads that it may use.

    Attributes:
        process: the process.
        pipe: to it.
    """

    def __init__(self, rank: int, size: int, device: torch.device, port: int, memory: int, threads: int) -> None:
        self._name = f"training process {rank + 1} of {size}"
        self._told: tuple[float, Exception] | None = None
        self.pipe, theirs = Pipe()
        environment = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": size,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": threads,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fl_app.training.follower", str(device), str(theirs.fileno()), str(memory)],
            stdin=subprocess.PIPE,  # closes when this process is gone, however it went
            pass_fds=[theirs.fileno(), memory],
            env={**os.environ, **{name: str(value) for name, value in environment.items()}},
            start_new_session=True,  # Ctrl-C in a terminal reaches the first process alone, and it ends the others
        )
        theirs.close()

    def wait_until_ready(self) -> None:
        """Return when it is about to take the steps that it was called for."""
        if not self.pipe.poll(_READY_SECONDS):
            raise ProcessError(f"{self._name} did not get ready within {_READY_SECONDS:.0f} s - see this site's log")
        self._told = self.pipe.recv()
        self.check()

    def check(self) -> None:
        """Make sure that it is still there."""
        failure = self.failure()
        if failure:
            raise failure[1]

    def failure(self) -> tuple[float, Exception] | None:
        """When (monotonic seconds) and with what it ended, by its own word if it had one left; none: it runs."""
        code = self.process.poll()
        if self._told or code is None:
            return self._told
        try:
            self._told = self.pipe.recv()
            return self._told
        except (EOFError, OSError):
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            sentence = f"{self._name} {how} - if this machine's memory ran out, set processes: to less in site.yaml"
            return 0.0, ProcessError(sentence)

    def end(self) -> None:
        """End it at once: what it knows, the first process knows."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None  # it was made so
        self.process.stdin.close()
        self.pipe.close()
