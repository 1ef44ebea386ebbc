"""FLARE's client as this process; SIGTERM makes it take leave of the server."""

from __future__ import annotations

import logging
import signal
import threading
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.mpm import MainProcessMonitor
from nvflare.private.defs import CellChannel, CellChannelTopic
from nvflare.private.fed.app.client import client_train

from fl_app.messages import LOCKED_OUT

_ABORT_SECONDS = 2.0
_logger = logging.getLogger(__name__)


def run_client(workspace: Path, site: str, organisation: str, ready: Callable[[], None]) -> int:
    """Run until an administrator, or SIGTERM, ends it, or the server says that it is locked out; the exit code.

    Args:
        workspace: a site's kit, unpacked; logs and jobs are written there.
        site: the site's name.
        organisation: whose site it is.
        ready: called once the server has registered the site.
    """
    create = client_train.create_admin_agent
    locked_out = threading.Event()

    def leave(engine: Any) -> None:
        jobs = list(engine.get_all_job_ids())
        aborts = [threading.Thread(target=engine.abort_app, args=(job,), daemon=True) for job in jobs]
        for abort in aborts:
            abort.start()
        for abort in aborts:
            abort.join(_ABORT_SECONDS)  # it returns when the job's process has ended by itself
        engine.shutdown()

    def create_admin_agent(processors: Any, client: Any, engine: Any) -> Any:
        agent = create(processors, client, engine)
        # in a thread of its own: what it needs may be held by what the signal interrupted
        signal.signal(
            signal.SIGTERM, lambda number, frame: threading.Thread(target=leave, args=(engine,), daemon=True).start()
        )

        def look_at(reply: Message) -> None:
            # FLARE would ask again every 5 s, for ever
            error = str(reply.get_header(MessageHeaderKey.ERROR, ""))
            if error.endswith(LOCKED_OUT) and not locked_out.is_set():
                locked_out.set()
                _logger.error(f"Client '{site}' {LOCKED_OUT}")
                threading.Thread(target=leave, args=(engine,), daemon=True).start()

        client.cell.core_cell.add_incoming_reply_filter(CellChannel.SERVER_MAIN, CellChannelTopic.HEART_BEAT, look_at)
        ready()
        return agent

    client_train.create_admin_agent = create_admin_agent
    settings = ["secure_train=true", f"uid={site}", f"org={organisation}", "config_folder=config"]
    arguments = Namespace(workspace=str(workspace), fed_client="fed_client.json", set=settings, local_rank=0)
    code = MainProcessMonitor.run(
        main_func=client_train.main, run_dir=str(workspace), shutdown_grace_time=1, args=arguments
    )
    return 1 if locked_out.is_set() else int(code or 0)
