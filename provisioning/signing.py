"""The consortium's signing key, and the fingerprint that the lead reads out over the telephone."""

from __future__ import annotations

import hashlib
import re

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fl_app.errors import UsageError

_PURPOSE = b"fedspleen kit manifest\0"  # so that a signature means nothing anywhere else


def new_signing_key() -> bytes:
    """A new Ed25519 key, as PEM."""
    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_signing_key(pem: bytes) -> Ed25519PrivateKey:
    """The key in a PEM text; ValueError if there is none."""
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("not an Ed25519 key")
    return key


def public_part(key: Ed25519PrivateKey) -> bytes:
    """The 32 bytes that go into every kit."""
    return key.public_key().public_bytes_raw()


def sign(key: Ed25519PrivateKey, manifest: bytes) -> bytes:
    """The signature of a manifest, as the text of its file."""
    return key.sign(_PURPOSE + manifest).hex().encode() + b"\n"


def is_signed_by(public_key: bytes, manifest: bytes, signature_file: bytes) -> bool:
    """Whether the signature file, to the byte, is this key's signature of the manifest."""
    try:
        signature = bytes.fromhex(signature_file.decode("ascii"))
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, _PURPOSE + manifest)
    except (ValueError, InvalidSignature):
        return False
    return signature_file == signature.hex().encode() + b"\n"


def fingerprint(root_certificate: bytes, public_key: bytes) -> str:
    """Of the root certificate (DER) and the signing key together: 128 bits of SHA-256, in eight groups of four.

    Half of the hash is enough here: a forger would need another pair with this very fingerprint, 2^128 attempts.
    """
    digest = hashlib.sha256(b"fedspleen consortium\0" + hashlib.sha256(root_certificate).digest() + public_key)
    return _grouped(digest.hexdigest()[:32])


def parse_fingerprint(text: str) -> str:
    """A fingerprint as somebody typed it, in the form in which they are compared."""
    digits = re.sub(r"[\s:-]", "", text).lower()
    if not re.fullmatch(r"[0-9a-f]{32}", digits):
        raise UsageError(f"--fingerprint takes 32 digits 0-9 and a-f in eight groups of four, not {text[:80]!r}")
    return _grouped(digits)


def _grouped(digits: str) -> str:
    return " ".join(digits[start : start + 4] for start in range(0, len(digits), 4))
