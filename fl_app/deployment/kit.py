"""A kit that is about to be used: verified, and what of it the deployment needs to know."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from fl_app.errors import KitError, UsageError
from provisioning.manifest import MANIFEST, SETTINGS_FILE, read_manifest
from provisioning.verify import KitReport, verify_kit

WARN_DAYS = 30


@dataclass(frozen=True)
class Kit:
    """A participant's kit.

    Attributes:
        folder: where it is unpacked.
        report: what verification said.
        host: of the server; at the server, the address it listens on.
        port: likewise.
        scheme: http or grpc, both inside TLS.
        fedspleen: the version that made it.
    """

    folder: Path
    report: KitReport
    host: str
    port: int
    scheme: str
    fedspleen: str

    @property
    def name(self) -> str:
        """Whose kit it is."""
        return self.report.participant

    @property
    def warning(self) -> str | None:
        """That the certificate ends soon, and who renews it."""
        left = self.report.days_left
        if left is None or left >= WARN_DAYS:
            return None
        return f"the certificate expires in {left} days - ask the lead of {self.report.consortium} to renew it"


def open_kit(folder: Path, kind: str) -> Kit:
    """A kit that may be used.

    Raises:
        UsageError: this is no folder of such a kit.
        KitError: all that is wrong with it.
    """
    kit = look_at_kit(folder, kind)
    if kit.report.problems:
        raise KitError("\n".join((f"{folder}: not used:", *kit.report.problems)))
    return kit


def look_at_kit(folder: Path, kind: str) -> Kit:
    """A kit with whatever is wrong with it.

    Raises:
        UsageError: this is no folder of such a kit.
        KitError: it is too damaged to say anything about it.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: not the folder of a kit - `fedspleen kit unpack` makes one of a kit's archive")
    report = verify_kit(folder)
    if report.kind != kind:
        raise UsageError(f"{folder}: the kit of {_a(report.kind)} ({report.participant}); this needs {_a(kind)}'s kit")
    try:
        version = read_manifest((folder / MANIFEST).read_bytes()).fedspleen
        settings = json.loads((folder / "startup" / SETTINGS_FILE[report.kind]).read_text())
        service = settings["admin"] if kind == "administrator" else settings["servers"][0]["service"]
        address = f"{service['host']}:{service['port']}" if kind == "administrator" else service["target"]
        host, _, port = address.rpartition(":")
        if kind == "server" and host != "127.0.0.1":
            host = "0.0.0.0"  # FLARE takes the name in a server's kit for all interfaces
        return Kit(folder.absolute(), report, host, int(port), str(service["scheme"]), version)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        problems = "; ".join(report.problems) or str(error)
        raise KitError(f"{folder}: not used: {problems}") from None


def _a(kind: str) -> str:
    return f"an {kind}" if kind == "administrator" else f"a {kind}"
