"""Faults on the way between server and sites, for fast tests: a channel that drops, delays, repeats and corrupts."""

import numpy as np
import torch

from fl_app.messages import TRAIN

FAULTS = ("drop", "delay", "repeat", "not a number", "shape", "extra", "scale")


class FaultyChannel:
    """Does something bad to each training answer with some probability, but never to the first site's.

    Args:
        channel: that carries the messages.
        seed: of the faults.
        share: of the answers that suffer one.

    Attributes:
        injected: (round, site, fault) for each fault.
        counted: for each round the updates, and the weights, that the server said it would use.
    """

    def __init__(self, channel, seed, share=0.5):
        self._channel, self._share = channel, share
        self._chance = np.random.default_rng(seed)
        self._held = {}
        self.injected, self.counted = [], {}

    def ask(self, task, payloads, exchange, answer):
        if task != TRAIN:
            return self._channel.ask(task, payloads, exchange, answer)
        number = next(iter(payloads.values())).facts["round"]
        faults = {}
        for site in sorted(payloads)[1:]:
            if self._chance.random() < self._share:
                faults[site] = str(self._chance.choice(FAULTS))
                self.injected.append((number, site, faults[site]))
        taken = self.counted.setdefault(number, {})

        def take(site, values, report):
            values, report = self._disturbed(site, faults.get(site), values, report)
            reason = answer(site, values, report)
            if reason is None:
                taken[site] = values, report["training_cases"]
            if faults.get(site) == "repeat":
                again = {name: value.clone() for name, value in values.items()}
                assert answer(site, again, report), "a repeated answer must not count"
            return reason

        reached = {site: payload for site, payload in payloads.items() if faults.get(site) != "drop"}
        return self._channel.ask(task, reached, exchange, take)

    def _disturbed(self, site, fault, values, report):
        first = max(values, key=lambda name: values[name].numel())
        if fault == "delay":  # the answer of an earlier round comes now, this one's later
            late = self._held.get(site, (values, {**report, "round": 999}))
            self._held[site] = values, report
            return late
        if fault == "not a number":
            values[first] = torch.full_like(values[first], float("nan"))
        elif fault == "shape":
            values[first] = values[first].reshape(-1)[:1]
        elif fault == "extra":
            values["nothing.of.the.kind"] = torch.zeros(1)
        elif fault == "scale":
            values = {name: value * 1e6 for name, value in values.items()}
        return values, report
