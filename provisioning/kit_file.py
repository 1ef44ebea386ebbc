"""Read a kit, as an archive, a sealed archive or a folder, and write one as a folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fl_app.errors import KitError, UsageError
from provisioning import archive
from provisioning.flare import file_mode
from provisioning.manifest import MANIFEST, SIGNATURE

ARCHIVE_SUFFIX, SEALED_SUFFIX = ".kit.zip", ".kit.locked"
# FLARE reads these in place of the kit's own: the site's right, and worth a word
_OWN_SETTINGS = ("resources.json", "authorization.json", "privacy.json", "log_config.json")
_SHORTEST_PASSPHRASE = 12


@dataclass(frozen=True)
class KitFiles:
    """What was read.

    Attributes:
        files: content of each file, by path.
        problems: what is wrong with the container, one sentence each.
        notes: what a site added of its own, as it may.
    """

    files: Mapping[str, bytes]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_kit(path: Path, passphrase: bytes | None = None) -> KitFiles:
    """The files of a kit.

    Raises:
        KitError: this is no kit, or not a whole one, or the passphrase is wrong.
        UsageError: it is sealed, and there is no passphrase.
    """
    try:
        if path.is_dir():
            return _read_folder(path)
        with path.open("rb") as stream:
            data = stream.read(2 * archive.LARGEST_KIT + 1)
    except FileNotFoundError:
        raise KitError(f"{path}: there is no such kit") from None
    except OSError as error:
        raise KitError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > 2 * archive.LARGEST_KIT:
        raise KitError(f"{path}: not a kit: far too large")
    try:
        if archive.is_sealed(data):
            if passphrase is None:
                raise UsageError(f"{path}: sealed with a passphrase: give it with --passphrase-file")
            data = archive.unseal(data, passphrase)
        return KitFiles(*_parts(*archive.unpack(data)))
    except KitError as error:
        raise KitError(f"{path}: {error}") from None


def read_passphrase(path: Path | None) -> bytes | None:
    """The passphrase in a file, without the line's end; None for no file."""
    if path is None:
        return None
    try:
        passphrase = path.read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise UsageError(f"--passphrase-file {path}: cannot be read: {error.strerror}") from None
    if len(passphrase) < _SHORTEST_PASSPHRASE:
        raise UsageError(f"--passphrase-file {path}: a passphrase has {_SHORTEST_PASSPHRASE} characters or more")
    return passphrase


def write_file(path: Path, content: bytes, mode: int) -> None:
    """Write a file under a temporary name, and rename it: a kill at any instant leaves the old one or the new one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a kit's files into its folder; files there that are no part of the kit stay. The manifest comes last."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in sorted(files, key=lambda name: (name in (MANIFEST, SIGNATURE), name)):
        write_file(folder / name, files[name], file_mode(name))
    (folder / "transfer").mkdir(mode=0o700, exist_ok=True)  # FLARE's place for what an administrator sends


def _parts(files: dict[str, bytes], problems: list[str]) -> tuple[dict[str, bytes], tuple[str, ...]]:
    return files, tuple(problems)


def _read_folder(folder: Path) -> KitFiles:
    """A kit's folder: the places that FLARE reads code and settings from; logs, jobs and the like are beside them."""
    files: dict[str, bytes] = {}
    problems: list[str] = []
    notes: list[str] = []
    for path in [folder / MANIFEST, folder / SIGNATURE, folder / "readme.txt", *_below(folder, "startup", "local")]:
        name = path.relative_to(folder).as_posix()
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        if stat.S_ISDIR(status.st_mode):
            continue
        if not stat.S_ISREG(status.st_mode):
            problems.append(f"{archive.shown(name)}: a link or a special file, which no kit holds")
        elif name in {f"local/{own}" for own in _OWN_SETTINGS}:
            notes.append(f"{name}: this site's own settings, in place of the kit's {name}.default")
        elif status.st_size > archive.LARGEST_KIT or len(files) > 200:
            raise KitError(f"{folder}: not a kit: it holds more than any kit does")
        else:
            files[name] = path.read_bytes()
            if name.endswith(".key") and status.st_mode & 0o077:
                notes.append(f"{name}: others on this machine can read it; chmod 600 it")
    return KitFiles(files, tuple(problems), tuple(notes))


def _below(folder: Path, *names: str) -> list[Path]:
    found: list[Path] = []
    for name in names:
        top = folder / name
        if top.is_symlink():
            found.append(top)
            continue
        for parent, folders, files in os.walk(top):
            found += [Path(parent) / each for each in sorted(folders + files)]
            if len(found) > 1000:
                raise KitError(f"{folder}: not a kit: it holds more than any kit does")
    return found
