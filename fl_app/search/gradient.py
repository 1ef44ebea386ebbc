"""DiNTS's search by gradients (He et al., CVPR 2021), with the traps of the usual implementation mended.

Weights and logits learn in turn, on disjoint halves of a site's training cases. The logits live here and are never
part of the values that sites exchange.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fl_app.config import Job
from fl_app.config.space import SearchSpace
from fl_app.data.preparation import PreparedCase
from fl_app.data.sampling import PatchSampler
from fl_app.errors import DataError
from fl_app.networks.space.architecture import Architecture
from fl_app.networks.space.decoding import Scores, decode
from fl_app.networks.space.memory import MemoryModel
from fl_app.networks.space.supernet import Supernet
from fl_app.networks.space.topology import edges_of, fixed_edges
from fl_app.training.step import Pairs
from fl_app.training.trainer import Steps, Trainer

# how far a logit can move over the search: from p = 0.5 to 0.99
_REACH = 5.0


class Logits(nn.Module):
    """What the search learns: how likely each edge and each operation is.

    Args:
        space: the search space; where its edges are fixed, their logits do not learn.
    """

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space = space
        edges = edges_of(space.depths)
        self.edges = nn.Parameter(torch.zeros(space.blocks, len(edges)))
        self.operations = nn.Parameter(torch.zeros(space.blocks, len(edges), len(space.operations)))
        patterns = torch.arange(1, 2 ** len(edges))[:, None] >> torch.arange(len(edges)) & 1
        self.register_buffer("patterns", patterns.float(), persistent=False)
        sources = torch.tensor([1 << edge.source for edge in edges])
        targets = torch.tensor([1 << edge.target for edge in edges])
        self.register_buffer("reads", _union(patterns, sources), persistent=False)
        self.register_buffer("feeds", _union(patterns, targets), persistent=False)
        self._fixed = fixed_edges(space)
        if self._fixed:
            self.edges.data = torch.tensor(self._fixed).float() * 40 - 20
        self.learn()
        self.patterns: torch.Tensor
        self.reads: torch.Tensor
        self.feeds: torch.Tensor

    def learn(self) -> None:
        """Let all logits learn that are not fixed by the space."""
        self.operations.requires_grad_(True)
        self.edges.requires_grad_(self._fixed is None)

    def edge_probabilities(self) -> torch.Tensor:
        """(blocks, edges): p_i / (1 - prod_j (1 - p_j)) with p = sigmoid(logit): active, given that any edge is."""
        active = self.edges.sigmoid()
        return active / (1 - (1 - active).prod(-1, keepdim=True)).clamp_min(1e-12)

    def operation_probabilities(self) -> torch.Tensor:
        """(blocks, edges, operations): softmax over the operations of a cell."""
        return self.operations.softmax(-1)

    def pattern_log_probabilities(self) -> torch.Tensor:
        """(blocks, 2^edges - 1): log of prod_i p_i^a_i (1 - p_i)^(1 - a_i), normalised without the empty pattern."""
        on, off = nn.functional.logsigmoid(self.edges), nn.functional.logsigmoid(-self.edges)
        joint = on @ self.patterns.T + off @ (1 - self.patterns).T
        return joint - joint.logsumexp(-1, keepdim=True)

    def entropy(self) -> torch.Tensor:
        """How undecided the logits are, 0 (not at all) to 2.

        H_a = mean over blocks of -sum_k P_k log P_k / log(2^E - 1), and H_c = mean over cells of
        -sum_o q_o log q_o / log O. The usual code takes the mean over the 2^E - 1 patterns instead of
        the sum, which leaves no pressure: at most 0.007 for 10 edges.
        """
        patterns = self.pattern_log_probabilities()
        operations = self.operations.log_softmax(-1)
        topology = -(patterns.exp() * patterns).sum(-1).mean() / math.log(patterns.shape[-1])
        cells = -(operations.exp() * operations).sum(-1).mean() / math.log(max(2, operations.shape[-1]))
        return topology + cells

    def topology_loss(self) -> torch.Tensor:
        """How far what a block feeds is from what the next one reads.

        -sum over blocks i, sets of resolutions s of [f_i(s) log r_i+1(s) + (1 - f_i(s)) log(1 - r_i+1(s))], with
        f_i(s) the probability that block i feeds just s and r_i+1(s) that block i + 1 reads just s. Patterns that
        differ leave resolutions that nobody reads, or that are read and were never fed.
        """
        chances = self.pattern_log_probabilities().exp()
        sets = 2**self.space.depths
        zeros = chances.new_zeros(chances.shape[0], sets)
        fed, read = zeros.index_add(1, self.feeds, chances)[:-1], zeros.index_add(1, self.reads, chances)[1:]
        fed, read = fed[:, 1:], read[:, 1:].clamp(1e-5, 1 - 1e-5)
        return -(fed * read.log() + (1 - fed) * (1 - read).log()).sum()

    def memory(self, memory: MemoryModel) -> torch.Tensor:
        """Expected bytes: what is fixed, the sum over edges of p * sum_o q_o * bytes(edge, o), and the sum over
        resolutions that blocks read of (1 - prod over the edges that leave it of (1 - p)) * bytes(resolution).
        """
        table = torch.tensor([[cell[name] for name in self.space.operations] for cell in memory.cells])
        table = table.to(self.edges)
        expected = (self.edges.sigmoid() * (self.operation_probabilities() * table).sum(-1)).sum()
        for node, size in enumerate(memory.nodes):
            leaving = [place for place, edge in enumerate(edges_of(self.space.depths)) if edge.source == node]
            expected = expected + size * (1 - (1 - self.edges[:, leaving].sigmoid()).prod(-1)).sum()
        return memory.fixed + expected

    def scores(self) -> Scores:
        """For `decode`."""
        return Scores(self.edges.detach().cpu().double().numpy(), self.operations.detach().cpu().double().numpy())


@dataclass(frozen=True)
class GradientSteps(Steps):
    """What a round of the search came to.

    Attributes:
        validation_loss: mean segmentation loss of the logits' steps; NaN while the weights alone learn.
        entropy: of the logits afterwards, 0 (decided) to 2.
        expected_bytes: by the memory model, afterwards.
    """

    validation_loss: float
    entropy: float
    expected_bytes: float


class Mixture(nn.Module):
    """All networks of a space at once, each as much as the logits like it.

    Args:
        supernet: the weights.
        logits: the likings.
    """

    def __init__(self, supernet: Supernet, logits: Logits) -> None:
        super().__init__()
        self.supernet, self.logits = supernet, logits

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (batch, 1 + organs, x, y, z) for images (batch, 1, x, y, z)."""
        edges, operations = self.logits.edge_probabilities(), self.logits.operation_probabilities()
        return self.supernet.forward_mixed(images, edges, operations)


class GradientSearch(Trainer):
    """The continuous supernet and its logits at one site; needs memory for all edges and operations at once.

    Each step trains the weights; behind ``warm_up`` it then also trains the logits on the other half of the cases,
    with the loss

        L = L_segmentation + w * (H_a + H_c + 0.001 * L_topology + |expected bytes / budget - 1|)

    where w grows from 0 to 1; all terms but the first are scaled by it, whatever the precision.

    Args:
        job: the job.
        memory: the space, and bytes that its networks take.
        budget: bytes of training memory that the site's network may take.
        cases: prepared training cases, at least two: even ones train the weights, odd ones the logits.
        device: where to compute.
        stream: name of the random stream, such as the site's name.

    Raises:
        DataError: there are too few cases to halve.
    """

    def __init__(
        self,
        job: Job,
        memory: MemoryModel,
        budget: float,
        cases: Sequence[PreparedCase],
        device: torch.device,
        stream: str,
    ) -> None:
        if len(cases) < 2:
            raise DataError("the gradient search needs two training cases or more at each site - use sampling")
        self.memory, self.budget, self.warm_up = memory, budget, job.search.warm_up_share
        self.logits = Logits(memory.space).to(device)
        self.supernet = Supernet(memory.space, len(job.data.labels), job.seed)
        self.mixture = Mixture(self.supernet, self.logits)
        super().__init__(job, cases[::2], device, stream, self.supernet)
        self._other_half = PatchSampler(
            cases[1::2], job.training_patch, job.training.foreground_share, job.training.augmentation
        )
        learning = [value for value in self.logits.parameters() if value.requires_grad]
        self._logit_optimizer = torch.optim.Adam(learning, betas=(0.5, 0.999))
        self._logit_losses: list[float] = []

    def search(self, round_number: int, steps: int, rounds: int) -> GradientSteps:
        """Take optimiser steps from where weights and logits stand.

        Args:
            round_number: 1 to ``rounds``; names the random stream and places the learning rates.
            steps: of the weights; behind the warm-up, as many of the logits.
            rounds: how many rounds of as many steps the whole search has.

        Raises:
            DataError: there are no training cases.
            TrainingError: the loss is no longer a number.
        """
        self._logit_losses = []
        for group in self._logit_optimizer.param_groups:
            # Adam moves a logit by the rate at most: with 0.001, as usual, a short search would end where it began
            group["lr"] = _REACH / max(1.0, (1 - self.warm_up) * rounds * steps)
        done = self.train(round_number, steps, rounds)
        losses = self._logit_losses
        with torch.no_grad():
            return GradientSteps(
                done.loss,
                done.steps,
                done.seconds,
                validation_loss=math.fsum(losses) / len(losses) if losses else math.nan,
                entropy=float(self.logits.entropy()),
                expected_bytes=float(self.logits.memory(self.memory)),
            )

    def decode(self, must_contain: Architecture | None = None, budget: float | None = None) -> Architecture:
        """The likeliest network in a budget, which is the site's own unless another is told, in bytes.

        Raises:
            BudgetError: no network fits; it names the least budget that one fits in.
        """
        return decode(self.logits.scores(), self.memory, self.budget if budget is None else budget, must_contain)

    def optimizer_state(self) -> dict[str, Any]:
        """What the weights' optimiser remembers, the logits, and what theirs does."""
        return {
            "weights": super().optimizer_state(),
            "logits": self.logits.state_dict(),
            "logit_optimizer": self._logit_optimizer.state_dict(),
        }

    def restore_optimizer(self, state: dict[str, Any]) -> None:
        """Put back what `optimizer_state` gave."""
        super().restore_optimizer(state["weights"])
        self.logits.load_state_dict(state["logits"])
        self._logit_optimizer.load_state_dict(state["logit_optimizer"])

    def _predict(self, images: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.mixture(images)
        return mixed

    def _step(self, progress: float, chance: np.random.Generator, strength: float, reference: Pairs) -> torch.Tensor:
        self.logits.requires_grad_(False)
        loss = super()._step(progress, chance, strength, reference)
        self.logits.learn()
        if progress >= self.warm_up:
            self._logit_step((progress - self.warm_up) / (1 - self.warm_up), chance)
        return loss

    def _logit_step(self, strength: float, chance: np.random.Generator) -> None:
        images, labels = self._other_half.draw(self.job.training.batch_size, chance)
        images, labels = self.precision.ready(images), labels.to(self.device)
        with self.precision.autocast():
            predicted = self._predict(images)
        loss = self._loss(predicted, labels)
        self._logit_losses.append(float(loss.detach()))
        penalty = self.logits.entropy() + 0.001 * self.logits.topology_loss()
        penalty = penalty + (self.logits.memory(self.memory) / self.budget - 1).abs()
        total = loss + strength * penalty
        self._logit_optimizer.zero_grad(set_to_none=True)
        self.precision.step(total, self.logits, self._logit_optimizer, self.job.training.gradient_clip)
        self.supernet.zero_grad(set_to_none=True)


def _union(patterns: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
    """For each pattern of edges, the set of resolutions that they touch, as bits."""
    sets = torch.zeros(len(patterns), dtype=torch.long)
    for place in range(patterns.shape[1]):
        sets |= patterns[:, place] * nodes[place]
    return sets
