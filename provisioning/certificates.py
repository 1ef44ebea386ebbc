"""What certificates say: who, of which organisation, in which role, from when until when."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

WARN_DAYS = 30


@dataclass(frozen=True)
class Certificate:
    """A certificate, read.

    Attributes:
        name: the identity (common name).
        organisation: empty if it has none.
        role: FLARE's role of an administrator; empty for servers and sites.
        hosts: the names it is valid for.
        valid_from: in UTC.
        valid_until: in UTC.
        source: the certificate itself.
    """

    name: str
    organisation: str
    role: str
    hosts: frozenset[str]
    valid_from: datetime
    valid_until: datetime
    source: x509.Certificate

    def days_left(self, now: datetime) -> int:
        """Whole days until it expires; negative afterwards."""
        return (self.valid_until - now).days

    def is_issued_by(self, root: Certificate) -> bool:
        """Whether the root certificate's key signed this one."""
        try:
            self.source.verify_directly_issued_by(root.source)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            return False
        return True

    @property
    def public_key(self) -> bytes:
        """Its public key, as PEM."""
        return public_pem(self.source.public_key())

    def fits(self, private_key: bytes) -> bool:
        """Whether this PEM private key belongs to the certificate."""
        try:
            key = serialization.load_pem_private_key(private_key, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            return False
        return public_pem(key.public_key()) == self.public_key


def public_pem(key: Any) -> bytes:
    """A public key as PEM."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(key.public_bytes(serialization.Encoding.PEM, form))


def read_certificate(pem: bytes) -> Certificate:
    """The certificate in a PEM text; ValueError if there is none."""
    try:
        return _read(x509.load_pem_x509_certificate(pem))
    except (
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
        x509.InvalidVersion,
        UnsupportedAlgorithm,
    ) as error:
        raise ValueError(str(error)) from None


def _read(source: x509.Certificate) -> Certificate:
    source.public_key()  # fails for keys that nothing here can read
    try:
        names = source.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        hosts = []
    else:
        hosts = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    return Certificate(
        _part(source, NameOID.COMMON_NAME),
        _part(source, NameOID.ORGANIZATION_NAME),
        _part(source, NameOID.UNSTRUCTURED_NAME),
        frozenset(hosts),
        source.not_valid_before_utc,
        source.not_valid_after_utc,
        source,
    )


def _part(source: x509.Certificate, oid: x509.ObjectIdentifier) -> str:
    found = source.subject.get_attributes_for_oid(oid)
    return str(found[0].value) if found else ""
