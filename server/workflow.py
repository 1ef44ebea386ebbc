"""What the server of a job does, from the first question to the sites to the last test. Knows nothing of FLARE."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fl_app.config import Job
from fl_app.errors import FederationError
from fl_app.messages import MAIN, SEARCHED, SUPERNET, TEST, TestReport, payload_bytes
from fl_app.model_file import load_model, save_model
from fl_app.networks.found import read_found, value_names
from fl_app.networks.registry import build_network, exchanged_names
from fl_app.networks.space.supernet import Supernet
from fl_app.networks.widths import WIDTHS, Width, build_width, parts_of
from fl_app.result import SearchResult
from server.channel import Channel, Payload, Values
from server.found import holding, search_site, take_widths
from server.participants import Participants
from server.personal import personalise
from server.progress import Progress
from server.record import Record, RoundLog
from server.search import Search, supernet_plan
from server.training import Names, Plan, Standing, Training

_logger = logging.getLogger(__name__)


class Workflow:
    """Prepare; train the job's network; search and train others if the job says so; have the best models tested.

    A job whose server was ended goes on after the last round that its checkpoints hold.

    Args:
        job: the job.
        folder: for ``result.json``, ``model/`` and ``checkpoints/``.
        channel: how the sites are reached.
        clock: seconds, monotonic: what the sites' time limits are measured with.
    """

    def __init__(self, job: Job, folder: Path, channel: Channel, clock: Callable[[], float] = time.monotonic) -> None:
        self.record = Record(folder / "result.json", job)
        self._job = job
        self._models = folder / "model"
        self._progress = Progress(folder / "checkpoints", self.record)
        self._sites = Participants(channel, job.federation, self.record, lambda: self._progress.rounds, clock)
        self._invited: set[str] = set()
        self._done = False

    def run(self, invited: list[str]) -> None:
        """Run the whole job.

        Args:
            invited: the sites' names.

        Raises:
            FederationError: why it cannot go on; what was reached is saved.
        """
        try:
            self._run(invited)
        except OSError as error:
            raise FederationError(
                f"the server cannot write or read its files: {error.strerror or error} - "
                "what the last checkpoint holds is not lost"
            ) from error

    def _run(self, invited: list[str]) -> None:
        if self._progress.is_finished():
            self._progress.clear()
            return
        self._progress.restore()
        # who took part before the server was ended may still come
        self._invited = {*invited, *self.record.result.sites}
        begins = self._job.search.wanted and not self._progress.search.ready
        self._sites.prepare(sorted(self._invited), wait=begins)
        if begins:
            self._progress.search.begin(self._sites.ready, self._job.search.of_cells)
            self._progress.save()
        main = self._train_main()
        searched = self._search(main) if self._job.search.wanted else None
        if main:
            self._test(main)
        if searched or self._job.personal.wanted:
            personalise(self._job, self._sites, self.record, self._models, main, searched)
        self._done = True
        self.record.finished()
        self._progress.clear()

    def site_started(self, site: str) -> None:
        """A site has got the job again."""
        self._sites.started(site)

    def wants(self, site: str) -> bool:
        """Whether a site that is started anew shall get the job again."""
        return not self._done and site in self._invited and not self._sites.gave_up(site)

    def _train_main(self) -> Training | None:
        """The job's own network, at the sites whose memory holds it; none if that is nowhere so, or for no rounds."""
        network = build_network(self._job)
        standing = self._progress.standing(MAIN, dict(network.state_dict()))
        exchanged = exchanged_names(network, self._job.federation.normalisation)
        result = self.record.result
        result.parameters = sum(value.numel() for value in network.parameters())
        result.exchanged_bytes = payload_bytes({name: standing.values[name] for name in exchanged})
        if not self._job.federation.rounds:
            return None
        fitting = [*self._sites.ready, *self._sites.absent]
        if self._job.search.wanted:
            fitting = [site for site, ready in self._progress.search.ready.items() if ready.main_fits]
        if not fitting:
            _logger.warning("no site's memory budget holds the job's own network: only the search is run")
            return None
        plan = Plan(MAIN, self._job.training.steps_per_round, dict.fromkeys(sorted(fitting), exchanged))
        return self._train(plan, standing, self._job.federation.rounds, self.record.rounds, self._models)

    def _search(self, main: Training | None) -> Training:
        """Find a network for every site, and train them together.

        Args:
            main: of the job's own network, which is trained before.
        """
        known, exchanged = self._search_cells() if self._job.search.of_cells else self._take_widths(main)
        result, state = self.record.result.search, self._progress.search
        assert result is not None  # the search has just made it
        networks = {text: value_names(self._job, read_found(text, self._job)) for text in set(state.derived.values())}
        names = {site: networks[text] for site, text in state.derived.items()}
        travel, stay = holding(names, exchanged, self._job.search.min_holders)
        for site, own in stay.items():
            result.sites[site].own_values = sum(known[name].numel() for name in own)
        held = {name for each in networks.values() for name in each}
        standing = self._progress.standing(SEARCHED, {name: known[name].clone() for name in sorted(held)})
        log = RoundLog(self.record, result.rounds, self._job.federation.best_metric)
        plan = Plan(SEARCHED, self._job.training.steps_per_round, travel, stay, state.derived)
        texts = tuple(dict.fromkeys([result.consensus or "", *state.derived.values()]))
        training = self._train(plan, standing, self._job.search.rounds, log, self._models / "searched", texts)
        # what a site needs that comes later: also what is in no network that was found, but nothing untrained
        values, info = load_model(self._models / "searched" / "best.safetensors")
        if self._job.search.of_cells:
            later = known | values
        else:
            alone = {name for each in stay.values() for name in each}
            later = {name: value for name, value in values.items() if name not in alone}
        save_model(self._models / "searched" / "supernet.safetensors", later, info)
        return training

    def _search_cells(self) -> tuple[Values, Names]:
        """Train the supernet and choose; its values as trained, and the names of those that may travel."""
        started = time.monotonic()
        settings = self._job.search
        network = Supernet(settings.space, len(self._job.data.labels), self._job.seed)
        supernet = dict(network.state_dict())
        exchanged = exchanged_names(network, self._job.federation.normalisation)
        state = self._progress.search
        result = self._begin_result(settings.space.name, supernet, exchanged)
        log = RoundLog(self.record, result.supernet_rounds, self._job.federation.best_metric)
        standing = self._progress.standing(SUPERNET, supernet)
        plan = supernet_plan(self._job, state.ready, exchanged)
        supernet = self._train(plan, standing, settings.supernet_rounds, log, None).standing.values
        known = {name: supernet[name] for name in exchanged}
        Search(self._job, self._sites, self.record, state, known, self._progress.save).find()
        if not result.seconds:
            result.seconds = round(time.monotonic() - started, 3)
        return supernet, exchanged

    def _take_widths(self, main: Training | None) -> tuple[Values, Names]:
        """Each site's network is the widest that it said it can train; the values that these go on from, and the names
        of those that may travel.
        """
        network = build_width(self._job, Width(WIDTHS[-1]))
        values = dict(network.state_dict())
        # what too few sites trained is one site's update, which must not go to others
        if main and len(main.plan.held) >= self._job.search.min_holders:
            values = parts_of(self._job, main.standing.values)
        exchanged = exchanged_names(network, self._job.federation.normalisation)
        result = self._begin_result(f"{self._job.network.name} in eighths of its width", values, exchanged)
        take_widths(self._progress.search, result)
        self._progress.save()
        return values, exchanged

    def _begin_result(self, space: str, values: Values, exchanged: Names) -> SearchResult:
        result = self.record.result
        if result.search is None:
            result.search = SearchResult(
                space=space,
                supernet_parameters=sum(value.numel() for value in values.values()),
                supernet_bytes=payload_bytes({name: values[name] for name in exchanged}),
                sites={site: search_site(each) for site, each in self._progress.search.ready.items()},
            )
        return result.search

    def _train(
        self,
        plan: Plan,
        standing: Standing,
        rounds: int,
        log: RoundLog,
        models: Path | None,
        architectures: tuple[str, ...] = (),
    ) -> Training:
        training = Training(self._job, plan, standing, self._sites, log, models, architectures)
        while standing.round < rounds:
            training.train_round()
            self._progress.save()
        if not plan.partial:
            training.validate()
            if training.standing.best is None:
                raise FederationError(
                    f"no site reported {self._job.federation.best_metric}, so there is no best model - "
                    "the organ must be in some validation case; the last model is saved"
                )
        return training

    def _test(self, training: Training) -> None:
        values, info = load_model(self._models / "best.safetensors")
        reports: dict[str, TestReport] = {}

        def answer(site: str, received: Values, report: dict[str, Any]) -> str | None:
            tested = TestReport.model_validate(report)
            if set(tested.dice) != set(self._job.data.labels):
                return f"it tested {', '.join(sorted(tested.dice)) or 'nothing'}, not what the job's labels name"
            reports[site] = tested
            _logger.info(f"test of the model after round {info.round}: {site} {tested.dice}")
            return None

        exchanged = next(iter(training.plan.held.values()))
        payload = Payload({name: values[name] for name in exchanged}, {"network": MAIN, "round": info.round})
        payloads = dict.fromkeys(training.plan.held, payload)
        exchange = self._sites.ask(TEST, payloads, answer)
        self.record.tested(info.round, info.score, reports, exchange.left_out)
        self._sites.require_quorum(exchange, "when the best model was tested")
