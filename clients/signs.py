"""A site tells the server every 2 s that it is alive and how far it is, so that the server need not guess."""

from __future__ import annotations

import threading
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.fuel.f3.cellnet.fqcn import FQCN

from fl_app.messages import SIGN_SECONDS, SIGN_TOPIC


class Aborted(Exception):
    """The job has ended while a task was being done."""


class Signs:
    """Sends signs of life while a job runs."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._steps = 0
        self._abort: Signal | None = None

    def begin(self, abort: Signal) -> None:
        """A task begins; ``abort`` is set if the job ends before it does."""
        self._abort, self._steps = abort, 0

    def step(self) -> None:
        """An optimiser step is done.

        Raises:
            Aborted: there is no use in another one.
        """
        self._steps += 1
        if self._abort and self._abort.triggered:
            raise Aborted

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """FLARE's events, handed on by the executor."""
        if event_type == EventType.START_RUN:
            threading.Thread(target=self._send, args=(fl_ctx.get_engine(),), daemon=True).start()
        elif event_type == EventType.END_RUN:
            self._ended.set()

    def _send(self, engine: Any) -> None:
        while not self._ended.wait(SIGN_SECONDS):
            with engine.new_context() as context:
                sign = Shareable({"steps": self._steps})
                engine.send_aux_request([FQCN.ROOT_SERVER], SIGN_TOPIC, sign, 0.0, context, optional=True)
