"""From a consortium to everybody's kit, as often as needed: what has not changed stays the same to the byte."""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from fl_app.errors import KitError, ProvisioningError, UsageError
from provisioning import archive, signing
from provisioning.certificates import WARN_DAYS, Certificate
from provisioning.consortium import FLARE_ROLES, SERVER_NAME, Consortium
from provisioning.flare import build_kits, file_mode
from provisioning.kit_file import ARCHIVE_SUFFIX, SEALED_SUFFIX, read_kit, write_file, write_folder
from provisioning.manifest import MANIFEST, SIGNATURE, Kind, Manifest, digests, read_manifest
from provisioning.state import State, locked, read_own_keys, read_state, write_state

STATE, KITS = "state", "kits"


@dataclass(frozen=True)
class Provisioned:
    """What a provisioning did.

    Attributes:
        fingerprint: what the lead reads out over the telephone.
        archives: each participant's file to send.
        new: participants whose kit was made for the first time.
        changed: participants whose kit is another one than before: they need it.
        kept: participants whose kit is the same as before, to the byte.
        removed: no longer in the consortium's file, with a certificate that is still valid, and until when.
        waiting: who makes their key themselves and whose request was not approved yet; they have no kit.
        notes: worth knowing.
    """

    fingerprint: str
    archives: Mapping[str, Path]
    new: tuple[str, ...]
    changed: tuple[str, ...]
    kept: tuple[str, ...]
    removed: Mapping[str, datetime]
    waiting: tuple[str, ...]
    notes: tuple[str, ...]


def provision(
    consortium: Consortium,
    out: Path,
    passphrase: bytes | None = None,
    renew: Sequence[str] = (),
    now: datetime | None = None,
) -> Provisioned:
    """Make or update everybody's kit.

    Args:
        consortium: who takes part.
        out: its folder: ``state/`` (keys; stays with the lead), ``kits/NAME/``, and each kit as a file.
        passphrase: seals the kits' files; none: they are plain archives.
        renew: participants who get a new key and certificate although theirs is still valid.
        now: the time from which certificates are valid; none: by this machine's clock.
    """
    now = now or datetime.now(timezone.utc)
    with locked(out / STATE):
        old = read_state(out / STATE)
        own_keys = read_own_keys(out / STATE, consortium.own_keys)
        waiting = consortium.own_keys - set(own_keys)
        consortium = consortium.without(waiting)
        kinds = _kinds(consortium)
        unknown = sorted(set(renew) - set(kinds))
        if unknown:
            raise UsageError(f"--renew {unknown[0]}: nobody of this name; there are {', '.join(kinds)}")
        if old:
            _check_root(consortium, old, out, now)
        again = {*renew, *_outdated(consortium, old, own_keys, now)} if old else set(renew)
        built = build_kits(consortium, old.without(again) if old else None, now, own_keys)
        key = None if old else signing.new_signing_key()
        # first the state, then kits: a kill in between loses no key that somebody has a certificate of
        state = write_state(out / STATE, consortium.name, built.state, key, tuple(kinds))
        did: dict[str, list[str]] = {"new": [], "changed": [], "kept": []}
        archives = {}
        for name, kind in kinds.items():
            files = _signed(state, name, kind, built.kits[name], out / KITS / name)
            archives[name], outcome = _place(out, name, files, passphrase)
            did[outcome].append(name)
    removed = {
        name: certificate.valid_until
        for name, certificate in state.certificates.items()
        if name not in kinds and name not in waiting and certificate.valid_until > now
    }
    return Provisioned(
        state.fingerprint,
        archives,
        tuple(did["new"]),
        tuple(did["changed"]),
        tuple(did["kept"]),
        removed,
        tuple(sorted(waiting)),
        tuple(_notes(consortium, state, kinds, now)),
    )


def _kinds(consortium: Consortium) -> dict[str, Kind]:
    kinds: dict[str, Kind] = {SERVER_NAME: "server"}
    kinds.update({site.name: "site" for site in consortium.sites})
    kinds.update({each.email: "administrator" for each in consortium.administrators})
    return kinds


def _check_root(consortium: Consortium, old: State, out: Path, now: datetime) -> None:
    """What the root certificate, once made, no longer allows."""
    if old.name != consortium.name:
        raise ProvisioningError(f"{out}: holds the kits of {old.name}, not of {consortium.name}: name another --out")
    root = old.root
    if root.valid_until <= now:
        raise ProvisioningError(
            f"{out}: the root certificate expired on {root.valid_until:%Y-%m-%d}; all kits ended with it. Provision "
            "into a new folder, and send new kits to everybody"
        )
    days = root.valid_until - root.valid_from
    if days != timedelta(days=consortium.certificates.root_days):
        raise ProvisioningError(
            f"certificates.root_days: {consortium.certificates.root_days} - the root certificate was made for "
            f"{days.days} days; it cannot be changed without new kits for everybody: leave {days.days}, or provision "
            "into a new folder"
        )


def _outdated(consortium: Consortium, old: State, own_keys: Mapping[str, bytes], now: datetime) -> set[str]:
    """Whose certificate says something else than the consortium's file does by now, or has expired."""
    server = consortium.server
    wanted: dict[str, tuple[str, str]] = {SERVER_NAME: (server.organisation, "")}
    wanted.update({site.name: (site.organisation, "") for site in consortium.sites})
    wanted.update({each.email: (each.organisation, FLARE_ROLES[each.role]) for each in consortium.administrators})

    def fits(name: str, certificate: Certificate) -> bool:
        same = wanted[name] == (certificate.organisation, certificate.role)
        hosts = name != SERVER_NAME or certificate.hosts == set(server.hosts)
        key = certificate.public_key == own_keys[name] if name in own_keys else name in old.held_keys
        return same and hosts and key and certificate.valid_until > now

    return {name for name, each in old.certificates.items() if name in wanted and not fits(name, each)}


def _signed(state: State, name: str, kind: Kind, files: Mapping[str, bytes], folder: Path) -> dict[str, bytes]:
    """The kit with its manifest; the manifest that is there stays if it is still right."""
    public = signing.public_part(state.signing_key)
    manifest = Manifest(
        consortium=state.name, participant=name, kind=kind, signing_key=public.hex(), files=digests(files)
    )
    content = manifest.as_bytes()
    try:
        there, signature = (folder / MANIFEST).read_bytes(), (folder / SIGNATURE).read_bytes()
        older = read_manifest(there)
        versions = {"fedspleen": older.fedspleen, "nvflare": older.nvflare}
        if manifest.model_copy(update=versions) == older and signing.is_signed_by(public, there, signature):
            content = there
    except (OSError, ValueError):
        pass  # there is no earlier kit, or a damaged one
    return {**files, MANIFEST: content, SIGNATURE: signing.sign(state.signing_key, content)}


def _place(out: Path, name: str, files: dict[str, bytes], passphrase: bytes | None) -> tuple[Path, str]:
    """Write what differs from what is there: the kit's folder, and its file."""
    folder = out / KITS / name
    existed = (folder / MANIFEST).exists()
    current = _current(folder)
    modes = {path: stat.S_IMODE((folder / path).stat().st_mode) for path in current}
    same = current.items() >= files.items() and all(modes[path] == file_mode(path) for path in files)
    if not same:
        write_folder(folder, files)
        for path in _listed(current) - set(files):  # what a site added of its own stays
            (folder / path).unlink(missing_ok=True)
    packed = archive.pack(files)
    plain, sealed = out / f"{name}{ARCHIVE_SUFFIX}", out / f"{name}{SEALED_SUFFIX}"
    if passphrase is None:
        if not plain.exists() or plain.read_bytes() != packed:
            write_file(plain, packed, 0o600)
        sealed.unlink(missing_ok=True)  # it may hold an older kit
        return plain, "kept" if same else "changed" if existed else "new"
    if not _opens(sealed, passphrase, packed):
        write_file(sealed, archive.seal(packed, passphrase), 0o600)
    plain.unlink(missing_ok=True)
    return sealed, "kept" if same else "changed" if existed else "new"


def _current(folder: Path) -> dict[str, bytes]:
    try:
        return dict(read_kit(folder).files) if folder.is_dir() else {}
    except KitError:
        return {}


def _listed(current: Mapping[str, bytes]) -> set[str]:
    try:
        return set(read_manifest(current[MANIFEST]).files)
    except (KeyError, ValueError):
        return set()


def _opens(sealed: Path, passphrase: bytes, packed: bytes) -> bool:
    try:
        return archive.unseal(sealed.read_bytes(), passphrase) == packed
    except (OSError, KitError):
        return False


def _notes(consortium: Consortium, state: State, kinds: Mapping[str, Kind], now: datetime) -> list[str]:
    """Certificates that end soon, or sooner than was asked for."""
    certificates = state.certificates
    soon = [name for name in kinds if certificates[name].days_left(now) < WARN_DAYS]
    found = [f"{name}: expires on {certificates[name].valid_until:%Y-%m-%d}: --renew {name}" for name in soon]
    if state.root.days_left(now) < consortium.certificates.kit_days:
        found.append(
            f"the root certificate expires on {state.root.valid_until:%Y-%m-%d}, and every kit with it: plan a new "
            "consortium folder and new kits for everybody before that day"
        )
    return found
