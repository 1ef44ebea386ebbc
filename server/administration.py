"""What an administrator asks of a running server; thin over FLARE's own session."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from nvflare.apis.fl_exception import FLCommunicationError
from nvflare.fuel.flare_api.api_spec import (
    AuthenticationError,
    AuthorizationError,
    InternalError,
    InvalidJobDefinition,
    JobNotDone,
    JobNotFound,
    JobNotRunning,
    NoConnection,
    SessionClosed,
)
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from fl_app.errors import FederationError
from fl_app.messages import PROGRESS
from fl_app.result import Result
from fl_app.under_way import UnderWay, parse_under_way

_PATIENCE_SECONDS = 10.0
_RESTART_SECONDS = 60.0  # how long a server may be away while a job is followed


@dataclass(frozen=True)
class JobState:
    """A job as FLARE knows it.

    Attributes:
        job_id: FLARE's identifier.
        name: the job's name.
        status: FLARE's word: SUBMITTED, RUNNING, FINISHED:COMPLETED, ...
        submitted: when, ISO 8601.
        submitter: who.
        note: why it does not run, or did not: what FLARE's scheduler, the server or the sites said.
    """

    job_id: str
    name: str
    status: str
    submitted: str
    submitter: str
    note: str = ""

    @property
    def ended(self) -> bool:
        """Whether it is over, well or not."""
        return not self.status.startswith(("SUBMITTED", "APPROVED", "DISPATCHED", "RUNNING"))

    @property
    def completed(self) -> bool:
        """Whether it is over and ended well."""
        return self.status == "FINISHED:COMPLETED"


class Administration:
    """A connection to the server with an administrator's rights; use `administration` to open one.

    Args:
        open_session: logs in.
    """

    def __init__(self, open_session: Callable[[], Session]) -> None:
        self._open_session = open_session
        self._session = open_session()

    def submit(self, folder: Path) -> str:
        """Hand in an exported job; its identifier."""
        return str(self._session.submit_job(str(folder)))

    def sites(self) -> list[str]:
        """Names of the sites that are connected."""
        return sorted(client.name for client in self._ask(lambda session: session.get_system_info()).client_info)

    def state(self, job_id: str) -> JobState:
        """How a job stands."""
        return _state(self._ask(lambda session: session.get_job_meta(job_id)))

    def jobs(self) -> list[JobState]:
        """All jobs that the server remembers, the latest first."""
        return [_state(meta) for meta in self._session.list_jobs(detailed=True, reverse=True)]

    def progress(self, job_id: str) -> tuple[Result, UnderWay] | None:
        """The growing result of a running job and what its sites do; none while it has none, or has just ended."""
        try:
            told = self._ask(lambda session: session.show_stats(job_id, "server")).get("server")
        except (JobNotFound, JobNotRunning, InternalError):
            # between two states: the job's process is starting or has just ended
            return None
        try:
            told = told[PROGRESS]
            return Result.model_validate_json(told["result"]), parse_under_way(str(told.get("under_way", "")))
        except (KeyError, TypeError, ValueError):
            return None

    def close(self) -> None:
        """Log out."""
        with redirect_stdout(StringIO()), suppress(NoConnection, SessionClosed, InternalError, RuntimeError):
            self._session.close()  # there may be no server any more

    def _ask(self, question: Callable[[Session], Any]) -> Any:
        """The answer, also from a server that is started anew in the meantime: then log in again."""
        end = time.monotonic() + _RESTART_SECONDS
        while True:
            try:
                return question(self._session)
            except (NoConnection, SessionClosed):
                if time.monotonic() > end:
                    raise
                time.sleep(1)
                self.close()
                with suppress(NoConnection):
                    self._session = self._open_session()

    def abort(self, job_id: str) -> None:
        """End a job early."""
        self._session.abort_job(job_id)

    def download(self, job_id: str, folder: Path) -> Path:
        """What a finished job left at the server, below a folder; the job's own folder."""
        located = self._session.download_job_result(job_id, str(folder))
        if not located or not Path(located).is_dir():
            raise FederationError(f"job {job_id}: the server has no result of it")
        return Path(located)


@contextmanager
def administration(kit: Path, user: str, where: str) -> Iterator[Administration]:
    """A session with the server; every failure of it is one sentence.

    Args:
        kit: the folder of an administrator's kit.
        user: whose kit it is.
        where: the server's address, for messages.

    Raises:
        FederationError: the server cannot be reached, or does not do what it is asked.
    """

    def open_session() -> Session:
        with redirect_stdout(StringIO()):  # FLARE's "Connecting ..."
            try:
                return new_secure_session(user, str(kit), timeout=_PATIENCE_SECONDS, auto_login_max_tries=1)
            except FLCommunicationError as error:  # the line broke in the middle of it
                raise NoConnection(str(error)) from None

    admin = None
    logging.getLogger().addHandler(logging.NullHandler())  # what matters comes as an exception
    try:
        admin = Administration(open_session)
        yield admin
    except (NoConnection, SessionClosed):
        raise FederationError(
            f"the server at {where} does not answer: is it running, and do host and port in the kit lead to it?"
        ) from None
    except AuthenticationError as error:
        raise FederationError(f"the server at {where} does not accept {user}: {error}") from None
    except AuthorizationError:
        raise FederationError(f"{user} may not do this: it takes the kit of a lead") from None
    except JobNotFound as error:
        raise FederationError(f"there is no such job ({error}) - `fedspleen status` lists them") from None
    except JobNotDone:
        raise FederationError("the job has not ended yet - `fedspleen follow` waits for it") from None
    except JobNotRunning:
        raise FederationError("the job is not running") from None
    except InvalidJobDefinition as error:
        raise FederationError(f"the server refuses the job: {error}") from None
    except InternalError as error:
        raise FederationError(f"the server refused: {error}") from None
    except RuntimeError as error:
        if "runtime error encountered" not in str(error):  # FLARE's words for a command whose answer was lost
            raise
        raise FederationError(f"the connection to the server at {where} broke: try again") from None
    finally:
        if admin:
            admin.close()


def _state(meta: dict[str, Any]) -> JobState:
    # what did not go well when the job was given to server and sites, else what the scheduler said last
    refused = [str(each) for each in meta.get("job_deploy_detail") or [] if not str(each).endswith(": OK")]
    history = meta.get("schedule_history") or []
    last = str(history[-1]).partition(": ")[2] if isinstance(history, list) and history else ""  # after the time
    return JobState(
        str(meta.get("job_id", "")),
        str(meta.get("name") or meta.get("job_name", "")),
        str(meta.get("status", "unknown")),
        str(meta.get("submit_time_iso") or meta.get("submit_time", "")),
        str(meta.get("submitter_name", "")),
        "; ".join(refused) or ("" if last == "scheduled" else last),
    )
