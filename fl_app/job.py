"""Put server and sites together into a FLARE job, and run it in FLARE's simulator.

``python -m fl_app.job WORKSPACE JOB_FILE SITE [SITE ...]`` is what `fl_app.simulation` starts as a process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from nvflare.job_config.api import FedJob
from nvflare.private.fed.app.simulator.simulator_runner import SimulatorRunner

from clients.executor import SiteExecutor
from fl_app.config import Job
from fl_app.config_file import load_job
from fl_app.processes import end_with_parent
from provisioning.components import CLASS_ALLOW_LIST
from server.federation import Federation

# FLARE's default of 2 s is most of a short round; a request is a few hundred bytes
_TASK_REQUEST_SECONDS = 0.05
# tensors travel in pieces that are asked for one after the other; FLARE's 2 MiB make a dozen round trips of a model
_TENSOR_PIECE_BYTES = 16 * 2**20
# a piece that does not move for so long was lost with its line, and is asked for again; FLARE waits ten minutes
_TENSOR_STALL_SECONDS = 30.0


def build_flare_job(job: Job, sites: int) -> FedJob:
    """The FLARE job: one workflow at the server, one executor at each site, no code in it."""
    flare_job = FedJob(name=job.name, min_clients=job.federation.min_sites or sites)
    # installed at every site: what travels is configuration
    flare_job.set_app_packages(["fl_app", "server", "clients"])
    described = job.model_dump(mode="json")
    flare_job.to_server(Federation(job=described))
    pieces = {
        "tensor_download_chunk_size": _TENSOR_PIECE_BYTES,
        "tensor_streaming_per_request_timeout": _TENSOR_STALL_SECONDS,
    }
    flare_job.to_server({"server": {"task_request_interval": _TASK_REQUEST_SECONDS}, **pieces})
    flare_job.to_clients(SiteExecutor(job=described), tasks=["*"])
    flare_job.to_clients({"default_task_fetch_interval": _TASK_REQUEST_SECONDS, **pieces})
    return flare_job


def run_simulator(workspace: Path, job: Job, sites: list[str]) -> int:
    """Run the job in FLARE's simulator with a process per site; the simulator's exit code."""
    local = workspace / "run" / "local"
    local.mkdir(parents=True, exist_ok=True)
    policy = {"format_version": 2, "class_allow_list": CLASS_ALLOW_LIST}
    (local / "resources.json").write_text(json.dumps(policy, indent=2))
    build_flare_job(job, len(sites)).export_job(str(workspace / "job"))
    # in this process, which has imported what the server needs; FedJob.simulator_run would import it all again
    runner = SimulatorRunner(
        job_folder=str(workspace / "job" / job.name),
        workspace=str(workspace / "run"),
        clients=",".join(sites),
        threads=len(sites),
    )
    return int(runner.run() or 0)


if __name__ == "__main__":
    end_with_parent()
    sys.exit(run_simulator(Path(sys.argv[1]), load_job(Path(sys.argv[2])), sys.argv[3:]))
