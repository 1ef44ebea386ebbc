"""Who is in a consortium, and whose certificate expires when."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fl_app.errors import ProvisioningError
from provisioning.certificates import WARN_DAYS
from provisioning.consortium import FLARE_ROLES, SERVER_NAME
from provisioning.state import read_state

ROOT = "(root certificate)"


@dataclass(frozen=True)
class Listed:
    """A certificate that the consortium made.

    Attributes:
        name: whose it is.
        organisation: of the participant.
        role: server, site, or an administrator's role.
        valid_until: in UTC.
        removed: whether its owner is no longer in the consortium's file.
    """

    name: str
    organisation: str
    role: str
    valid_until: datetime
    removed: bool

    def days_left(self, now: datetime) -> int:
        """Whole days until it expires; negative afterwards."""
        return (self.valid_until - now).days

    def remark(self, now: datetime) -> str:
        """What to do about it; empty: nothing."""
        if self.removed:
            return "no longer in the file" + (": revoke it" if self.valid_until > now and self.role == "site" else "")
        left = self.days_left(now)
        if left >= WARN_DAYS:
            return ""
        remedy = "a new consortium is needed" if self.name == ROOT else f"--renew {self.name}"
        return f"{'expired' if left < 0 else 'expires soon'}: {remedy}"


@dataclass(frozen=True)
class Listing:
    """A consortium's certificates, the ones that expire first at the top."""

    consortium: str
    fingerprint: str
    certificates: tuple[Listed, ...]


def list_kits(folder: Path) -> Listing:
    """What a consortium's folder, or the state folder in it, says.

    Raises:
        ProvisioningError: there is no state, or it is damaged.
    """
    inner = folder / "state"
    state = read_state(inner if inner.is_dir() else folder)
    if state is None:
        raise ProvisioningError(f"{folder}: no consortium was provisioned here")
    roles = {flare: ours for ours, flare in FLARE_ROLES.items()}
    listed = [Listed(ROOT, "", "", state.root.valid_until, removed=False)]
    for name, each in state.certificates.items():
        role = roles.get(each.role, each.role) or ("server" if name == SERVER_NAME else "site")
        listed.append(Listed(name, each.organisation, role, each.valid_until, name not in state.participants))
    return Listing(state.name, state.fingerprint, tuple(sorted(listed, key=lambda each: each.valid_until)))
