"""FLARE's own provisioning, used as a library: from a consortium to the files of everybody's kit.

FLARE gives participants' certificates 360 days whatever is asked, allows leads to send code, and keeps jobs in a folder
that all users of a machine share. What we change of its output is in this file and nowhere else.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nvflare.lighter
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from nvflare.lighter.entity import Project
from nvflare.lighter.impl.cert import CertBuilder
from nvflare.lighter.impl.static_file import StaticFileBuilder
from nvflare.lighter.impl.workspace import WorkspaceBuilder
from nvflare.lighter.provisioner import Provisioner
from nvflare.lighter.utils import load_yaml, serialize_cert, sh_replace, update_storage_locations

from fl_app.errors import ProvisioningError
from provisioning.components import CLASS_ALLOW_LIST
from provisioning.consortium import FLARE_ROLES, SERVER_NAME, Consortium

# certificates begin a little in the past, so that a site whose clock is late is not locked out on the first day
_CLOCK_TOLERANCE = timedelta(hours=1)

# nobody sends code, and nobody but a site's own administrators reads its files
_NOBODY = {"byoc": "none", "server-predeployed-flwr": "none"}
_OWN_SITE = {"view": "any", "operate": "o:site", "shell_commands": "o:site"}
AUTHORIZATION: dict[str, Any] = {
    "format_version": "1.0",
    "permissions": {
        FLARE_ROLES["lead"]: {
            **dict.fromkeys(("submit_job", "clone_job", "manage_job", "download_job", "view", "operate"), "any"),
            "shell_commands": "o:site",
            **_NOBODY,
        },
        FLARE_ROLES["site-admin"]: {
            **dict.fromkeys(("submit_job", "clone_job", "manage_job", "download_job"), "none"),
            **_OWN_SITE,
            **_NOBODY,
        },
        FLARE_ROLES["member"]: {"view": "any", **_NOBODY},
    },
}


@dataclass(frozen=True)
class Built:
    """What FLARE made.

    Attributes:
        kits: by participant, each file of the kit by its path.
        state: the text of FLARE's ``cert.json``: root certificate, root key, everybody's certificate and key.
    """

    kits: dict[str, dict[str, bytes]]
    state: str


class _Certificates(CertBuilder):
    """FLARE's certificates, with the consortium's lifetimes."""

    def __init__(self, root_days: int, kit_days: int, now: datetime, own_keys: Mapping[str, bytes]) -> None:
        super().__init__(root_valid_days=root_days)
        self.kit_days = kit_days
        self.start = now - _CLOCK_TOLERANCE
        self.own_keys = own_keys

    def _build_write_cert_pair(self, participant: Any, base_name: str, ctx: Any) -> None:
        state, name = self.persistent_state, participant.subject
        if name not in self.own_keys:
            super()._build_write_cert_pair(participant, base_name, ctx)
            return
        if not state.has_subject(name):
            public_key = load_pem_public_key(self.own_keys[name])
            subject = name, participant.org, self.issuer, self.pri_key, public_key
            certificate = self._generate_cert(*subject, role=participant.get_prop("role"))
            state.add_subject_cert(name, serialize_cert(certificate).decode("ascii"))
        folder = Path(ctx.get_kit_dir(participant))
        (folder / f"{base_name}.crt").write_text(state.get_subject_cert(name))
        (folder / "rootCA.pem").write_bytes(self.serialized_cert)

    def _generate_cert(self, *arguments: Any, ca: bool = False, **options: Any) -> Any:
        end = self.start + timedelta(days=self.root_valid_days if ca else self.kit_days)
        if not ca:
            end = min(end, self.root_cert.not_valid_after_utc)
        times = {"not_valid_before": self.start, "not_valid_after": end}
        return CertBuilder._generate_cert(*arguments, ca=ca, **{**options, **times})


class _Silent:
    """A logger that keeps what went wrong."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def debug(self, message: str) -> None:
        """Ignored."""

    info = warning = debug

    def error(self, message: str) -> None:
        """Kept."""
        self.errors.append(message)


def build_kits(
    consortium: Consortium, state: str | None, now: datetime, own_keys: Mapping[str, bytes] | None = None
) -> Built:
    """Everybody's kit, from FLARE's provisioning.

    Args:
        consortium: who takes part.
        state: FLARE's ``cert.json`` of an earlier call: root and certificates in it are used again. None: the first.
        now: the time from which new certificates are valid.
        own_keys: public keys (PEM) of those who made their key themselves; their kits hold no key.
    """
    certificates = consortium.certificates
    builders = [
        WorkspaceBuilder(),
        StaticFileBuilder(config_folder="config", scheme=consortium.server.transport),
        _Certificates(certificates.root_days, certificates.kit_days, now, own_keys or {}),
    ]
    with TemporaryDirectory(prefix="fedspleen-") as folder, _private_files():
        workspace = Path(folder) / consortium.name
        state_file = workspace / "state" / "cert.json"
        state_file.parent.mkdir(parents=True)
        if state is not None:
            state_file.write_text(state)
        logger = _Silent()
        context = Provisioner(folder, builders).provision(_project(consortium), logger=logger)
        if logger.errors or not context.get_result_location():
            raise ProvisioningError(f"FLARE could not make the kits: {'; '.join(logger.errors) or 'no reason given'}")
        made = Path(context.get_result_location())
        kits = {path.name: _finished(path, consortium) for path in sorted(made.iterdir()) if path.is_dir()}
        return Built(kits, state_file.read_text())


def start_scripts(kind: str, name: str, organisation: str) -> dict[str, bytes]:
    """The start scripts that the FLARE installed here puts into such a kit, and the only code that a kit may hold."""
    sections = _templates()
    if kind == "administrator":
        return {"startup/fl_admin.sh": sections["fl_admin_sh"].encode()}
    server = kind == "server"
    values = {
        "type": "server" if server else "client",
        "app_name": "server_train" if server else "client_train",
        "cln_uid": "" if server else f"uid={name}",
        "org_name": organisation,
        "config_folder": "config",
    }
    return {
        "startup/start.sh": sections["start_svr_sh" if server else "start_cln_sh"].encode(),
        "startup/stop_fl.sh": sections["stop_fl_sh"].encode(),
        "startup/sub_start.sh": sh_replace(sections["sub_start_sh"], values).encode(),
    }


@cache
def _templates() -> dict[str, str]:
    sections: dict[str, str] = load_yaml(Path(nvflare.lighter.__file__).parent / "templates" / "master_template.yml")
    return sections


def place_server_storage(kit: Path) -> None:
    """Keep a server's jobs and snapshots inside its kit's folder; FLARE's default is a folder that all users share.

    Writes ``local/resources.json``, which FLARE reads in place of ``resources.json.default``. To be called before
    each start, since the folder may have moved.
    """
    update_storage_locations(str(kit / "local"), str(kit.resolve()))


def file_mode(path: str) -> int:
    """Permissions of a kit's file: keys for their owner alone, start scripts executable."""
    return {".key": 0o600, ".sh": 0o755}.get(Path(path).suffix, 0o644)


def _project(consortium: Consortium) -> Project:
    server = consortium.server
    dial = {"host": server.hosts[0], "port": server.port}
    # a site's error log can name its files: it is not streamed to the server
    project = Project(consortium.name, description="", props={"allow_log_streaming": False})
    project.set_server(
        SERVER_NAME,
        server.organisation,
        {
            "fed_learn_port": server.opened_port,
            "admin_port": server.opened_port,
            "default_host": server.hosts[0],
            "host_names": list(server.hosts),
        },
    )
    for site in consortium.sites:
        project.add_client(site.name, site.organisation, {"connect_to": dial})
    for each in consortium.administrators:
        project.add_admin(each.email, each.organisation, {"connect_to": dial, "role": FLARE_ROLES[each.role]})
    return project


def _finished(folder: Path, consortium: Consortium) -> dict[str, bytes]:
    """A kit's files by path, with our rules in place of FLARE's defaults."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    files.pop("startup/system_info.ipynb", None)  # a notebook is code
    files.pop("local/privacy.json.sample", None)
    resources, server = "local/resources.json.default", "startup/fed_server.json"
    if "startup/fed_admin.json" in files:
        return files
    files["local/authorization.json.default"] = _as_json(AUTHORIZATION)
    changed = json.loads(files[resources])
    changed["class_allow_list"] = list(CLASS_ALLOW_LIST)
    changed["class_list_enforcement_mode"] = "enforce"
    if server in files:
        described = json.loads(files[server])
        if consortium.server.bind == "loopback" or set(consortium.server.hosts) <= {"localhost", "127.0.0.1"}:
            # FLARE listens on all interfaces, or on this one
            described["servers"][0]["service"]["target"] = f"127.0.0.1:{consortium.server.opened_port}"
        files[server] = _as_json(described)
    files[resources] = _as_json(changed)
    return files


def _as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


@contextmanager
def _private_files() -> Iterator[None]:
    before = os.umask(stat.S_IRWXG | stat.S_IRWXO)
    try:
        yield
    finally:
        os.umask(before)
