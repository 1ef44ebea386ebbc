"""A site that misses a part of an architecture search is told of, and comes back without ceremony."""

import pytest

from fl_app.messages import DERIVE, PERSONALISE, SCORE, SEARCHED, TRAIN
from fl_app.rehearsal import rehearsal_channel, rehearse
from fl_app.verdict import shortfalls
from tests.federation import write_sites
from tests.test_search_federation import search_job, settings

pytestmark = pytest.mark.slow


class Leaving:
    """A channel whose second site is not there during some task; whenever it is back, its process is another one."""

    def __init__(self, job, sites, network, *tasks):
        self._job, self._sites, self._network, self._tasks = job, sites, network, tasks
        self._channel = rehearsal_channel(job, sites)
        self.sent = []

    def ask(self, task, payloads, exchange, answer):
        facts = payloads["site-2"].facts
        if (task, facts.get("round", 0)) in self._tasks and facts.get("network") in (None, self._network):
            exchange.missing("site-2")
            self._channel.ask(task, {"site-1": payloads["site-1"]}, exchange, answer)
            self._channel = rehearsal_channel(self._job, self._sites)
        else:
            self.sent.append((task, facts.get("network"), facts.get("round"), set(payloads["site-2"].values)))
            if task == PERSONALISE:
                self._channel = rehearsal_channel(self._job, self._sites)
            self._channel.ask(task, payloads, exchange, answer)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_sites(tmp_path_factory.mktemp("data"), site_1=4, site_2=5)


def run(data, folder, network, *tasks, **search):
    job = search_job(folder, **search)
    federation = job.federation.model_copy(update={"min_sites": 1})
    job = job.model_copy(update={"federation": federation})
    sites = settings(data, folder)
    line = Leaving(job, sites, network, *tasks)
    return rehearse(job, sites, folder / "out", line), line.sent


@pytest.mark.promise("site: away for some rounds")
def test_a_site_that_misses_the_choice_of_networks_trains_the_one_for_all(data, tmp_path):
    result, _ = run(data, tmp_path, "supernet", (SCORE, 1), (DERIVE, 0))
    found = result.search.sites["site-2"]
    assert found.architecture == result.search.consensus and 0 < found.predicted_bytes <= found.budget_bytes
    assert all(set(done.sites) == {"site-1", "site-2"} for done in result.search.rounds)
    assert {"searched", "searched tuned"} <= result.personal.sites["site-2"].models.keys()
    assert shortfalls(result) == []


@pytest.mark.promise("site: away for some rounds")
def test_a_site_that_misses_the_first_round_gets_its_own_values_later(data, tmp_path):
    result, sent = run(data, tmp_path, SEARCHED, (TRAIN, 1), mode="free")
    assert set(result.search.rounds[0].left_out) == {"site-2"} and result.search.rounds[1].left_out == {}
    assert result.search.sites["site-2"].own_values > 0
    names = {number: values for task, network, number, values in sent if (task, network) == (TRAIN, SEARCHED)}
    validated = next(values for task, network, _, values in sent if (task, network) == ("validate", SEARCHED))
    assert names.keys() == {2} and validated < names[2], "until it has taken part, what it alone holds is sent along"
    assert {each.restored for each in result.returns if each.site == "site-2"} == {True}
    assert "1 of 4 rounds went without site-2" in result.caveats
    # a process that was started anew for its personal models builds the network that was found
    assert {"searched", "searched tuned"} <= result.personal.sites["site-2"].models.keys()
