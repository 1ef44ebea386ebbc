"""One site's training: load the shared values, take some steps, score the result."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fl_app.config import Job
from fl_app.data.preparation import PreparedCase
from fl_app.data.sampling import PatchSampler
from fl_app.errors import DataError, TrainingError
from fl_app.networks.found import build_found, read_found
from fl_app.networks.registry import build_network, exchanged_names
from fl_app.networks.widths import whole_names
from fl_app.training.adapting import adapt_layers
from fl_app.training.evaluation import score_native, score_prepared
from fl_app.training.freezing import freeze, frozen_names, lower_frozen
from fl_app.training.lean import may_lose_logits
from fl_app.training.metrics import CaseScore
from fl_app.training.objectives import build_loss, build_optimizer, learning_rate, moved_state
from fl_app.training.parallel import Alone, Pull
from fl_app.training.precision import MixedPrecision
from fl_app.training.randomness import make_deterministic, start_stream
from fl_app.training.recompute import recompute
from fl_app.training.replaying import is_replayed, replay, stop_replaying
from fl_app.training.step import Pairs, take_step
from fl_app.training.trial import Way, usual_way


@dataclass(frozen=True)
class Steps:
    """What some training came to.

    Attributes:
        loss: mean over the steps; NaN if there was none.
        steps: optimiser steps taken.
        seconds: wall time.
    """

    loss: float
    steps: int
    seconds: float


def ready_network(job: Job, device: torch.device, architecture: str = "") -> nn.Module:
    """The job's network with its initial weights, on a device, in the usual layout.

    Args:
        job: the job.
        device: where to compute.
        architecture: what the job's search has found, as JSON, in place of the job's own network.
    """
    if architecture and job.search.of_cells:
        cells = adapt_layers(build_found(job, read_found(architecture, job))).to(device)
        return recompute(cells) if job.training.recompute else cells
    network = build_found(job, read_found(architecture, job)) if architecture else build_network(job)
    network = adapt_layers(network).to(device)
    if job.training.recompute:
        recompute(network)
    if job.training.frozen_share and not architecture:
        freeze(network, job.training.frozen_share)
    return usual_way(job, device).laid_out(network)


class Trainer:
    """A network, its optimiser and the cases they learn from, at one site.

    Args:
        job: the job.
        cases: prepared training cases; may be empty if only scoring is wanted.
        device: where to compute.
        stream: name of the random stream, such as the site's name.
        network: what to train; none: the job's own network.
        way: how to compute; none: in the usual precision, and as the network lies in memory.

    Attributes:
        after_step: called after each optimiser step; what it raises ends the training.
        cases: the training cases.
        team: the processes that take the steps.
    """

    def __init__(
        self,
        job: Job,
        cases: Sequence[PreparedCase],
        device: torch.device,
        stream: str,
        network: nn.Module | None = None,
        way: Way | None = None,
    ) -> None:
        if job.training.deterministic:
            make_deterministic()
        self.job = job
        self.device = device
        self.stream = stream
        self.precision = MixedPrecision((way or usual_way(job, device)).precision, device)
        self.network = ready_network(job, device) if network is None else adapt_layers(network).to(device)
        if way:
            self.network = way.laid_out(self.network)
        self._to_replay = way is not None and way.replayed
        self.exchanged = exchanged_names(self.network, job.federation.normalisation)
        self.cases = list(cases)
        self._sampler = PatchSampler(
            cases, job.training_patch, job.training.foreground_share, job.training.augmentation
        )
        self.after_step: Callable[[], None] = lambda: None
        self.team = Alone()
        self._loss = build_loss(job.training.loss, may_lose_logits(self.network))
        self._optimizer = build_optimizer(job.training, self.network)

    def trained_names(self) -> frozenset[str]:
        """The names of the values that travel and that training changes."""
        return frozenset(self.exchanged) - frozen_names(self.network)

    def shared_values(self) -> dict[str, torch.Tensor]:
        """A copy on the CPU of all values that sites exchange, by name."""
        state = self.network.state_dict()
        return {name: _whole(state[name]) for name in self.exchanged}

    def local_values(self) -> dict[str, torch.Tensor]:
        """A copy of the values that stay at the site (counters, and with FedBN the normalisation layers)."""
        state = self.network.state_dict()
        return {name: state[name].detach().clone() for name in state if name not in set(self.exchanged)}

    def all_values(self) -> dict[str, torch.Tensor]:
        """A copy on the CPU of everything in the network."""
        state = self.network.state_dict()
        return {name: _whole(value) for name, value in state.items()}

    def holds(self, values: Mapping[str, torch.Tensor]) -> bool:
        """Whether the network's values of these names are the same, bit for bit of what it holds of them."""
        state = self.network.state_dict()
        return all(torch.equal(state[name], value.to(state[name])) for name, value in values.items())

    def optimizer_state(self) -> dict[str, Any]:
        """What the optimiser remembers between steps."""
        return self._optimizer.state_dict()

    def restore_optimizer(self, state: dict[str, Any]) -> None:
        """Put back what `optimizer_state` gave."""
        self._optimizer.load_state_dict(state)

    def rest(self) -> None:
        """Leave the device to another network, since a site's memory budget is for one."""
        self._optimizer.zero_grad(set_to_none=True)
        self._move(torch.device("cpu"))

    def wake(self) -> None:
        """Come back to the device."""
        self._move(self.device)

    def load(self, values: Mapping[str, torch.Tensor]) -> None:
        """Put values into the network; what is not named stays."""
        self.network.load_state_dict(dict(values), strict=False)

    def train(self, round_number: int, steps: int, rounds: int, pull: Pull | None = None) -> Steps:
        """Take optimiser steps from where the network stands.

        Args:
            round_number: 1 to ``rounds``; names the random stream and places the learning rate.
            steps: how many.
            rounds: how many rounds of as many steps the whole training has.
            pull: strength mu and values w of mu / 2 * |v - w|^2 in the loss, for the network's parameters v (Ditto,
                Li et al., ICML 2021, eq. 2); none: FedProx's, towards where the round began, if the job says so.

        Raises:
            DataError: there are no training cases.
            TrainingError: the loss is no longer a number.
            ProcessError: a process of the team has ended.
        """
        started = time.monotonic()
        if steps and not self.cases:
            raise DataError("there are no training cases")
        chance = start_stream(self.job.seed, self.stream, round_number)
        strength, reference = self._pull(pull)
        total = torch.zeros((), device=self.device)
        self.network.train()
        if self.job.training.frozen_share:
            lower_frozen(self.network, self.precision.kind)
        if steps:
            self._replay()
        with self.team.together(self, round_number, steps, rounds, pull):
            for step in range(steps):
                progress = ((round_number - 1) * steps + step) / (rounds * steps)
                total += self._step(progress, chance, strength, reference)
                self.after_step()
        mean = float(total) / steps if steps else math.nan
        if steps and not math.isfinite(mean):
            raise TrainingError(
                f"the training loss is no longer a number in round {round_number} - "
                "lower training.learning_rate, or set training.precision: fp32"
            )
        return Steps(mean, steps, time.monotonic() - started)

    def score(self, cases: Sequence[PreparedCase], native: bool = False) -> list[CaseScore]:
        """Score the network: on the job's grid, or natively (each annotator's own grid, with surface distance)."""
        scorer = score_native if native else score_prepared
        return scorer(self.network, cases, self.job, self.precision)

    def _predict(self, images: torch.Tensor) -> torch.Tensor:
        return self.team.forward(self.network, images)

    def _step(self, progress: float, chance: np.random.Generator, strength: float, reference: Pairs) -> torch.Tensor:
        """One optimiser step when ``progress`` (0 to 1) of the training is done; the loss."""
        settings, batch = self.job.training, self.job.training.batch_size
        rate = learning_rate(settings, progress)
        for group in self._optimizer.param_groups:
            group["lr"] = rate

        def batch_loss() -> torch.Tensor:
            images, labels = self._sampler.draw(batch, chance, self.team.share(batch))
            images, labels = self.precision.ready(images), labels.to(self.device)
            return self.team.loss(self._loss, self._logits(images), labels, batch)

        early = settings.early_update and self.team.size == 1
        return take_step(
            self.network, self._optimizer, self.precision, settings, batch_loss, strength, reference, early
        )

    def _replay(self) -> None:
        """Record the passes, if they are to be replayed and have not been recorded since the network moved."""
        if not self._to_replay or is_replayed(self.network) or self.team.size > 1:
            return
        shape = self.job.training.batch_size, 1, *self.job.training_patch
        images = self.precision.ready(torch.zeros(shape))
        self._to_replay = replay(self.network, images, self.precision)

    def _move(self, device: torch.device) -> None:
        if device.type == "cpu":  # the weights will lie elsewhere
            stop_replaying(self.network)
        self.network.to(device)
        states = self._optimizer.state
        states.update({weight: moved_state(state, device) for weight, state in states.items()})

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        with self.precision.autocast(keep_weights=not self.job.training.recompute):
            return self._predict(images)

    def _pull(self, pull: Pull | None) -> tuple[float, Pairs]:
        """Strength, and each parameter with the value that it is pulled to."""
        if pull:
            strength, values = pull
            goal = copy.deepcopy(self.network)
            goal.load_state_dict(dict(values), strict=False)
            named, pulled = whole_names(list(values)), dict(goal.named_parameters())
            own = self.network.named_parameters()
            return strength, [
                (each, pulled[name].detach()) for name, each in own if name in named and each.requires_grad
            ]
        if self.job.federation.algorithm != "fedprox":
            return 0.0, []
        trained = [own for own in self.network.parameters() if own.requires_grad]
        return self.job.federation.proximal_mu, [(own, own.detach().clone()) for own in trained]


def _whole(value: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU; fractions in fp32, in which they travel and are kept."""
    kind = torch.float32 if value.is_floating_point() else value.dtype
    return value.detach().to("cpu", kind, copy=True).contiguous()
