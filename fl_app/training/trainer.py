"""One site's training: load the shared values, take some steps, score the result."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fl_app.config import Job
from fl_app.data.preparation import PreparedCase
from fl_app.data.sampling import PatchSampler
from fl_app.errors import DataError, TrainingError
from fl_app.networks import build_network, exchanged_names
from fl_app.training.evaluation import score_native, score_prepared
from fl_app.training.metrics import CaseScore
from fl_app.training.objectives import build_loss, build_optimizer, learning_rate
from fl_app.training.precision import MixedPrecision, choose_precision, guard_convolutions
from fl_app.training.randomness import make_deterministic, start_stream

# measured: MONAI's U-Net is faster in this layout, other networks are slower (see docs/architecture.md)
_CHANNELS_LAST = {"unet"}


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


def ready_network(job: Job, device: torch.device) -> nn.Module:
    """The job's network with its initial weights, as it computes best on a device."""
    network = guard_convolutions(build_network(job.network, len(job.data.labels), job.seed)).to(device)
    if job.network.name in _CHANNELS_LAST:
        network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return network


class Trainer:
    """A network, its optimiser and the cases they learn from, at one site.

    Args:
        job: the job.
        cases: prepared training cases; may be empty if only scoring is wanted.
        device: where to compute.
        stream: name of the random stream, such as the site's name.
    """

    def __init__(self, job: Job, cases: Sequence[PreparedCase], device: torch.device, stream: str) -> None:
        if job.training.deterministic:
            make_deterministic()
        self.job = job
        self.device = device
        self.stream = stream
        self.precision = MixedPrecision(choose_precision(job.training.precision, device), device)
        self.network = ready_network(job, device)
        self.exchanged = exchanged_names(self.network, job.federation.normalisation)
        self.cases_seen = len(cases)
        self._sampler = PatchSampler(
            cases, job.data.patch_voxels, job.training.foreground_share, job.training.augmentation
        )
        self._loss = build_loss(job.training.loss)
        self._optimizer = build_optimizer(job.training, self.network)

    def shared_values(self) -> dict[str, torch.Tensor]:
        """A copy on the CPU of all values that sites exchange, by name."""
        state = self.network.state_dict()
        return {name: state[name].detach().to("cpu", copy=True).contiguous() for name in self.exchanged}

    def local_values(self) -> dict[str, torch.Tensor]:
        """A copy of the values that stay at the site (counters, and with FedBN the normalisation layers)."""
        state = self.network.state_dict()
        return {name: state[name].detach().clone() for name in state if name not in set(self.exchanged)}

    def all_values(self) -> dict[str, torch.Tensor]:
        """A copy on the CPU of everything in the network."""
        state = self.network.state_dict()
        return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in state.items()}

    def load(self, values: Mapping[str, torch.Tensor]) -> None:
        """Put values into the network; what is not named stays."""
        self.network.load_state_dict(dict(values), strict=False)

    def train(self, round_number: int, steps: int, rounds: int) -> Steps:
        """Take optimiser steps from where the network stands.

        Args:
            round_number: 1 to ``rounds``; names the random stream and places the learning rate.
            steps: how many.
            rounds: how many rounds of as many steps the whole training has.

        Raises:
            DataError: there are no training cases.
            TrainingError: the loss is no longer a number.
        """
        started = time.monotonic()
        if steps and not self._sampler.cases:
            raise DataError("there are no training cases")
        settings = self.job.training
        chance = start_stream(self.job.seed, self.stream, round_number)
        reference = self._proximal_reference()
        total = torch.zeros((), device=self.device)
        self.network.train()
        for step in range(steps):
            rate = learning_rate(settings, ((round_number - 1) * steps + step) / (rounds * steps))
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            images, labels = self._sampler.draw(settings.batch_size, chance)
            images, labels = images.to(self.device), labels.to(self.device)
            with self.precision.autocast():
                logits = self.network(images)
            loss = self._loss(logits.float(), labels)
            total += loss.detach()
            self.precision.step(
                loss + self._proximal_term(reference), self.network, self._optimizer, settings.gradient_clip
            )
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

    def _proximal_reference(self) -> list[tuple[nn.Parameter, torch.Tensor]]:
        if self.job.federation.algorithm != "fedprox":
            return []
        return [(parameter, parameter.detach().clone()) for parameter in self.network.parameters()]

    def _proximal_term(self, reference: list[tuple[nn.Parameter, torch.Tensor]]) -> torch.Tensor | float:
        """FedProx's mu / 2 * |w - w_global|^2 (Li et al., MLSys 2020, eq. 2)."""
        if not reference:
            return 0.0
        squares = [((parameter - start) ** 2).sum() for parameter, start in reference]
        return self.job.federation.proximal_mu / 2 * torch.stack(squares).sum()
