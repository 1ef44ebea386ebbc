"""Train a network together with a narrower one that is a part of it."""

from __future__ import annotations

import math
from typing import Any

from fl_app.training.parallel import Pull
from fl_app.training.trainer import Steps, Trainer


class NestedTrainer(Trainer):
    """A trainer whose network takes turns, in every round, with one that is a part of it.

    What both hold then serves both: without that, a narrow network would be averaged with weights that wider ones
    have learned to use only beside others of theirs (slimmable networks, Yu et al., ICLR 2019; for federations FjORD,
    Horvath et al., NeurIPS 2021). The narrower one is trained first, the wider one goes on from there.

    Args:
        whole: the site's own network; it goes over into this trainer.
        part: a network whose values all have the same names in the whole one.
        share: of a round's steps that the part takes.
    """

    def __init__(self, whole: Trainer, part: Trainer, share: float) -> None:
        self.__dict__.update(whole.__dict__)  # its network, its cases: to others this trainer is that one
        self._whole, self._part, self._share = whole, part, share
        part.rest()

    def train(self, round_number: int, steps: int, rounds: int, pull: Pull | None = None) -> Steps:
        """See `Trainer.train`; the steps of both count."""
        few = round(steps * self._share)
        for each in (self._part, self._whole):
            each.after_step, each.team = self.after_step, self.team
        self._part.load(self.all_values())
        self._whole.rest()
        self._part.wake()
        first = self._part.train(round_number, few, rounds, pull)
        self._part.rest()
        self._whole.wake()
        self.load(self._part.all_values())
        second = self._whole.train(round_number, steps - few, rounds, pull)
        losses = [done.loss * done.steps for done in (first, second) if done.steps]
        mean = math.fsum(losses) / steps if steps else math.nan
        return Steps(mean, steps, first.seconds + second.seconds)

    def optimizer_state(self) -> dict[str, Any]:
        """What both optimisers remember between steps."""
        return {"whole": self._whole.optimizer_state(), "part": self._part.optimizer_state()}

    def restore_optimizer(self, state: dict[str, Any]) -> None:
        """Put back what `optimizer_state` gave."""
        self._whole.restore_optimizer(state["whole"])
        self._part.restore_optimizer(state["part"])
