"""FLARE's controller of a job: gives the workflow a channel and a folder, and tells FLARE how it ended."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.fuel.utils import fobs
from nvflare.widgets.info_collector import InfoCollector

from fl_app.config import Job
from fl_app.errors import UserError
from fl_app.messages import PROGRESS, SIGN_TOPIC, SITE_TOPIC
from fl_app.result import RESULT_VARIABLE
from fl_app.under_way import UNDER_WAY, write_under_way

if TYPE_CHECKING:
    from server.flare_channel import FlareChannel
    from server.workflow import Workflow

_TELL_SECONDS = 1.0


class Federation(Controller):
    """Runs a `Workflow` as a FLARE job.

    Args:
        job: a job as plain data, as `Job` writes and reads it.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__(task_check_period=0.05)
        self.job = job  # FLARE exports a component's arguments from attributes of the same name
        self._folder: Path | None = None
        self._channel: FlareChannel | None = None
        self._workflow: Workflow | None = None
        self._told = 0.0

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Find where to write; listen to the sites' signs of life, and to the server's job runner."""
        # takes seconds; who hands in a job needs the controller's name only
        from nvflare.app_opt.pt.decomposers import TensorDecomposer

        fobs.register(TensorDecomposer)
        engine = fl_ctx.get_engine()
        told = os.environ.get(RESULT_VARIABLE)  # without it: where FLARE packs results for download
        kept = Path(engine.get_workspace().get_result_root(fl_ctx.get_job_id()))
        self._folder = Path(told) if told else kept / "result"
        engine.register_aux_message_handler(SIGN_TOPIC, self._heard)
        engine.register_app_command(SITE_TOPIC, self._about_site)

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """An administrator's show_stats: answer with the result so far, which `fedspleen follow` prints."""
        super().handle_event(event_type, fl_ctx)
        if event_type == InfoCollector.EVENT_TYPE_GET_STATS and self._folder:
            collector = fl_ctx.get_prop(InfoCollector.CTX_KEY_STATS_COLLECTOR)
            path = self._folder / "result.json"
            # from the file: it is whole at any time, the object may just be changing
            if collector and path.exists():
                under_way = self._channel.under_way().model_dump_json() if self._channel else ""
                collector.set_info(PROGRESS, {"result": path.read_text(), "under_way": under_way})

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Run the whole job; a failure is written down before FLARE is told."""
        from server.flare_channel import FlareChannel
        from server.freed_memory import give_back_freed_memory
        from server.workflow import Workflow

        give_back_freed_memory()
        assert self._folder is not None
        self._channel = FlareChannel(self, fl_ctx, abort_signal)
        workflow = self._workflow = Workflow(Job.model_validate(self.job), self._folder, self._channel)
        try:
            workflow.run([client.name for client in fl_ctx.get_engine().get_clients()])
        except UserError as error:
            workflow.record.failed(str(error))
            self.system_panic(str(error), fl_ctx)
        except Exception as error:
            workflow.record.failed(f"unexpected error at the server: {type(error).__name__}; its log has the details")
            raise
        finally:
            self._workflow = None
            (self._folder / UNDER_WAY).unlink(missing_ok=True)

    def _heard(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        """A site's sign of life."""
        peer = fl_ctx.get_peer_context()
        if peer and self._channel:
            self._channel.heard(str(peer.get_identity_name()), int(request.get("steps", 0)))
            self._tell()
        return make_reply(ReturnCode.OK)

    def _tell(self) -> None:
        """Write down what the sites are doing, once a second at most; the simulator's terminal shows it."""
        now = time.monotonic()
        if self._folder and self._channel and self._workflow and now - self._told >= _TELL_SECONDS:
            self._told = now
            write_under_way(self._folder / UNDER_WAY, self._channel.under_way())

    def _about_site(self, topic: str, data: dict[str, Any], fl_ctx: FLContext) -> dict[str, Any]:
        """The job runner asks whether a site that has the job no more shall get it again, and tells when it has."""
        workflow, site = self._workflow, str(data["site"])
        if workflow and data["started"]:
            fl_ctx.get_engine().sync_clients_from_main_process()  # it has another token now
            workflow.site_started(site)
        return {"wanted": bool(workflow and workflow.wants(site))}

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Nothing to release."""

    def process_result_of_unknown_task(self, *args: Any, **kwargs: Any) -> None:
        """An answer that comes after its round is over does not count."""
        self.logger.warning("a site answered after its round was over; the answer is left out")
