"""Keys stay home: a site makes its key and a request, the lead approves, the kit comes without a key.

The request is an ordinary certificate signing request (PKCS #10) with the site's name and organisation, and nothing
secret. Who may have which role is the consortium's file's business, not the request's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from nvflare.lighter.utils import generate_keys, serialize_pri_key, x509_name

from fl_app.errors import KitError, ProvisioningError, UsageError
from provisioning import signing
from provisioning.certificates import public_pem
from provisioning.consortium import Consortium, is_organisation, is_participant
from provisioning.kit_file import write_file
from provisioning.provision import STATE, Provisioned, provision
from provisioning.state import locked, write_own_key
from provisioning.verify import KitReport, unpack_kit

KEY_FILE, REQUEST_SUFFIX = "client.key", ".request"
_LARGEST_REQUEST = 20_000


@dataclass(frozen=True)
class Request:
    """Somebody's wish for a certificate.

    Attributes:
        name: of the site, or the administrator's e-mail address.
        organisation: of the participant.
        public_key: as PEM.
        fingerprint: of the whole request: both sides compare it by telephone.
    """

    name: str
    organisation: str
    public_key: bytes
    fingerprint: str


def make_request(name: str, organisation: str, folder: Path) -> tuple[Path, Request]:
    """Make a key, which stays in the folder, and the request to send; the request's path, and what is in it."""
    if not is_participant(name):
        raise UsageError(f"{name[:80]!r}: neither a site's name nor an e-mail address")
    if not is_organisation(organisation):
        raise UsageError(f"--organisation {organisation[:80]!r}: letters, digits and '_', at most 64")
    if (folder / KEY_FILE).exists():
        raise UsageError(f"{folder / KEY_FILE}: is there already; name another folder for a new key")
    private_key, _ = generate_keys()
    subject = x509_name(name, organisation)
    signed = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(private_key, hashes.SHA256())
    content = signed.public_bytes(Encoding.PEM)
    path = folder / f"{name}{REQUEST_SUFFIX}"
    try:
        write_file(folder / KEY_FILE, serialize_pri_key(private_key), 0o600)
        write_file(path, content, 0o644)
    except OSError as error:
        raise KitError(f"{folder}: cannot be written: {error.strerror}") from None
    return path, _parse(content)


def read_request(path: Path) -> Request:
    """The request in a file.

    Raises:
        KitError: it is none, or damaged.
    """
    try:
        with path.open("rb") as stream:
            return _parse(stream.read(_LARGEST_REQUEST))
    except OSError as error:
        raise KitError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, LookupError, AttributeError, UnsupportedAlgorithm):
        raise KitError(f"{path}: no request that `fedspleen kit request` made, or a damaged one") from None


def approve_request(
    path: Path,
    consortium: Consortium,
    out: Path,
    fingerprint: str,
    passphrase: bytes | None = None,
    now: datetime | None = None,
) -> Provisioned:
    """Accept a request, and make the kit, which holds no key.

    Args:
        path: the request.
        consortium: who takes part; the requester with ``own_key: true``.
        out: the consortium's folder.
        fingerprint: of the request, as its maker said it.
        passphrase: as for `provision`.
        now: as for `provision`.

    Raises:
        ProvisioningError: the request is not from who it should be.
    """
    request = read_request(path)
    if signing.parse_fingerprint(fingerprint) != request.fingerprint:
        raise ProvisioningError(
            f"{path}: another request: its fingerprint is {request.fingerprint}; it may have been exchanged on its way"
        )
    if request.name not in consortium.own_keys:
        raise ProvisioningError(
            f"{path}: from {request.name}, who is not in the consortium's file with own_key: true - if it belongs "
            f"there, put {{name: {request.name}, organisation: {request.organisation}, own_key: true}} among its sites"
        )
    expected = _organisations(consortium)[request.name]
    if request.organisation != expected:
        raise ProvisioningError(f"{path}: from {request.name} of {request.organisation}; the file says {expected}")
    with locked(out / STATE):
        write_own_key(out / STATE, request.name, request.public_key)
    return provision(consortium, out, passphrase, now=now)


def assemble_kit(
    path: Path, key_folder: Path, folder: Path, fingerprint: str | None = None, passphrase: bytes | None = None
) -> KitReport:
    """Verify a kit without a key, and write it into a folder together with the key that was made at the site."""
    try:
        key = (key_folder / KEY_FILE).read_bytes()
    except OSError as error:
        raise UsageError(f"{key_folder / KEY_FILE}: cannot be read: {error.strerror}") from None
    return unpack_kit(path, folder, fingerprint, passphrase, own_key=key)


def _parse(content: bytes) -> Request:
    request = x509.load_pem_x509_csr(content)
    name, organisation = (part.value for part in request.subject)  # exactly these two
    if not request.is_signature_valid or request.subject != x509_name(str(name), str(organisation)):
        raise ValueError("not signed by its own key, or with another subject")
    key = request.public_key()
    if not isinstance(key, RSAPublicKey) or not 2048 <= key.key_size <= 8192:
        raise ValueError("not the kind of key that FLARE's certificates have")
    digest = hashlib.sha256(b"fedspleen request\0" + request.public_bytes(Encoding.DER)).hexdigest()
    fingerprint = signing.parse_fingerprint(digest[:32])
    return Request(str(name), str(organisation), public_pem(key), fingerprint)


def _organisations(consortium: Consortium) -> Mapping[str, str]:
    people = {each.email: each.organisation for each in consortium.administrators}
    return {**people, **{site.name: site.organisation for site in consortium.sites}}
