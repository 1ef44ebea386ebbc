"""Train a supernet path by path, and judge networks by the weights they inherit from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fl_app.config import Job
from fl_app.config.space import SearchSpace
from fl_app.data.preparation import PreparedCase
from fl_app.data.sampling import PatchSampler
from fl_app.networks.registry import exchanged_names
from fl_app.networks.space.architecture import Architecture
from fl_app.networks.space.decoding import least_network
from fl_app.networks.space.memory import MemoryModel
from fl_app.networks.space.supernet import DiscreteNetwork, Supernet
from fl_app.training.adapting import adapt_layers
from fl_app.training.metrics import CaseScore
from fl_app.training.objectives import build_optimizer, moved_state
from fl_app.training.parallel import Pull
from fl_app.training.randomness import start_stream
from fl_app.training.recompute import recompute
from fl_app.training.step import Pairs
from fl_app.training.trainer import Steps, Trainer


@dataclass(frozen=True)
class PathSteps(Steps):
    """What training some paths came to.

    Attributes:
        touched: how many steps each weight was trained in, by name; weights that none trained are left out.
    """

    touched: Mapping[str, int]


class SupernetTrainer(Trainer):
    """Trains one architecture at a time with the supernet's weights.

    The supernet's weights and their optimiser states rest on the CPU; on the device there is never more than the
    network in training, so a site needs the memory of a path, not of the supernet.

    Args:
        job: the job.
        space: the search space.
        cases: prepared training cases; may be empty if only scoring is wanted.
        device: where to compute.
        stream: name of the random stream, such as the site's name.
    """

    def __init__(
        self, job: Job, space: SearchSpace, cases: Sequence[PreparedCase], device: torch.device, stream: str
    ) -> None:
        supernet = Supernet(space, len(job.data.labels), job.seed)
        self.job, self.space, self.organs = job, space, len(job.data.labels)
        self.values: dict[str, torch.Tensor] = supernet.state_dict()
        self._states: dict[str, dict[str, object]] = {}
        self._received: dict[str, torch.Tensor] = {}
        self._touched: Counter[str] = Counter()
        self._paths: Sequence[Architecture] = ()
        self._done = 0
        self._built: dict[Architecture, nn.Module] = {}
        self.architecture = least_network(MemoryModel(space, len(job.data.labels), job.training_patch))
        super().__init__(job, cases, device, stream, self._network(self.architecture, device))
        self.exchanged = exchanged_names(supernet, job.federation.normalisation)

    def shared_values(self) -> dict[str, torch.Tensor]:
        """A copy of all of the supernet's values that sites exchange, by name."""
        self._put_back()
        return {name: self.values[name].clone() for name in self.exchanged}

    def local_values(self) -> dict[str, torch.Tensor]:
        """A copy of the supernet's values that stay at the site."""
        self._put_back()
        return {name: value.clone() for name, value in self.values.items() if name not in set(self.exchanged)}

    def all_values(self) -> dict[str, torch.Tensor]:
        """A copy of everything in the supernet."""
        self._put_back()
        return {name: value.clone() for name, value in self.values.items()}

    def load(self, values: Mapping[str, torch.Tensor]) -> None:
        """Put values into the supernet; what is not named stays."""
        self._put_back()
        for name, value in values.items():
            self.values[name].copy_(value)
        self._take(self.architecture)

    def train_paths(self, round_number: int, steps: int, rounds: int, paths: Sequence[Architecture]) -> PathSteps:
        """Take optimiser steps with the paths in turn, one a step.

        Args:
            round_number: 1 to ``rounds``; names the random stream and places the learning rate.
            steps: how many.
            rounds: how many rounds of as many steps the whole training has.
            paths: networks within the site's budget.

        Raises:
            DataError: there are no training cases.
            TrainingError: the loss is no longer a number.
        """
        self._paths, self._done, self._touched = paths, 0, Counter()
        self._built = {self.architecture: self.network}
        done = self.train(round_number, steps, rounds)
        self._put_back()
        return PathSteps(done.loss, done.steps, done.seconds, dict(sorted(self._touched.items())))

    def score_path(self, architecture: Architecture, cases: Sequence[PreparedCase]) -> list[CaseScore]:
        """Dice of a network with inherited weights on whole cases."""
        self._take(architecture)
        return self.score(cases)

    def validation_patches(self, cases: Sequence[PreparedCase], count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Patches of validation cases, without random changes; the same at each call.

        Returns:
            ``count`` pairs of images (1, 1, x, y, z) and labels (1, 1, x, y, z).
        """
        chance = start_stream(self.job.seed, self.stream, "validation patches")
        unchanged = self.job.training.augmentation.model_copy(
            update={"flip_probability": (0.0, 0.0, 0.0), "intensity_scale": 0.0, "intensity_shift": 0.0, "noise": 0.0}
        )
        sampler = PatchSampler(cases, self.job.training_patch, self.job.training.foreground_share, unchanged)
        return [sampler.draw(1, chance) for _ in range(count)]

    @torch.no_grad()
    def patch_loss(self, architecture: Architecture, patches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> float:
        """Mean loss of a network with inherited weights on patches: smoother than Dice, and quick."""
        self._take(architecture)
        self.network.eval()
        total = 0.0
        for images, labels in patches:
            with self.precision.autocast():
                logits = self.network(self.precision.ready(images))
            total += float(self._loss(logits, labels.to(self.device)))
        return total / len(patches)

    def _step(self, progress: float, chance: np.random.Generator, strength: float, reference: Pairs) -> torch.Tensor:
        path = self._paths[self._done % len(self._paths)]
        if path != self.architecture or not self._done:
            self._take(path)
        self.network.train()
        self._done += 1
        parameters = dict(self.network.named_parameters())
        self._touched.update(list(parameters))
        start = [(value, self._received[name].to(self.device)) for name, value in parameters.items() if self._received]
        return super()._step(progress, chance, strength, start)

    def _pull(self, pull: Pull | None) -> tuple[float, Pairs]:
        """FedProx pulls each path towards the supernet as received; kept whole, on the CPU."""
        wanted = self.job.federation.algorithm == "fedprox"
        self._received = self.all_values() if wanted else {}
        return self.job.federation.proximal_mu, []

    def optimizer_state(self) -> dict[str, Any]:
        """What the optimiser remembers of each of the supernet's weights."""
        self._put_back()
        return dict(self._states)

    def restore_optimizer(self, state: dict[str, Any]) -> None:
        """Put back what `optimizer_state` gave."""
        self._states = dict(state)
        self._take(self.architecture, fresh=True)

    def holds(self, values: Mapping[str, torch.Tensor]) -> bool:
        """Whether the supernet's values of these names are the same, bit for bit."""
        self._put_back()
        return all(torch.equal(self.values[name], value) for name, value in values.items())

    def _network(self, architecture: Architecture, device: torch.device) -> nn.Module:
        if architecture not in self._built:
            with torch.device("meta"):
                network = adapt_layers(DiscreteNetwork(self.space, architecture, self.organs))
                self._built[architecture] = recompute(network) if self.job.training.recompute else network
        network = self._built[architecture]
        # on the CPU the network's parameters are the supernet's own memory
        network.load_state_dict({name: self.values[name].to(device) for name in network.state_dict()}, assign=True)
        return network

    def _take(self, architecture: Architecture, fresh: bool = False) -> None:
        """Put an architecture on the device, with the supernet's weights and their optimiser states."""
        if not fresh:
            self._put_back()
        self.network.to("meta")
        self.architecture = architecture
        self.network = self._network(architecture, self.device)
        self._optimizer = build_optimizer(self.job.training, self.network)
        for name, parameter in self.network.named_parameters():
            if name in self._states:
                self._optimizer.state[parameter] = moved_state(self._states[name], self.device)

    def _put_back(self) -> None:
        """Bring what the device holds back to the supernet."""
        for name, parameter in self.network.named_parameters():
            self.values[name].copy_(parameter.detach())
            if parameter in self._optimizer.state:
                self._states[name] = moved_state(self._optimizer.state[parameter], torch.device("cpu"))
