"""Lock a site out of a running server, with FLARE's own administrator command.

FLARE has no list of revoked certificates. It refuses a site *by name*, at once, and remembers it in the server's
folder (``disabled_clients.json``) across restarts. An administrator cannot be locked out that way.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from nvflare.fuel.flare_api.api_spec import AuthenticationError, AuthorizationError, NoConnection
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from fl_app.errors import KitError, UsageError
from provisioning.consortium import is_site_name
from provisioning.verify import verify_kit

_PATIENCE_S = 10.0


def lock_out(site: str, admin_kit: Path) -> None:
    """Disconnect a site, and refuse it from now on.

    Args:
        site: its name.
        admin_kit: the folder of a lead's kit.

    Raises:
        KitError: the kit is no lead's, or the server cannot be reached or refuses.
    """
    _command(site, admin_kit, lambda session: session.disable_client(site))


def let_in(site: str, admin_kit: Path) -> None:
    """Undo `lock_out`."""
    _command(site, admin_kit, lambda session: session.enable_client(site))


def _command(site: str, admin_kit: Path, command: Callable[[Session], object]) -> None:
    if not is_site_name(site):
        raise UsageError(f"{site[:80]!r}: not a site's name")
    if not admin_kit.is_dir():
        raise UsageError(f"--admin {admin_kit}: not the folder of a kit; `fedspleen kit unpack` makes one")
    report = verify_kit(admin_kit)
    if report.problems:
        raise KitError("\n".join((f"{admin_kit}: not used:", *report.problems)))
    if report.kind != "administrator":
        raise KitError(f"{admin_kit}: a {report.kind}'s kit; the kit of a lead is needed")
    unreachable = KitError(f"the server at {report.server} does not answer: it must run for this, and be reached")
    try:
        host, _, port = report.server.rpartition(":")
        socket.create_connection((host, int(port)), _PATIENCE_S).close()
        with redirect_stdout(StringIO()):  # FLARE's "Connecting ..."
            session = new_secure_session(
                report.participant, str(admin_kit), timeout=_PATIENCE_S, auto_login_max_tries=1
            )
    except (OSError, NoConnection):
        raise unreachable from None
    except AuthenticationError as error:
        raise KitError(f"the server at {report.server} does not accept {report.participant}: {error}") from None
    try:
        command(session)
    except AuthorizationError:
        raise KitError(f"{report.participant} is a {report.role}, and only a lead may do this") from None
    finally:
        session.close()
