"""Faults on the way between server and sites, for fast tests: one channel in which all of them happen.

It keeps a clock of its own, so that minutes of waiting cost nothing and every wait can be measured.
"""

import heapq
from itertools import count

import torch

from fl_app.messages import PREPARE, TRAIN, SiteFailure

CORRUPTIONS = ("not a number", "shape", "missing", "extra", "scale")
FAULTS = ("away", "killed", "stalled", "slow", "fails", "lost", "repeat", "stale", *CORRUPTIONS)
POLL_SECONDS, _SIGN_SECONDS, _AGAIN_SECONDS = 0.05, 2.0, 15.0  # as at real servers and sites


class Killed(Exception):
    """Stands for the end of the server's process."""


class Clock:
    """Seconds, as a test moves them."""

    now = 0.0

    def __call__(self):
        return self.now


class TroubledLine:
    """Sites in this process, and a line on which answers are lost, late, repeated and corrupted.

    Args:
        make: gives a site's work, by its name; called again when the site is started anew.
        job: the job, for the limits of waits.
        chance: a random stream that decides what breaks, and when.
        share: of the tasks that suffer a fault.
        crashes: share of the exchanges during which the server is killed.
        spared: sites to whose answers nothing happens.

    Attributes:
        clock: for the workflow.
        injected: (task, round, site, fault) for each fault; the site is empty when the server was killed.
        counted: by network and round, the updates and weights of the sites that the server said it would use.
        longest: seconds of the longest wait beyond the time limit, or beyond the grace time after the quorum.
    """

    def __init__(self, make, job, chance, share=0.3, crashes=0.0, spared=()):
        self.clock, self.injected, self.counted, self.longest = Clock(), [], {}, 0.0
        self.share, self.crashes = share, crashes
        self._make, self._job, self._chance, self._spared = make, job, chance, spared
        self._limit = job.federation.round_time_limit_s
        self._sites, self._held, self._back, self._order = {}, {}, {}, count()

    def ask(self, task, payloads, exchange, answer):
        facts = next(iter(payloads.values())).facts
        place = facts.get("network", ""), facts.get("round", 0)
        self._task = task, place[1]
        self._answer, self._exchange, self._taken = answer, exchange, {}
        if task == TRAIN:
            self.counted[place] = self._taken  # instead of what came before, if the round is done again
        self._events = []  # what else was to happen in the last exchange is over
        start, limit, grace = self.clock.now, self._limit, self._job.federation.grace_s
        if task == PREPARE and self._job.search.wanted:
            grace = limit  # who is left out here cannot come later, if the search begins now
        for site, payload in payloads.items():
            self._draw(site, lambda site=site, payload=payload: self._work(site, payload))
        if self._chance.random() < self.crashes:
            self._at(self._moment(limit / 2), self._crash)
        quorum_end = start + limit
        while not exchange.is_over():
            if self._events and self._events[0][0] <= self.clock.now:
                heapq.heappop(self._events)[-1]()
            else:
                self.clock.now += POLL_SECONDS
            if exchange.reached_quorum:
                quorum_end = min(quorum_end, self.clock.now + grace)
        exchange.close()
        # a server looks at its clock so often
        self.longest = max(self.longest, self.clock.now - quorum_end - POLL_SECONDS)

    def _draw(self, site, work):
        """Decide what happens to a task at a site, and when."""
        limit = self._limit
        fault, done, back = None, self._moment(limit / 3), self._back.get(site, 0.0) - self.clock.now
        if back > 0:
            fault = "away"  # still
        elif site not in self._spared and self._chance.random() < self.share:
            fault = str(self._chance.choice(FAULTS if self._task[0] == TRAIN else FAULTS[: -len(CORRUPTIONS)]))
            self._note(site, fault)
        if fault in ("away", "killed"):
            if back <= 0:
                back = self._moment(3 * limit)
                self._back[site] = self.clock.now + back
                self._sites.pop(site, None)  # when it is back, its process is another one
            if fault == "away":
                self._exchange.missing(site)
            else:
                self._signs(site, 0.0, min(back, done) / 2)
            self._signs(site, back, back + done)
            self._at(back + done, lambda: self._deliver(site, *work()))
        elif fault == "stalled":
            self._signs(site, 0.0, 2 * limit)
        elif fault == "slow":
            slow = limit / 3 + self._moment(2 * limit)
            self._signs(site, 0.0, slow)
            self._at(slow, lambda: self._deliver(site, *work()))
        elif fault == "fails":
            self._at(done, lambda: self._exchange.receive(site, lambda: SiteFailure(kind="memory").sentence))
        elif fault == "lost":
            self._signs(site, 0.0, done)
            self._at(done + _AGAIN_SECONDS, lambda: self._deliver(site, *work()))
        else:
            self._signs(site, 0.0, done)
            self._at(done, lambda: self._disturbed(site, fault, *work()))
            if fault == "repeat":
                self._at(done + 0.5, lambda: self._deliver(site, *work()))

    def _work(self, site, payload):
        if site not in self._sites:
            self._sites[site] = self._make(site)
        values = {name: value.clone() for name, value in payload.values.items()}
        return self._sites[site].do(self._task[0], values, dict(payload.facts))

    def _disturbed(self, site, fault, values, report):
        if fault == "stale":  # the answer of an earlier task comes now
            held = self._held.get(site)
            self._held[site] = values, report
            values, report = held or (values, {**report, "round": 999})
        if fault in CORRUPTIONS:
            values = corrupted(fault, values)
        self._deliver(site, values, report)

    def _deliver(self, site, values, report):
        def take():
            reason = self._answer(site, values, dict(report))
            if reason is None:
                assert site not in self._taken, "counted twice"
                self._taken[site] = values, report.get("training_cases")
            return reason

        self._exchange.receive(site, take)

    def _signs(self, site, begin, end):
        moment = begin
        while moment <= end:
            self._at(moment, lambda: self._exchange.heard(site))
            moment += _SIGN_SECONDS

    def _crash(self):
        self._note("", "server killed")
        self._sites.clear()  # a server that is started again has the sites start their processes anew
        raise Killed

    def _note(self, site, fault):
        self.injected.append((*self._task, site, fault))

    def _at(self, seconds, what):
        heapq.heappush(self._events, (self.clock.now + seconds, next(self._order), what))

    def _moment(self, most):
        return float(self._chance.uniform(0, most))


def corrupted(fault, values):
    """An update with something wrong in it."""
    first = max(values, key=lambda name: values[name].numel())
    if fault == "scale":
        return {name: value * 1e6 for name, value in values.items()}
    if fault == "missing":
        return {name: value for name, value in values.items() if name != first}
    if fault == "extra":
        return {**values, "nothing.of.the.kind": torch.zeros(1)}
    wrong = torch.full_like(values[first], float("nan")) if fault == "not a number" else values[first].reshape(-1)[:1]
    return {**values, first: wrong}
