"""A kit as one file: a ZIP archive that is the same to the byte whenever it holds the same files; or the same, sealed.

Nothing in the archive is compressed and all times are the same, so that an archive can be checked by writing it again:
whatever a single changed byte means to a ZIP reader, the bytes differ. A sealed archive is a line of JSON with the
parameters, then AES-256-GCM of the archive under a key that scrypt derives from a passphrase.
"""

from __future__ import annotations

import io
import json
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fl_app.errors import KitError
from provisioning.flare import file_mode

LARGEST_KIT = 8 * 2**20  # bytes; kits have about 30 kB
_MOST_FILES = 200
_SEALED = b'{"format":"fedspleen sealed kit 1"'
_LONGEST_HEADER = 500
_SCRYPT_N = 2**17  # 128 MiB of memory and about half a second for each guess
# what `zipfile` raises for archives that are none
_ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, OverflowError),
    *(RuntimeError, NotImplementedError, LookupError, AttributeError),
)


def pack(files: Mapping[str, bytes]) -> bytes:
    """The archive that holds these files, by path."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.create_system = 3
            entry.external_attr = (stat.S_IFREG | file_mode(name)) << 16
            archive.writestr(entry, files[name])
    return stream.getvalue()


def unpack(data: bytes) -> tuple[dict[str, bytes], list[str]]:
    """The files of an archive, and what is wrong with the archive itself.

    Raises:
        KitError: this is no ZIP archive, or only a part of one.
    """
    if not data.startswith(b"PK"):
        raise KitError("not a kit: a kit is a .kit.zip or .kit.locked file that `fedspleen provision` made")
    files: dict[str, bytes] = {}
    problems: list[str] = []
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if len(entries) > _MOST_FILES or sum(entry.file_size for entry in entries) > LARGEST_KIT:
                raise KitError("not a kit: it holds more than any kit does")
            for entry in entries:
                name = entry.filename
                problem = unsafe_name(name)
                kind = stat.S_IFMT(entry.external_attr >> 16)
                if kind not in (0, stat.S_IFREG):
                    problem = "a link or a special file, which no kit holds"
                if name in files:
                    problem = "there twice"
                if problem:
                    problems.append(f"{shown(name)}: {problem}")
                    continue
                try:
                    files[name] = archive.read(entry)
                except _ZIP_ERRORS:
                    problems.append(f"{shown(name)}: damaged, its bytes do not fit their checksum")
                    files[name] = b""
    except _ZIP_ERRORS as error:
        raise KitError(f"cut off or damaged: this archive cannot be read to its end ({error})") from None
    if not problems and pack(files) != data:
        problems.append("the archive was changed outside its files, or packed again by another program")
    return files, problems


def unsafe_name(name: str) -> str:
    """Why a file of this name must not be written; empty if it may."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        return "a path that leads out of the kit"
    if not name.isprintable() or str(path) != name or len(name) > 200 or len(path.parts) > 4:
        return "a name that no kit holds"
    return ""


def shown(name: str) -> str:
    """A file's name as it is printed, always in one line."""
    return (name if name.isprintable() and name else ascii(name))[:120]


class _Header(BaseModel):
    """How a sealed archive was sealed. What can be asked of a reader is limited: 256 MiB, about a second."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal["fedspleen sealed kit 1"]
    kdf: Literal["scrypt"]
    n: Literal[16384, 32768, 65536, 131072, 262144]
    r: Literal[8]
    p: Literal[1]
    cipher: Literal["AES-256-GCM"]
    salt: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{24}$")]
    size: Annotated[int, Field(ge=0, le=LARGEST_KIT)]

    def key(self, passphrase: bytes) -> AESGCM:
        return AESGCM(Scrypt(bytes.fromhex(self.salt), 32, self.n, self.r, self.p).derive(passphrase))


def seal(archive: bytes, passphrase: bytes) -> bytes:
    """The archive, encrypted; the header is authenticated along with it."""
    header = _Header(
        format="fedspleen sealed kit 1",
        kdf="scrypt",
        n=_SCRYPT_N,  # type: ignore[arg-type]
        r=8,
        p=1,
        cipher="AES-256-GCM",
        salt=os.urandom(16).hex(),
        nonce=os.urandom(12).hex(),
        size=len(archive),
    )
    line = json.dumps(header.model_dump(), separators=(",", ":")).encode() + b"\n"
    return line + header.key(passphrase).encrypt(bytes.fromhex(header.nonce), archive, line)


def is_sealed(data: bytes) -> bool:
    """Whether this is a sealed archive."""
    return data.startswith(_SEALED)


def unseal(data: bytes, passphrase: bytes) -> bytes:
    """The archive in a sealed one.

    Raises:
        KitError: a wrong passphrase, or a changed or shortened file.
    """
    line, _, sealed = data.partition(b"\n")
    try:
        header = _Header.model_validate_json(line[:_LONGEST_HEADER])
    except ValidationError:
        raise KitError("damaged: its first line is not the header of a sealed kit") from None
    missing = header.size + 16 - len(sealed)
    if missing > 0:
        raise KitError(f"cut off: {missing} bytes are missing at its end")
    try:
        return header.key(passphrase).decrypt(bytes.fromhex(header.nonce), sealed, line + b"\n")
    except InvalidTag:
        raise KitError("wrong passphrase, or the file was changed on its way") from None
