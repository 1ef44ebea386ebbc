"""Jobs that outlive the end of their server, of a site or of a site's process: what FLARE's job runner lacks.

FLARE 2.9 leaves a job whose server was killed in the state RUNNING for ever, does not give a running job to a site
that comes back, and ends everybody's job when one site's process ends badly. Everything here is on the server's side;
a site sees an ordinary deployment.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nvflare.apis.client import Client
from nvflare.apis.fl_constant import RunProcessKey, ServerCommandKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import Job, JobMetaKey, RunStatus
from nvflare.apis.job_scheduler_spec import DispatchInfo
from nvflare.apis.workspace import Workspace
from nvflare.private.admin_defs import Message, MsgHeader, ReturnCode
from nvflare.private.defs import ClientStatusKey, TrainingTopic
from nvflare.private.fed.server.job_runner import JobRunner

from fl_app.messages import SITE_TOPIC

_LOOK_SECONDS = 1.0
_OTHERS_SECONDS = 15.0  # sites find a server that was started again within their heartbeat's 10 s
_REPLY_SECONDS = 3.0
_LAST_WORD_SECONDS = 10.0  # for what a site says after a job's end; FLARE would wait 15 minutes for a site that is gone
_TAG = "scheduled"  # FLARE's file beside a job that its scheduler need not look at again
_RESULTS_VARIABLE = "NVFL_RESULT_ROOT"  # FLARE's name for a folder of results outside a job's own, which it deletes
_logger = logging.getLogger(__name__)


@contextmanager
def _others_go_on(trouble: str) -> Iterator[None]:
    try:
        yield
    except Exception:
        _logger.warning(trouble, exc_info=True)


class LastingJobRunner(JobRunner):
    """FLARE's job runner, and that jobs go on: after the server's start, and at sites that come back."""

    def run(self, fl_ctx: FLContext) -> None:
        """Run jobs until the server stops."""
        self.client_outcome_wait_timeout = _LAST_WORD_SECONDS
        self._engine: Any = fl_ctx.get_engine()
        self._jobs: Any = self._engine.job_def_manager
        self._enough_since: dict[str, float] = {}
        self._reached: dict[str, str] = {}
        self._keep_results(self._engine.get_workspace(), Path(self.workspace_root).absolute() / "results")
        self._waiting, self._waiting_lock = self._unfinished(), threading.Lock()
        threading.Thread(target=self._look_after_jobs, daemon=True).start()
        super().run(fl_ctx)

    def stop_all_runs(self, fl_ctx: FLContext) -> None:
        """The server stops: its jobs keep their state, and go on when it is started again."""
        self.ask_to_stop = True  # before anything else: or FLARE would write down that the jobs have ended
        for run in list(self._engine.run_processes.values()):
            run[RunProcessKey.JOB_HANDLE].terminate()

    def stop_run(self, job_id: str, fl_ctx: FLContext) -> str:
        """An administrator ends a job; it may be one that waits to go on: what it has reached can be downloaded."""
        with self._waiting_lock:
            if job_id not in self._waiting:
                return str(super().stop_run(job_id, fl_ctx))
            self._waiting.remove(job_id)
            self._save_workspace(fl_ctx, job_id=job_id)
            self._jobs.set_status(job_id, RunStatus.FINISHED_ABORTED, fl_ctx)
            return ""

    def fail_run(self, job_id: str, process_return_code: int, fl_ctx: FLContext) -> str:
        """A site's process of the job has ended badly. The others go on without it; FLARE would end the job."""
        self.log_warning(fl_ctx, f"a site's process of job {job_id} has ended with {process_return_code}")
        return ""

    def _start_run(self, job_id: str, job: Job, client_sites: Any, fl_ctx: FLContext) -> None:
        super()._start_run(job_id, job, client_sites, fl_ctx)
        self._jobs.refresh_meta(job, [JobMetaKey.JOB_CLIENTS.value], fl_ctx)  # who to wait for after a restart

    @staticmethod
    def _keep_results(workspace: Workspace, folder: Path) -> None:
        """Have jobs write where a second deployment deletes nothing; FLARE packs it when a job has ended."""
        os.environ[_RESULTS_VARIABLE] = str(folder)  # for the jobs' processes
        workspace.result_root = workspace.log_root = workspace.audit_root = str(folder)

    def _save_workspace(self, fl_ctx: FLContext, finished_state: Any = None, job_id: str | None = None) -> None:
        """A job is over: pack it; but if its process was ended from outside, let it go on.

        Raises:
            RuntimeError: it goes on; FLARE, which would try again, finds no such job then.
        """
        if finished_state and job_id and self._was_killed(job_id):
            with self.lock:
                self.running_jobs.pop(job_id, None)
                self._finished_job_states.pop(job_id, None)
                self._pending_client_outcomes.pop(job_id, None)
            self._engine.remove_exception_process(job_id)
            self.scheduler.remove_scheduled_job(job_id)
            self._waiting.append(job_id)
            raise RuntimeError("its process at the server was killed, it goes on from its last checkpoint")
        super()._save_workspace(fl_ctx, finished_state, job_id)

    def _was_killed(self, job_id: str) -> bool:
        """Whether a job's process ended without a word, and had come further than the last time this happened."""
        run, job = self._engine.exception_run_processes.get(job_id), self.running_jobs.get(job_id)
        if not run or run.get(RunProcessKey.PROCESS_FINISHED) or not job or job.run_aborted:
            return False
        folder = Path(self._engine.get_workspace().get_result_root(job_id)) / "result" / "checkpoints"
        reached = max((path.name for path in folder.glob("*.safetensors")), default="")
        before = self._reached.get(job_id)
        self._reached[job_id] = reached
        return before is None or reached > before

    def _unfinished(self) -> list[str]:
        """Jobs that ran, or were about to, when the server ended."""
        with self._engine.new_context() as context:
            jobs = self._get_all_running_jobs(self._jobs, context)
            for job in jobs:
                self._jobs.set_status(job.job_id, RunStatus.RUNNING, context)
        return [job.job_id for job in jobs]

    def _look_after_jobs(self) -> None:
        while not self.ask_to_stop:
            time.sleep(_LOOK_SECONDS)
            for job_id in list(self._waiting):
                with _others_go_on(f"job {job_id} could not be taken up"):
                    self._take_up(job_id)
            for job_id, job in list(self.running_jobs.items()):
                for client in self._without(job_id):
                    with _others_go_on(f"job {job_id} could not be given to {client.name} again"):
                        self._bring_back(job, client)

    def _take_up(self, job_id: str) -> None:
        """Give an unfinished job to the scheduler once its sites are back and have ended what they still ran."""
        with self._engine.new_context() as context:
            job = self._jobs.get_job(job_id, context)
            if job is None:
                self._waiting.remove(job_id)
            elif not self._sites_are_back(job) or self._still_run(job_id, context):
                return
            with self._waiting_lock:
                if job and job_id in self._waiting:
                    self._set_back(job_id, context)
                    self._waiting.remove(job_id)

    def _sites_are_back(self, job: Job) -> bool:
        here = {client.name for client in self._engine.get_clients()}
        had = {str(each.get("name")) for each in job.meta.get(JobMetaKey.JOB_CLIENTS.value) or []}
        if len(here) < max(1, job.min_sites or 0):
            self._enough_since.pop(job.job_id, None)
            return False
        since = self._enough_since.setdefault(job.job_id, time.monotonic())
        return had <= here or time.monotonic() - since > _OTHERS_SECONDS

    def _still_run(self, job_id: str, context: FLContext) -> bool:
        """Whether some site still has a process of the job, which is then told to end."""
        found = [client.name for client in self._engine.get_clients() if self._runs_at(client, job_id)]
        if found:
            self.abort_client_run(job_id, found, context)
        return bool(found)

    def _set_back(self, job_id: str, context: FLContext) -> None:
        store = self._jobs._get_job_store(context)
        Path(store._object_path(self._jobs.job_uri(job_id)), _TAG).unlink(missing_ok=True)
        fresh = {JobMetaKey.SCHEDULE_COUNT.value: 0, JobMetaKey.LAST_SCHEDULE_TIME.value: 0.0}
        self._jobs.update_meta(job_id, fresh, context)
        self._jobs.set_status(job_id, RunStatus.SUBMITTED, context)
        _logger.info(f"job {job_id} goes on")

    def _without(self, job_id: str) -> Iterator[Client]:
        run = self._engine.run_processes.get(job_id)
        for client in self._engine.get_clients() if run else []:
            has_token = client.token in run[RunProcessKey.PARTICIPANTS]
            if not has_token or not self.is_client_outcome_pending(job_id, client.name):
                yield client

    def _bring_back(self, job: Job, client: Client) -> None:
        if not self._ask_job(job.job_id, client.name, started=False):
            return
        with self._engine.new_context() as context:
            if self._runs_at(client, job.job_id):
                self.abort_client_run(job.job_id, [client.name], context)
                return
            app = next(name for name, sites in job.get_deployment().items() if self._is_meant(client.name, sites))
            message = self._make_deploy_message(job, job.get_application(app, context), app, context)
            reply = self._ask_site(client, message, self._engine.server.admin_server.timeout)
            if reply is None or reply.get_header(MsgHeader.RETURN_CODE, ReturnCode.OK) != ReturnCode.OK:
                raise RuntimeError(f"the site did not take it: {reply.body if reply else 'no answer'}")
            run = self._engine.run_processes[job.job_id]
            others = {
                token: each for token, each in run[RunProcessKey.PARTICIPANTS].items() if each.name != client.name
            }
            run[RunProcessKey.PARTICIPANTS] = {**others, client.token: client}
            with self.lock:
                self._pending_client_outcomes[job.job_id].add(client.name)
            self._ask_job(job.job_id, client.name, started=True)
            resources = self._engine.check_client_resources(job, {client.name: {}}, context)
            enough, token = resources.get(client.name, (False, ""))
            if enough:
                self._engine.start_client_job(job, {client.name: DispatchInfo(app, {}, token)}, context)
        _logger.info(f"{client.name} has got job {job.job_id} again")

    def _ask_job(self, job_id: str, site: str, started: bool) -> bool:
        """Whether the job still wants a site; tells it when the site gets the job."""
        question = {"site": site, "started": started}
        reply = self._engine.send_app_command(job_id, SITE_TOPIC, question, _REPLY_SECONDS)
        return bool(reply and (reply.get(ServerCommandKey.DATA) or {}).get("wanted"))

    def _runs_at(self, client: Client, job_id: str) -> bool:
        """Whether a site has a process of the job; it counts as yes while the site does not answer."""
        reply = self._ask_site(client, Message(topic=TrainingTopic.CHECK_STATUS, body=""), _REPLY_SECONDS)
        if reply is None:
            return True
        jobs = json.loads(reply.body).get(ClientStatusKey.RUNNING_JOBS, [])
        return any(job[ClientStatusKey.JOB_ID] == job_id for job in jobs)

    def _ask_site(self, client: Client, message: Message, seconds: float) -> Any:
        replies = self._engine.server.admin_server.send_requests_and_get_reply_dict({client.token: message}, seconds)
        return replies.get(client.token)

    @staticmethod
    def _is_meant(site: str, sites: list[str]) -> bool:
        return any(each.upper() == "@ALL" or each == site for each in sites)
