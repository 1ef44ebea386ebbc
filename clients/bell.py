"""A site asks for its next task when the server rings, not at random: FLARE's clients sleep between two requests."""

from __future__ import annotations

import threading

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply

from fl_app.messages import BELL_TOPIC

# a ring may get lost: after this long a site asks anyway; short beside a round, long beside a transfer
_LONGEST_WAIT_SECONDS = 2.0


class Bell:
    """Holds back a client's request for a task until the server has one, or a short time has passed."""

    def __init__(self) -> None:
        self._rung = threading.Event()
        self._holding = False  # the first task is asked for at once

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """FLARE's events, handed on by the executor."""
        if event_type == EventType.START_RUN:
            fl_ctx.get_engine().register_aux_message_handler(BELL_TOPIC, self._ring)
        elif event_type == EventType.AFTER_TASK_EXECUTION:
            self._rung.clear()  # a ring from now on is about the next task
            self._holding = True
        elif event_type == EventType.BEFORE_PULL_TASK and self._holding:
            self._rung.wait(_LONGEST_WAIT_SECONDS)
        elif event_type in (EventType.ABORT_TASK, EventType.END_RUN):
            self._rung.set()

    def _ring(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        self._rung.set()
        return make_reply(ReturnCode.OK)
