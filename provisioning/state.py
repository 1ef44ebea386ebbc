"""What the lead keeps and shows nobody: root certificate and key, everybody's certificates, the signing key."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from fl_app.errors import ProvisioningError
from provisioning import signing
from provisioning.certificates import Certificate, read_certificate
from provisioning.kit_file import write_file

_FLARE, _SIGNING, _RECORD = "cert.json", "signing.pem", "consortium.json"
_ROOT = ("root_cert", "root_pri_key")


@dataclass(frozen=True)
class State:
    """The state of a consortium.

    Attributes:
        flare: the text of FLARE's ``cert.json``.
        signing_key: of the manifests.
        name: of the consortium.
        participants: who is in the consortium's file now.
    """

    flare: str
    signing_key: Ed25519PrivateKey
    name: str
    participants: tuple[str, ...]

    @property
    def root(self) -> Certificate:
        """The consortium's own certificate."""
        return read_certificate(self._content()["root_cert"].encode())

    @property
    def fingerprint(self) -> str:
        """What the lead reads out over the telephone."""
        root = self.root.source.public_bytes(Encoding.DER)
        return signing.fingerprint(root, signing.public_part(self.signing_key))

    @property
    def certificates(self) -> dict[str, Certificate]:
        """Everybody's certificate, also of those who are no longer in the consortium's file."""
        entries = {name: entry for name, entry in self._content().items() if name not in _ROOT}
        return {name: read_certificate(entry["cert"].encode()) for name, entry in sorted(entries.items())}

    @property
    def held_keys(self) -> frozenset[str]:
        """Whose private key is in the state, because it was made here."""
        content = self._content()
        return frozenset(name for name in content if name not in _ROOT and "pri_key" in content[name])

    def without(self, names: set[str]) -> str:
        """FLARE's state with these certificates forgotten, so that the next provisioning makes new ones."""
        return json.dumps({name: value for name, value in self._content().items() if name not in names})

    def _content(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.flare)
        return content


def read_state(folder: Path) -> State | None:
    """The state in a folder; None if there is none yet.

    Raises:
        ProvisioningError: it is incomplete or damaged, and a backup is needed.
    """
    if not (folder / _RECORD).exists() and not (folder.parent / "kits").exists():
        return None  # at most a first provisioning that was ended before it made a kit
    try:
        record = json.loads((folder / _RECORD).read_text())
        key = signing.load_signing_key((folder / _SIGNING).read_bytes())
        state = State((folder / _FLARE).read_text(), key, str(record["name"]), tuple(map(str, record["participants"])))
        state.root, state.certificates  # noqa: B018 - read once, to see that they can be
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProvisioningError(f"{folder}: damaged ({error!r:.200}): put back your backup of this folder") from None
    return state


def write_state(folder: Path, name: str, flare: str, signing_key: bytes | None, participants: tuple[str, ...]) -> State:
    """Write the state, private to its owner; ``signing_key`` as PEM, None: the one that is there stays."""
    if signing_key is not None:
        write_file(folder / _SIGNING, signing_key, 0o600)
    # the record last: a state without it is not taken for a whole one
    write_file(folder / _FLARE, flare.encode(), 0o600)
    record = {"name": name, "participants": list(participants)}
    write_file(folder / _RECORD, (json.dumps(record, indent=1) + "\n").encode(), 0o600)
    state = read_state(folder)
    assert state is not None
    return state


def read_own_keys(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    """The approved public keys (PEM) of those who made their key themselves; who is missing is waited for."""
    paths = {name: folder / "requests" / f"{name}.pem" for name in names}
    return {name: path.read_bytes() for name, path in paths.items() if path.exists()}


def write_own_key(folder: Path, name: str, public_key: bytes) -> None:
    """Keep an approved public key."""
    write_file(folder / "requests" / f"{name}.pem", public_key, 0o600)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The state folder, private to its owner, and for one process at a time."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        with (folder / ".lock").open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ProvisioningError(f"{folder}: another provisioning of this consortium is running") from None
            yield
    except OSError as error:
        raise ProvisioningError(f"{folder}: cannot be written: {error.strerror}") from None
