"""Is this kit to be trusted: whole, signed by the consortium that was agreed on, valid today, and without code?"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from fl_app.errors import KitError
from fl_app.versions import own_version
from provisioning import signing
from provisioning.archive import shown
from provisioning.certificates import WARN_DAYS, Certificate, read_certificate
from provisioning.components import CLASS_ALLOW_LIST
from provisioning.consortium import FLARE_ROLES
from provisioning.flare import start_scripts
from provisioning.kit_file import read_kit, write_folder
from provisioning.manifest import CERTIFICATE, MANIFEST, SETTINGS_FILE, SIGNATURE, Digest, Manifest, read_manifest


@dataclass(frozen=True)
class KitReport:
    """What a kit is, and what is wrong with it.

    Attributes:
        consortium: its name.
        participant: the identity that the kit gives: a site's name, "server", or an administrator's e-mail address.
        kind: server, site or administrator.
        organisation: of the participant.
        role: of an administrator: lead, site-admin or member; empty otherwise.
        server: what this kit connects to, or opens, as host:port.
        fingerprint: of the consortium that signed it; to be compared with what the lead says.
        valid_from: of the certificate, in UTC.
        valid_until: of the certificate, in UTC.
        days_left: whole days until then.
        problems: why not to use it, one sentence each; empty: use it.
        notes: worth knowing.
    """

    consortium: str = ""
    participant: str = ""
    kind: str = ""
    organisation: str = ""
    role: str = ""
    server: str = ""
    fingerprint: str = ""
    valid_from: datetime | None = None
    valid_until: datetime | None = None
    days_left: int | None = None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether nothing speaks against using the kit."""
        return not self.problems


def verify_kit(
    path: Path, fingerprint: str | None = None, passphrase: bytes | None = None, now: datetime | None = None
) -> KitReport:
    """Look at a kit from all sides; what is wrong is in the report.

    Args:
        path: an archive, a sealed archive or a folder.
        fingerprint: the consortium's, as the lead said it; none: it is reported, and not compared.
        passphrase: of a sealed archive.
        now: today; none: by this machine's clock.

    Raises:
        KitError: this is no kit at all, or cannot be read to its end.
        UsageError: the fingerprint is none, or a sealed kit came without passphrase.
    """
    return _verify(path, fingerprint, passphrase, now)[0]


def unpack_kit(
    path: Path,
    folder: Path,
    fingerprint: str | None = None,
    passphrase: bytes | None = None,
    now: datetime | None = None,
    own_key: bytes | None = None,
) -> KitReport:
    """Verify a kit, and write it into a folder that is new, empty, or holds an older kit of the same participant.

    ``own_key`` is the private key (PEM) that was made at the site, for a kit without one.

    Raises:
        KitError: the kit is not to be trusted; nothing was written.
    """
    report, files = _verify(path, fingerprint, passphrase, now)
    name = f"startup/{CERTIFICATE[report.kind]}.key"
    problems = list(report.problems)
    if own_key is not None and name in files:
        problems.append("it holds a key: `fedspleen kit unpack` is for such kits")
    elif own_key is not None:
        files = {**files, name: own_key}
        if not problems and not read_certificate(files[name.replace(".key", ".crt")]).fits(own_key):
            problems.append("the key is not the one that this kit's certificate was made for")
    elif name not in files and not problems:
        problems.append("it holds no key: `fedspleen kit assemble` puts it together with the one made at the site")
    if problems:
        raise KitError("\n".join((f"{path}: not unpacked:", *problems)))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        _check_older(folder, report, files)
    write_folder(folder, files)
    return report


def _check_older(folder: Path, report: KitReport, files: Mapping[str, bytes]) -> None:
    try:
        older = read_manifest((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        raise KitError(f"{folder}: is there and holds no kit: name a new folder") from None
    same = (older.consortium, older.participant, older.signing_key)
    new = read_manifest(files[MANIFEST])
    if same != (new.consortium, new.participant, new.signing_key):
        raise KitError(
            f"{folder}: holds a kit of {older.participant} of {older.consortium}, which {report.participant}'s kit of "
            f"{report.consortium} does not replace: name a new folder"
        )


def _verify(
    path: Path, fingerprint: str | None, passphrase: bytes | None, now: datetime | None
) -> tuple[KitReport, Mapping[str, bytes]]:
    expected = signing.parse_fingerprint(fingerprint) if fingerprint is not None else None
    read = read_kit(path, passphrase)
    files, problems, notes = read.files, list(read.problems), list(read.notes)
    if MANIFEST not in files:
        raise KitError(f"{path}: not a kit that fedspleen made: it holds no {MANIFEST}")
    try:
        manifest = read_manifest(files[MANIFEST])
    except ValueError as error:
        raise KitError(f"{path}: {MANIFEST}: {error}") from None
    if not signing.is_signed_by(bytes.fromhex(manifest.signing_key), files[MANIFEST], files.get(SIGNATURE, b"")):
        problems.append(f"{SIGNATURE}: {'does not fit the kit' if SIGNATURE in files else 'missing'}")
    damaged = {name for name in files if any(told.startswith(f"{shown(name)}: ") for told in read.problems)}
    changes = _changes(manifest, files, damaged)
    problems += changes
    report = _describe(manifest, files, problems, notes, now or datetime.now(timezone.utc))
    if expected is None:
        notes.append("the fingerprint was not compared: ask the lead for it, and give it with --fingerprint")
    elif report.fingerprint and report.fingerprint != expected:
        problems.append(f"from another consortium: its fingerprint is {report.fingerprint}, not {expected}")
    certificate = f"startup/{CERTIFICATE[manifest.kind]}.crt"
    sure = certificate in files and Digest.of(files[certificate]) == manifest.files.get(certificate)
    problems += _code(manifest, report, files, notes, sure)
    return _with(report, problems, notes), files


def _changes(manifest: Manifest, files: Mapping[str, bytes], told: Container[str]) -> list[str]:
    """Every file that is not as it was signed; but for those of which it was told why."""
    found = []
    for name, digest in manifest.files.items():
        content = files.get(name)
        if content is None:
            found.append(f"{shown(name)}: missing")
        elif name not in told and Digest.of(content) != digest:
            short = len(content) < digest.size
            found.append(f"{shown(name)}: {f'cut off, {len(content)} of {digest.size} bytes' if short else 'changed'}")
    # a key that was made at the site is in no manifest; it has to fit the certificate
    known = {*manifest.files, MANIFEST, SIGNATURE, f"startup/{CERTIFICATE[manifest.kind]}.key"}
    return found + [f"{shown(name)}: added, it is no part of this kit" for name in files if name not in known]


def _describe(
    manifest: Manifest, files: Mapping[str, bytes], problems: list[str], notes: list[str], now: datetime
) -> KitReport:
    """The facts, and what is wrong with the certificates."""
    report = KitReport(manifest.consortium, manifest.participant, manifest.kind)
    base = f"startup/{CERTIFICATE[manifest.kind]}"
    try:
        root, own = read_certificate(files["startup/rootCA.pem"]), read_certificate(files[f"{base}.crt"])
    except (KeyError, ValueError):
        if not problems:  # else it follows from them
            problems.append("its certificates are missing or damaged")
        return report
    if not root.is_issued_by(root) or not own.is_issued_by(root):
        problems.append(f"{base}.crt: signed by another authority than startup/rootCA.pem")
    if own.name != manifest.participant:
        problems.append(f"{base}.crt: for {own.name}, in a kit for {manifest.participant}")
    if f"{base}.key" not in files and f"{base}.key" not in manifest.files:
        notes.append("it holds no key: `fedspleen kit assemble` puts it together with the one made at the site")
    elif not own.fits(files.get(f"{base}.key", b"")):
        problems.append(f"{base}.key: does not belong to {base}.crt")
    for certificate, what in ((own, "the certificate"), (root, "the consortium's root certificate")):
        problems += _dates(certificate, what, now)
    if WARN_DAYS > own.days_left(now) >= 0:
        notes.append(f"expires in {own.days_left(now)} days: ask the lead of {manifest.consortium} to renew it")
    return KitReport(
        manifest.consortium,
        manifest.participant,
        manifest.kind,
        own.organisation,
        {flare: ours for ours, flare in FLARE_ROLES.items()}.get(own.role, own.role),
        _server(manifest, files, own, problems),
        signing.fingerprint(root.source.public_bytes(Encoding.DER), bytes.fromhex(manifest.signing_key)),
        own.valid_from,
        own.valid_until,
        own.days_left(now),
    )


def _dates(certificate: Certificate, what: str, now: datetime) -> list[str]:
    if now < certificate.valid_from:
        return [
            f"{what} is not valid before {certificate.valid_from:%Y-%m-%d %H:%M} UTC: is this machine's clock right?"
        ]
    if now > certificate.valid_until:
        return [
            f"{what} expired on {certificate.valid_until:%Y-%m-%d %H:%M} UTC: ask the consortium's lead to renew it"
        ]
    return []


def _server(manifest: Manifest, files: Mapping[str, bytes], own: Certificate, problems: list[str]) -> str:
    """Where FLARE will connect to with this kit; at the server, what it opens."""
    name = f"startup/{SETTINGS_FILE[manifest.kind]}"
    try:
        settings = json.loads(files[name])
        if manifest.kind == "administrator":
            return f"{settings['admin']['host']}:{settings['admin']['port']}"
        target = str(settings["servers"][0]["service"]["target"])
    except (KeyError, ValueError, TypeError, IndexError, RecursionError):
        problems.append(f"{name}: does not say where the server is")
        return ""
    return f"{' or '.join(sorted(own.hosts))}:{target.partition(':')[2]}" if manifest.kind == "server" else target


def _code(manifest: Manifest, report: KitReport, files: Mapping[str, bytes], notes: list[str], sure: bool) -> list[str]:
    """Whether anything in the kit could run that FLARE itself did not put there.

    One script names the certificate's organisation: it is compared if the certificate is ``sure``, the signed one.
    """
    ours = start_scripts(manifest.kind, manifest.participant, report.organisation)
    data = {".json", ".default", ".txt", ".pem", ".crt", ".key", ".sig"}
    found = [
        f"{shown(name)}: code, or something else that no kit holds"
        for name in files
        if name not in ours and (Path(name).suffix not in data or "custom" in Path(name).parts)
    ]
    compared = {name: script for name, script in ours.items() if sure or name != "startup/sub_start.sh"}
    differing = [name for name, script in compared.items() if name in files and files[name] != script]
    if differing and manifest.nvflare == Manifest.model_fields["nvflare"].get_default(call_default_factory=True):
        found += [f"{name}: not the start script of FLARE {manifest.nvflare}" for name in differing]
    elif differing:
        notes.append(f"start scripts are those of FLARE {manifest.nvflare}, which is not installed here")
    resources = files.get("local/resources.json.default", b"{}")
    if manifest.kind != "administrator" and _allowed(resources) != CLASS_ALLOW_LIST:
        found.append(
            f"local/resources.json.default: it does not allow the components of fedspleen {own_version()}, which is "
            f"installed here: fedspleen {manifest.fedspleen} made the kit - install that version, or let the lead "
            "provision again with the one that is installed"
        )
    return found


def _allowed(resources: bytes) -> object:
    try:
        return json.loads(resources).get("class_allow_list")
    except (ValueError, AttributeError, RecursionError):
        return None


def _with(report: KitReport, problems: list[str], notes: list[str]) -> KitReport:
    values = {**report.__dict__, "problems": tuple(dict.fromkeys(problems)), "notes": tuple(dict.fromkeys(notes))}
    return KitReport(**values)
