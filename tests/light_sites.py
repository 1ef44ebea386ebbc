"""Sites that answer every task by arithmetic, in a millisecond: for faults by the hundred.

What they do depends on nothing but their name, the task and the values that they get, so a run that loses an answer,
or counts one twice, ends with other values.
"""

import zlib
from functools import cached_property

import numpy as np

from fl_app.messages import (
    DERIVE,
    PERSONALISE,
    PREPARE,
    SCORE,
    SUPERNET,
    TEST,
    TRAIN,
    VALIDATE,
    DeriveReport,
    MemoryFit,
    PersonalModel,
    PersonalReport,
    Saving,
    ScoreReport,
    SearchReady,
    SiteReady,
    Spread,
    TestReport,
    TrainReport,
    Validation,
    ValidationReport,
)
from fl_app.networks.space.architecture import read_architecture
from fl_app.networks.space.sampling import NetworkSampler
from fl_app.result import software_versions
from server.search import memory_model

BUDGETS = (450_000, 800_000, 2_000_000, 600_000, 1_000_000)  # bytes, of the sites in turn


class LightSite:
    """Moves every value a tenth of the way to a number of its own.

    Args:
        job: the job.
        name: the site's, such as ``site-2``.
    """

    def __init__(self, job, name):
        self._job, self._name = job, name
        self._number = int(name.rpartition("-")[2])
        self._cases = 2 + self._number
        self._tasks = {
            PREPARE: lambda values, facts: ({}, self._ready),
            TRAIN: self._train,
            VALIDATE: lambda values, facts: ({}, ValidationReport(received=self._score(values))),
            TEST: lambda values, facts: ({}, self._tested),
            SCORE: self._losses,
            DERIVE: self._derive,
            PERSONALISE: self._personalise,
        }
        self._beside = {}
        self._prepared = False

    def do(self, task, values, facts):
        """See `clients.work.SiteWork.do`: who was started anew says so beside the report."""
        if task != PREPARE and not self._prepared:
            self._beside = {"ready": self._ready.model_dump()}
        self._prepared = True
        sent, report = self._tasks[task](values, facts)
        return sent, report.model_dump() | self._beside

    @cached_property
    def _ready(self):
        budget = BUDGETS[(self._number - 1) % len(BUDGETS)]
        fit = MemoryFit(scale=1.0, offset=0.0, value_bytes=4, weight_copies=4)
        search = SearchReady(budget_bytes=budget, main_bytes=budget // 2, fit=fit) if self._job.search.wanted else None
        return SiteReady(
            training_cases=self._cases,
            validation_cases=1,
            test_cases=1,
            warnings=0,
            device="cpu",
            precision="fp32",
            versions=VERSIONS,
            restored=None,
            saving=Saving(),
            search=search,
            seconds=0.0,
        )

    def _train(self, values, facts):
        own, touched = set(facts["own"]), None
        names = [name for name in values if name not in own]
        if facts["network"] == SUPERNET:
            chance = self._chance(facts["round"])
            names = [name for name in names if chance.random() < 0.3] or names[:1]
            touched = dict.fromkeys(names, 1)
        updates = {name: (self._number / 10 - values[name]) / 10 for name in names}
        report = TrainReport(
            round=facts["round"],
            loss=1.0,
            steps=1,
            training_cases=self._cases,
            training_seconds=0.0,
            memory_bytes=0,
            received=None if touched else self._score(values),
            touched=touched,
        )
        return updates, report

    def _score(self, values):
        """The nearer all values are to 0.3, the better."""
        distance = sum(float((value - 0.3).square().mean()) for value in values.values()) / len(values)
        return Validation(cases=1, metrics={"val_dice": 1 / (1 + distance)}, seconds=0.0)

    def _losses(self, values, facts):
        losses = tuple(zlib.crc32(f"{self._name} {text}".encode()) / 2**32 for text in facts["architectures"])
        return {}, ScoreReport(losses=losses, cases=1, seconds=0.0)

    def _derive(self, values, facts):
        consensus = read_architecture(facts["consensus"], self._job.search.space)
        budget = self._ready.search.budget_bytes
        model = memory_model(self._job, self._ready.search)
        network = NetworkSampler(model, budget, consensus).draw(self._chance(0))
        taken = round(model.total(network))
        return {}, DeriveReport(
            architecture=network.to_json(), parameters=1, predicted_bytes=taken, measured_bytes=taken, seconds=0.0
        )

    def _personalise(self, values, facts):
        score = self._score(values)
        model = PersonalModel(validation=score, test=self._tested, parameters=1, memory_bytes=1, steps=0)
        return {}, PersonalReport(models={"federated": model}, chosen="federated", seconds=0.0)

    @property
    def _tested(self):
        spread = {"spleen": Spread(mean=0.5, std=0.0, cases=1)}
        return TestReport(dice=spread, surface_dice=spread, seconds=0.0)

    def _chance(self, number):
        return np.random.default_rng((self._number, number))


VERSIONS = software_versions()
