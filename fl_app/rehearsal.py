"""A whole federation within this process, without FLARE: the same workflow and the same work at the sites.

For simulations of more sites than the memory holds processes, benchmarks and fast tests. The sites take their turns, so
it is no faster than one site after the other. ``python -m fl_app.rehearsal RESULT_FOLDER SITE [SITE ...]`` is what
`fl_app.simulation` starts as a process.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch

from clients.failures import classify
from clients.work import SiteWork
from fl_app.config import Job
from fl_app.config_file import load_job
from fl_app.errors import UserError
from fl_app.processes import end_with_parent
from fl_app.result import Result
from fl_app.site import SiteSettings, read_site
from fl_app.transfer import ModelNotHeldError
from server.channel import Answer, Channel, Payload
from server.exchange import Exchange
from server.workflow import Workflow

_logger = logging.getLogger(__name__)


class Rehearsal:
    """A channel to sites in the same process. Tensors are copied on the way, as a wire would.

    Args:
        sites: each site's work.
    """

    def __init__(self, sites: Mapping[str, SiteWork]) -> None:
        self._sites = sites

    def ask(self, task: str, payloads: Mapping[str, Payload], exchange: Exchange, answer: Answer) -> None:
        """See `server.channel.Channel`."""
        for site, payload in payloads.items():
            if exchange.is_over():
                break
            try:
                values, report = self._do(site, task, payload)
            except Exception as error:
                _logger.warning(f"{task} failed at {site}", exc_info=True)
                exchange.receive(site, partial(str, classify(error).sentence))
                continue
            exchange.receive(site, partial(answer, site, _copies(values), report))
        exchange.close()

    def close(self) -> None:
        """End what the sites have started."""
        for work in self._sites.values():
            work.close()

    def _do(self, site: str, task: str, payload: Payload) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        try:
            return self._sites[site].do(task, _copies(payload.values), dict(payload.facts))
        except ModelNotHeldError:
            if payload.whole is None:
                raise
        return self._do(site, task, payload.whole(site))


def rehearse(
    job: Job,
    sites: Mapping[str, SiteSettings],
    out: Path,
    channel: Channel | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """Run a job to its end.

    Args:
        job: the job.
        sites: each site's settings; ``state`` is where it keeps what a restart needs.
        out: folder for the result; with checkpoints in it, the job goes on from there.
        channel: how the sites are reached; none: directly.
        clock: seconds, monotonic: what the sites' time limits are measured with.

    Raises:
        UserError: why it could not be finished.
    """
    if channel is None:
        with closing(rehearsal_channel(job, sites)) as own:
            return rehearse(job, sites, out, own, clock)
    workflow = Workflow(job, out, channel, clock)
    try:
        workflow.run(list(sites))
    except UserError as error:
        workflow.record.failed(str(error))
        raise
    return workflow.record.result


def rehearsal_channel(job: Job, sites: Mapping[str, SiteSettings]) -> Rehearsal:
    """Sites in this process."""
    return Rehearsal({name: SiteWork(job, name, settings, settings.state) for name, settings in sites.items()})


def _copies(values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in values.items()}


def main(out: Path, sites: list[str]) -> int:
    """Run the job in a result's folder, or go on with it; the process's exit code. An error is in ``result.json``."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    try:
        rehearse(
            load_job(out / "job.yaml"), {site: read_site(out / "sites" / site / "site.yaml") for site in sites}, out
        )
    except UserError as error:
        _logger.error(str(error))
        return 1
    return 0


if __name__ == "__main__":
    end_with_parent()
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
