"""FLARE's executor at a site: hands tasks to `SiteWork`, and failures to the server by their kind only."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_opt.pt.decomposers import TensorDecomposer
from nvflare.fuel.utils import fobs

from clients.bell import Bell
from clients.failures import classify
from clients.signs import Aborted, Signs
from clients.state import forget_old
from clients.work import SiteWork
from fl_app.config import Job
from fl_app.messages import TASKS, WHOLE
from fl_app.site import load_site
from fl_app.transfer import ModelNotHeldError

_REPLY_SHARE, _LEAST_REPLY_SECONDS = 1 / 30, 15.0  # of the round's time limit; without any byte of the reply


class SiteExecutor(Executor):
    """Answers FLARE's tasks.

    Args:
        job: a job as plain data, as `Job` writes and reads it.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__()
        self.job = job  # FLARE exports a component's arguments from attributes of the same name
        self._bell = Bell()
        self._signs = Signs()
        self._work: SiteWork | None = None
        self._state: Path | None = None

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """FLARE's events: tensors can travel once the run has started; the bell tells when to ask for a task."""
        self._bell.handle_event(event_type, fl_ctx)
        self._signs.handle_event(event_type, fl_ctx)
        if event_type == EventType.START_RUN:
            fobs.register(TensorDecomposer)
            # a reply that was lost with its connection is asked for again; FLARE waits for it for 300 s
            limit = Job.model_validate(self.job).federation.round_time_limit_s
            fl_ctx.get_engine().client.communicator.timeout = max(_LEAST_REPLY_SECONDS, limit * _REPLY_SHARE)
        elif event_type == EventType.ABORT_TASK:
            self._state = None  # the job may go on
        elif event_type == EventType.END_RUN and self._state:
            shutil.rmtree(self._state, ignore_errors=True)  # the server has ended the job in an orderly way

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
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
            self.logger.error(f"{task_name} failed ({failure.kind}): {error}", exc_info=failure.kind == "internal")
            return make_reply(ReturnCode.EXECUTION_EXCEPTION, {"failure": failure.kind})

    def _begin(self, fl_ctx: FLContext) -> SiteWork:
        site = fl_ctx.get_identity_name()
        settings = load_site(site, fl_ctx.get_job_id())
        self._state = settings.state
        if self._state and self._state.name == fl_ctx.get_job_id():
            forget_old(self._state.parent)
        return SiteWork(Job.model_validate(self.job), site, settings, self._state, self._signs.step)
