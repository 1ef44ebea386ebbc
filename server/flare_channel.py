"""FLARE's tasks as the workflow's channel."""

from __future__ import annotations

import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from nvflare.apis.controller_spec import ClientTask, Task
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from fl_app.errors import FederationError
from fl_app.messages import BELL_TOPIC, WHOLE, SiteFailure
from fl_app.under_way import UnderWay
from server.channel import Answer, Payload
from server.exchange import Exchange

_POLL_SECONDS = 0.05
Arrived = queue.Queue[Callable[[], None]]  # what takes an answer into account


class FlareChannel:
    """Asks the sites through a FLARE controller.

    Args:
        controller: whose tasks they are.
        context: FLARE's, of the running job.
        abort: set when an administrator aborts the job.
    """

    def __init__(self, controller: Controller, context: FLContext, abort: Signal) -> None:
        self._controller, self._context, self._abort = controller, context, abort
        self._news = threading.Event()
        self._exchange: Exchange | None = None
        self._about = ("", "")  # the task, and which network it is about
        self._again: queue.SimpleQueue[tuple[str, Payload]] = queue.SimpleQueue()  # who gets a model whole
        self._gone: set[str] = set()  # silent since an earlier exchange: not waited for anew in each

    def ask(self, task: str, payloads: Mapping[str, Payload], exchange: Exchange, answer: Answer) -> None:
        """See `Channel`. Sites that are not connected get the task when they are."""
        self._exchange = exchange
        self._about = (task, next((str(each.facts.get("network", "")) for each in payloads.values()), ""))
        self._again = queue.SimpleQueue()
        arrived: Arrived = queue.Queue(1)
        tasks: list[Task] = []
        try:
            self._wait_for_all(task, dict(payloads), exchange, answer, arrived, tasks)
        finally:
            exchange.close()
            _take_arrived(arrived)  # who waited for a place in it, with FLARE's lock, has got it now
        self._gone |= {site for site in exchange.unanswered if exchange.is_silent(site)}
        for each in tasks:
            self._controller.cancel_task(each, fl_ctx=self._context)

    def _wait_for_all(
        self,
        task: str,
        payloads: dict[str, Payload],
        exchange: Exchange,
        answer: Answer,
        arrived: Arrived,
        tasks: list[Task],
    ) -> None:
        """Send what is to be sent and take what arrives, until the exchange is over."""
        missing = set(payloads)
        while True:
            _take_arrived(arrived)
            if exchange.is_over():
                return
            if self._abort.triggered:
                raise FederationError("the job was aborted")
            while not self._again.empty():
                site, whole = self._again.get()
                payloads[site] = whole
                missing.add(site)
            connected = missing & {client.name for client in self._context.get_engine().get_clients()}
            if connected or not tasks:
                ready = {site: payloads[site] for site in connected}
                tasks += self._send_each(task, ready, exchange, answer, arrived)
                missing -= connected
                for site in missing:
                    exchange.missing(site)
            self._news.wait(_POLL_SECONDS)
            self._news.clear()

    def heard(self, site: str, steps: int) -> None:
        """A site has given a sign of life."""
        self._gone.discard(site)
        if self._exchange:
            self._exchange.heard(site, steps)

    def under_way(self) -> UnderWay:
        """What the sites are doing."""
        task, network = self._about
        return UnderWay(task=task, network=network, steps=self._exchange.steps if self._exchange else {})

    def _send_each(
        self, task: str, payloads: Mapping[str, Payload], exchange: Exchange, answer: Answer, arrived: Arrived
    ) -> list[Task]:
        together: dict[int, list[str]] = defaultdict(list)
        for site, payload in payloads.items():
            if site in self._gone:
                exchange.missing(site)
            else:
                exchange.heard(site)
            together[id(payload)].append(site)
        sent = [self._send(task, payloads[sites[0]], sites, exchange, answer, arrived) for sites in together.values()]
        if payloads:
            self._ring(list(payloads))
        return sent

    def _send(
        self,
        name: str,
        payload: Payload,
        sites: Sequence[str],
        exchange: Exchange,
        answer: Answer,
        arrived: Arrived,
    ) -> Task:
        def received(client_task: ClientTask, fl_ctx: FLContext) -> None:
            # FLARE calls this one site at a time, with a lock that holds up everybody's requests and uploads: so the
            # answer is only handed on. One may wait there; whoever comes then waits here, which bounds the memory.
            site, reply = client_task.client.name, client_task.result
            client_task.result = None  # FLARE would keep every site's tensors until the round ends
            if payload.whole and reply.get_header(WHOLE):
                self._again.put((site, payload.whole(site)))
            elif exchange.closed:
                self._controller.logger.warning(f"{name}: {site} answered after the exchange was over")
            else:
                arrived.put(lambda: take(site, reply))
            self._news.set()

        def take(site: str, reply: Shareable) -> None:
            reason = exchange.receive(site, lambda: _read(site, reply, answer))
            if reason:
                self._controller.logger.warning(f"{name}: {site} is left out: {reason}")

        data = DXO(DataKind.WEIGHTS, data=payload.values, meta=dict(payload.facts)).to_shareable()
        task = Task(name=name, data=data, timeout=0, result_received_cb=received)
        self._controller.broadcast(task, self._context, targets=list(sites), min_responses=0)
        return task

    def _ring(self, sites: list[str]) -> None:
        """Tell the sites to ask for their task now; who does not hear it asks a little later."""
        engine = self._context.get_engine()
        engine.fire_and_forget_aux_request(sites, BELL_TOPIC, Shareable(), self._context, optional=True)


def _take_arrived(arrived: Arrived) -> None:
    while not arrived.empty():
        arrived.get()()


def _read(site: str, reply: Shareable, answer: Answer) -> str | None:
    """Take a site's answer; the reason why it cannot be used, or none."""
    if reply.get_return_code() != ReturnCode.OK:
        return SiteFailure(kind=reply.get_header("failure", "internal")).sentence
    dxo = from_shareable(reply)
    return answer(site, dxo.data, dict(dxo.meta.get("report", {})))
