"""FLARE's executor at a site: its events and tasks, handed on to `Answers`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from clients.bell import Bell
from clients.signs import Signs
from fl_app.config import Job

if TYPE_CHECKING:
    from clients.answers import Answers

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
        self._answers: Answers | None = None

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """FLARE's events: tensors can travel once the run has started; the bell tells when to ask for a task."""
        self._bell.handle_event(event_type, fl_ctx)
        self._signs.handle_event(event_type, fl_ctx)
        if event_type == EventType.START_RUN:
            from clients.answers import Answers  # takes seconds; who hands in a job needs the executor's name only

            job = Job.model_validate(self.job)
            self._answers = Answers(job, self._signs)
            # a reply that was lost with its connection is asked for again; FLARE waits for it for 300 s
            seconds = job.federation.round_time_limit_s * _REPLY_SHARE
            fl_ctx.get_engine().client.communicator.timeout = max(_LEAST_REPLY_SECONDS, seconds)
        elif self._answers and event_type == EventType.ABORT_TASK:
            self._answers.pause()
        elif self._answers and event_type == EventType.END_RUN:
            self._answers.end()

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Do one task, after the run has started."""
        assert self._answers is not None
        return self._answers.give(task_name, shareable, fl_ctx, abort_signal)
