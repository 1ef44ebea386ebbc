"""A FLARE server or client as a process of its own, which ends with whoever started it.

``python -m fl_app.deployment.process server|site WORKSPACE NAME ORGANISATION READY_FILE`` is what
`fl_app.deployment.participant` starts.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fl_app.processes import end_descendants, end_with_parent


def main(kind: str, workspace: Path, name: str, organisation: str, ready_file: Path) -> int:
    """Run FLARE until it ends; its exit code."""
    if kind == "server":
        from server.process import run_server

        return run_server(workspace, organisation, ready_file.touch)
    from clients.process import run_client

    return run_client(workspace, name, organisation, ready_file.touch)


if __name__ == "__main__":
    end_with_parent()
    kind, workspace, name, organisation, ready_file = sys.argv[1:]
    code = main(kind, Path(workspace), name, organisation, Path(ready_file))
    end_descendants()  # a job's process that FLARE has left behind
    os._exit(code)  # FLARE's own threads would wait for each other
