"""Answers to FLARE's tasks at a site: what `SiteWork` gives, and failures by their kind only."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_opt.pt.decomposers import TensorDecomposer
from nvflare.fuel.utils import fobs

from clients.failures import classify
from clients.signs import Aborted, Signs
from clients.state import forget_old
from clients.work import SiteWork
from fl_app.config import Job
from fl_app.messages import TASKS, WHOLE
from fl_app.site import load_site
from fl_app.transfer import ModelNotHeldError

_logger = logging.getLogger(__name__)


class Answers:
    """Does the tasks of a job.

    Args:
        job: the job.
        signs: told of each task and each optimiser step.
    """

    def __init__(self, job: Job, signs: Signs) -> None:
        fobs.register(TensorDecomposer)
        self._job = job
        self._signs = signs
        self._work: SiteWork | None = None
        self._state: Path | None = None

    def give(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Do one task; a failure is told to the server by its kind only, the details stay in this site's log."""
        try:
            if task_name not in TASKS:
                return make_reply(ReturnCode.TASK_UNKNOWN)
            if self._work is None:
                self._work = self._begin(fl_ctx)
            dxo = from_shareable(shareable)
            self._signs.begin(abort_signal)
            values, report = self._work.do(task_name, dxo.data, dxo.meta)
            return DXO(DataKind.WEIGHT_DIFF, data=values, meta={"report": report}).to_shareable()
        except ModelNotHeldError:
            return make_reply(ReturnCode.EXECUTION_EXCEPTION, {WHOLE: True})
        except Aborted:
            return make_reply(ReturnCode.TASK_ABORTED)
        except Exception as error:  # whatever happens: the server gets an answer, the log the cause
            failure = classify(error)
            _logger.error(f"{task_name} failed ({failure.kind}): {error}", exc_info=failure.kind == "internal")
            return make_reply(ReturnCode.EXECUTION_EXCEPTION, {"failure": failure.kind})

    def pause(self) -> None:
        """The tasks are aborted; the job may go on."""
        self._state = None

    def end(self) -> None:
        """The run is over; if no task was aborted the server has ended the job in an orderly way."""
        if self._state:
            shutil.rmtree(self._state, ignore_errors=True)

    def _begin(self, fl_ctx: FLContext) -> SiteWork:
        site = fl_ctx.get_identity_name()
        settings = load_site(site, fl_ctx.get_job_id())
        self._state = settings.state
        if self._state and self._state.name == fl_ctx.get_job_id():
            forget_old(self._state.parent)
        return SiteWork(self._job, site, settings, self._state, self._signs.step)
