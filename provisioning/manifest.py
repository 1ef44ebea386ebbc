"""A kit's manifest: whose kit it is, and the SHA-256 of every file; signed by the consortium."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import metadata
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MANIFEST, SIGNATURE = "kit.json", "kit.sig"
Kind = Literal["server", "site", "administrator"]
# FLARE's file that says where the server is, for each kind of kit; and the certificate's name
SETTINGS_FILE = {"server": "fed_server.json", "site": "fed_client.json", "administrator": "fed_admin.json"}
CERTIFICATE = {"server": "server", "site": "client", "administrator": "client"}


class Digest(BaseModel):
    """What a file must be."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]

    @classmethod
    def of(cls, content: bytes) -> Digest:
        """Of this content."""
        return cls(sha256=hashlib.sha256(content).hexdigest(), size=len(content))


class Manifest(BaseModel):
    """Everything about a kit that its certificate does not say."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal["fedspleen kit 1"] = "fedspleen kit 1"
    consortium: str
    participant: str
    kind: Kind
    signing_key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    fedspleen: str = Field(default_factory=lambda: metadata.version("fedspleen"))
    nvflare: str = Field(default_factory=lambda: metadata.version("nvflare"))
    files: dict[str, Digest]

    def as_bytes(self) -> bytes:
        """The text of the manifest's file."""
        return (json.dumps(self.model_dump(), indent=1, sort_keys=True) + "\n").encode()


def read_manifest(content: bytes) -> Manifest:
    """The manifest in a file; ValueError with one sentence if there is none that this version can read."""
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        if any(item["loc"] == ("format",) for item in error.errors()):
            raise ValueError("made by a version of fedspleen that writes another format of kits") from None
        raise ValueError("damaged: it is no manifest of a kit") from None


def digests(files: Mapping[str, bytes]) -> dict[str, Digest]:
    """What each of these files must be from now on."""
    return {name: Digest.of(content) for name, content in sorted(files.items())}
