"""What is turned away at the server's door, each with a sentence: jobs for their submitter, connections in the log.

A site's own FLARE refuses such jobs as well, by the site's own list; there only the site's log would tell why.
"""

from __future__ import annotations

import asyncio.sslproto
import json
import logging
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from nvflare.apis.app_validation import AppValidationKey
from nvflare.apis.fl_constant import JobConstants
from nvflare.apis.fl_exception import UnsafeComponentError
from nvflare.apis.job_def import JobMetaKey
from nvflare.apis.workspace import Workspace
from nvflare.app_common.widgets.component_path_authorizer import CLASS_ALLOW_LIST, ComponentPathAuthorizer
from nvflare.private.fed.server.job_meta_validator import CONFIG_FOLDER, JobMetaValidator

_CONFIGS = (JobConstants.SERVER_JOB_CONFIG, JobConstants.CLIENT_JOB_CONFIG)
_LOGGER = logging.getLogger("server.gate")


class JobGate(JobMetaValidator):
    """FLARE's check of a submitted job, and that it holds no code and names listed components only."""

    def __init__(self, workspace: Path) -> None:
        self._workspace = Workspace(root_dir=str(workspace), config_folder="config")
        self._authorizer = ComponentPathAuthorizer()

    def _validate_app(self, job_name: str, meta: dict[str, Any], zip_file: ZipFile) -> None:
        super()._validate_app(job_name, meta, zip_file)
        if meta.get(AppValidationKey.BYOC):
            raise ValueError(
                "it brings code of its own (a folder named custom): server and sites run the fedspleen that is "
                "installed there and nothing else"
            )
        others = set()
        for app in meta[JobMetaKey.DEPLOY_MAP.value]:
            for file in _CONFIGS:
                config = self._load_config(zip_file, f"{job_name}/{app}{CONFIG_FOLDER}", file)
                others |= {path for path in _component_paths(config) if not self._is_listed(path)}
        if others:
            raise ValueError(
                f"it names {', '.join(sorted(others))}, not on the list of components that may run "
                f"({CLASS_ALLOW_LIST} in local/resources.json): {', '.join(self._listed())}"
            )

    def _is_listed(self, path: str) -> bool:
        try:
            self._authorizer.authorize_component_config({"path": path}, workspace=self._workspace)
        except UnsafeComponentError:
            return False
        return True

    def _listed(self) -> list[str]:
        resources = json.loads(Path(self._workspace.get_resources_file_path()).read_text())
        return [str(each) for each in resources.get(CLASS_ALLOW_LIST, [])]


def log_refused_connections() -> None:
    """Let the log say who failed the TLS handshake, and why: asyncio closes such connections without a word."""
    protocol: Any = asyncio.sslproto.SSLProtocol
    fatal_error = protocol._fatal_error

    def told(self: Any, error: BaseException, message: str = "Fatal error on transport") -> None:
        if isinstance(error, ssl.SSLError) and self._server_side and message.startswith("SSL handshake failed"):
            address = self._transport.get_extra_info("peername") if self._transport else None
            where = f"{address[0]}:{address[1]}" if address else "an unknown address"
            _LOGGER.warning(f"a connection from {where} is refused: {why_refused(error)}")
        fatal_error(self, error, message)

    protocol._fatal_error = told


def why_refused(error: ssl.SSLError) -> str:
    """What is wrong with who connects, in words.

    Args:
        error: of the server's side of the handshake.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not one of this consortium, or not valid now ({error.verify_message})"
    if error.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "it presents no certificate; sites and administrators have one in their kits"
    if error.reason in ("HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL"):
        return f"it does not speak TLS ({error.reason}) - if it is a proxy that ends TLS, let it pass TLS through"
    return f"the TLS handshake failed ({error.reason})"


def _component_paths(config: Any) -> Iterator[str]:
    """The classes that a job's configuration names, wherever in it."""
    if isinstance(config, dict):
        yield from (config[key] for key in ("path", "class_path") if isinstance(config.get(key), str))
    if isinstance(config, (dict, list)):
        for value in config.values() if isinstance(config, dict) else config:
            yield from _component_paths(value)
