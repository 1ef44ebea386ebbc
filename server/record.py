"""Writes down what happens, as it happens: ``result.json`` is complete up to the last event at any time."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

from fl_app.config import Job
from fl_app.curves import CURVES, Curves, TensorBoard
from fl_app.messages import SiteReady, TestReport, TrainReport, Validation
from fl_app.result import (
    Final,
    Restart,
    Result,
    Return,
    Round,
    Site,
    SiteRound,
    site_scores,
    software_versions,
    weighted_mean,
    write_result,
)
from fl_app.verdict import find_caveats

_logger = logging.getLogger(__name__)


class Record:
    """The result of a run under way, and its curves for TensorBoard, whoever follows it or not.

    Args:
        path: where ``result.json`` goes.
        job: the job.
    """

    def __init__(self, path: Path, job: Job) -> None:
        self.path = path
        self._job = job
        self._started = time.monotonic()
        self._curves = Curves(TensorBoard(path.parent / CURVES))
        self.result = Result(
            name=job.name,
            seed=job.seed,
            rounds_asked=job.federation.rounds,
            started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            versions=software_versions(),
            config=job.model_dump(mode="json"),
        )

    def resume(self, earlier: Result, damaged: list[str]) -> None:
        """Go on with the result of a server that was ended, as its last checkpoint has it."""
        self._started = time.monotonic() - earlier.seconds
        self.result = earlier
        self._curves.skip(earlier)
        self.result.restarts.append(Restart(after_round=len(earlier.rounds), damaged=damaged))
        self.save()

    @property
    def rounds(self) -> RoundLog:
        """The rounds of the job's network."""
        return RoundLog(self, self.result.rounds, self._job.federation.best_metric)

    def save(self) -> None:
        """Write the file."""
        self.result.seconds = round(time.monotonic() - self._started, 3)
        write_result(self.path, self.result)
        self._curves.update(self.result)

    def site_ready(self, site: str, ready: SiteReady) -> None:
        """A site has checked and prepared its data."""
        facts = ready.model_dump(exclude={"warnings", "seconds", "restored", "search"})
        self.result.refused.pop(site, None)
        if ready.restored is False and self.result.restarts and self.rounds.took_part(site):
            self.result.restarts[-1].lost_state.append(site)
        self.result.sites[site] = Site(
            **facts, data_warnings=ready.warnings, preparation_seconds=round(ready.seconds, 3)
        )
        self.save()

    def site_returned(self, site: str, ready: SiteReady) -> None:
        """A site takes part again, or for the first time, in mid-job."""
        restored = ready.restored if self.rounds.took_part(site) else None
        self.result.returns.append(Return(site=site, round=len(self.result.rounds), restored=restored))
        self.save()

    def tested(
        self, number: int, value: float | None, reports: Mapping[str, TestReport], left_out: Mapping[str, str]
    ) -> None:
        """The sites have scored the best model on their test cases."""
        sites = {site: site_scores(report) for site, report in sorted(reports.items())}
        self.result.final = Final(
            round=number,
            best_metric=self._job.federation.best_metric,
            best_value=value,
            mean_dice=weighted_mean((scores.dice, scores.cases) for scores in sites.values()),
            mean_dice_over_sites=weighted_mean((scores.dice, 1) for scores in sites.values()),
            mean_surface_dice=weighted_mean((scores.surface_dice, scores.cases) for scores in sites.values()),
            sites=sites,
            left_out=dict(left_out),
        )
        self.save()

    def finished(self) -> None:
        """All went as it should."""
        self.result.status = "finished"
        self.result.caveats = find_caveats(self.result)
        self.save()
        self._curves.close()

    def failed(self, error: str) -> None:
        """The run ended early."""
        self.result.status, self.result.error = "failed", error
        try:
            self.save()
        except OSError as full:
            _logger.error(f"the end of the run could not be written down: {full.strerror}")
        self._curves.close()


class RoundLog:
    """The rounds of one network's training.

    Args:
        record: of the whole run.
        rounds: where in its result the rounds go.
        best_metric: what selects the best model.
    """

    def __init__(self, record: Record, rounds: list[Round], best_metric: str) -> None:
        self._record = record
        self._rounds = rounds
        self._best_metric = best_metric

    def took_part(self, site: str) -> bool:
        """Whether an update of a site has counted."""
        return any(site in done.sites and done.sites[site].steps for done in self._rounds)

    def round_started(self, number: int) -> None:
        """The model is on its way to the sites."""
        self._rounds.append(Round(number=number))
        self._record.save()

    def site_trained(self, site: str, report: TrainReport, received: int, sent: int) -> None:
        """A site's update has arrived and is in the average."""
        self._rounds[-1].sites[site] = SiteRound(
            loss=report.loss,
            steps=report.steps,
            training_seconds=round(report.training_seconds, 3),
            memory_bytes=report.memory_bytes,
            validation_seconds=round(report.received.seconds if report.received else 0.0, 3),
            bytes_received=received,
            bytes_sent=sent,
        )
        self._record.save()

    def round_finished(
        self,
        seconds: float,
        weights: Mapping[str, int],
        left_out: Mapping[str, str],
        remarks: Mapping[str, str] | None = None,
    ) -> None:
        """The new model is saved."""
        current = self._rounds[-1]
        current.seconds = round(seconds, 3)
        current.left_out, current.remarks = dict(left_out), dict(remarks or {})
        total = sum(weights.values())
        for site, weight in weights.items():
            current.sites[site].weight = weight / total
        self._record.save()

    def model_validated(self, number: int, scores: Mapping[str, Validation]) -> float | None:
        """The sites have scored the model after round ``number`` (0: untrained); the best-model metric's mean."""
        names = sorted({name for validation in scores.values() for name in validation.metrics})
        means = {name: weighted_mean((v.metrics.get(name), v.cases) for v in scores.values()) for name in names}
        if number == 0:
            if self._rounds is self._record.result.rounds:
                self._record.result.initial_metrics, self._record.result.initial_dice = means, means.get("val_dice")
        else:
            measured = self._rounds[number - 1]
            measured.metrics, measured.dice = means, means.get("val_dice")
            for site, validation in scores.items():
                entry = measured.sites.setdefault(site, SiteRound())
                entry.metrics, entry.dice = dict(validation.metrics), validation.metrics.get("val_dice")
                entry.validation_cases = validation.cases
        self._record.save()
        return means.get(self._best_metric)
