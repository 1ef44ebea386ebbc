"""`fedspleen kit`: look at startup kits, unpack them, see who expires when, lock a site out."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fl_app.cli.console import open_console
from fl_app.errors import KitError

if TYPE_CHECKING:
    from provisioning.verify import KitReport

app = typer.Typer(no_args_is_help=True, help="Startup kits.")
Fingerprint = Annotated[
    str | None, typer.Option(help="The consortium's fingerprint, as its lead told you by telephone.")
]
PassphraseFile = Annotated[Path | None, typer.Option(help="A file with the passphrase of a sealed kit.")]
Kit = Annotated[Path, typer.Argument(help="A kit: .kit.zip, .kit.locked, or its folder.", show_default=False)]


@app.command("verify")
def kit_verify(
    kit: Kit,
    fingerprint: Fingerprint = None,
    passphrase_file: PassphraseFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Say whose kit this is, who signed it, until when it is valid, and all that is wrong with it.

    Exit code 0: use it. 1: do not.
    """
    from provisioning.kit_file import read_passphrase
    from provisioning.verify import KitReport, verify_kit

    try:
        report = verify_kit(kit, fingerprint, read_passphrase(passphrase_file))
    except KitError as error:
        if not as_json:
            raise
        report = KitReport(problems=(str(error),))
    if as_json:
        print(json.dumps({"good": report.good, **asdict(report)}, indent=2, default=lambda time: time.isoformat()))
    else:
        _print_report(kit, report)
    if not report.good:
        raise typer.Exit(1)


@app.command("unpack")
def kit_unpack(
    kit: Kit,
    folder: Annotated[
        Path, typer.Argument(help="A new folder, or one with an older kit of the same participant.", show_default=False)
    ],
    fingerprint: Fingerprint = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Verify a kit, and unpack it only if nothing is wrong with it."""
    from provisioning.kit_file import read_passphrase
    from provisioning.verify import unpack_kit

    _print_report(folder, unpack_kit(kit, folder, fingerprint, read_passphrase(passphrase_file)))


@app.command("request")
def kit_request(
    name: Annotated[str, typer.Argument(help="The site's name, or your e-mail address, as in the consortium's file.")],
    organisation: Annotated[str, typer.Option(help="As in the consortium's file.")],
    out: Annotated[Path, typer.Option(help="A folder for the key, which never leaves it, and for the request.")],
) -> None:
    """At the site: make a key that nobody else ever holds, and the request for its certificate."""
    from provisioning.requests import make_request

    path, request = make_request(name, organisation, out)
    print(f"send this file to the consortium's lead: {path}")
    print(f"and tell them its fingerprint by telephone: {request.fingerprint}")
    print(f"keep {out / 'client.key'} here and send it to nobody")


@app.command("approve")
def kit_approve(
    request: Annotated[Path, typer.Argument(help="The request that a site sent.")],
    consortium: Annotated[Path, typer.Argument(help="The consortium's file; the site in it with own_key: true.")],
    fingerprint: Annotated[str, typer.Option(help="The request's fingerprint, as the site told you by telephone.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of keys and kits.", show_default="a folder named as the consortium")
    ] = None,
    passphrase_file: Annotated[Path | None, typer.Option(help="As for `fedspleen provision`.")] = None,
) -> None:
    """At the lead's: accept a site's request, and make its kit, which holds no key."""
    from provisioning.consortium import load_consortium
    from provisioning.kit_file import read_passphrase
    from provisioning.requests import approve_request, read_request

    described = load_consortium(consortium)
    passphrase = read_passphrase(passphrase_file)
    done = approve_request(request, described, out or Path(described.name), fingerprint, passphrase)
    print(f"send back: {done.archives[read_request(request).name]}")
    print(f"and tell them the consortium's fingerprint by telephone: {done.fingerprint}")


@app.command("assemble")
def kit_assemble(
    kit: Kit,
    key: Annotated[Path, typer.Argument(help="The folder of `fedspleen kit request`.", show_default=False)],
    folder: Annotated[
        Path, typer.Argument(help="A new folder, or one with an older kit of the same participant.", show_default=False)
    ],
    fingerprint: Fingerprint = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """At the site: verify the kit that the lead sent, and put it together with the key that stayed here."""
    from provisioning.kit_file import read_passphrase
    from provisioning.requests import assemble_kit

    _print_report(folder, assemble_kit(kit, key, folder, fingerprint, read_passphrase(passphrase_file)))


@app.command("list")
def kit_list(
    state: Annotated[Path, typer.Argument(help="The consortium's folder, or the state folder in it.")],
) -> None:
    """Say whose certificate expires when; what ends within 30 days is marked."""
    from provisioning.listing import list_kits

    now = datetime.now(timezone.utc)
    listing = list_kits(state)
    table = Table(title=f"{listing.consortium}, fingerprint {listing.fingerprint}", title_justify="left")
    for heading in ("who", "organisation", "role", "valid until", "days left", ""):
        table.add_column(heading)
    for each in listing.certificates:
        remark = each.remark(now)
        day = f"{each.valid_until:%Y-%m-%d}"
        row = (each.name, each.organisation, each.role, day, str(each.days_left(now)), remark)
        table.add_row(*row, style="bold yellow" if remark else None)
    open_console().print(table)


@app.command("revoke")
def kit_revoke(
    site: Annotated[str, typer.Argument(help="The site to lock out.")],
    admin: Annotated[Path, typer.Option(help="Your own kit's folder; its role must be lead.")],
    undo: Annotated[bool, typer.Option("--undo", help="Let the site in again.")] = False,
) -> None:
    """Lock a site out of the running server, at once and for good; nothing has to be restarted."""
    from provisioning.revoke import let_in, lock_out

    if undo:
        let_in(site, admin)
        print(f"{site}: may connect again")
        return
    lock_out(site, admin)
    print(
        f"{site}: locked out; the server goes on refusing it, also after a restart in the same folder. "
        "If its key was stolen, let the site come back under another name, never under this one."
    )


def _print_report(kit: Path, report: KitReport) -> None:
    console = open_console()
    facts = {
        "consortium": report.consortium,
        "fingerprint": report.fingerprint,
        "kit for": f"{report.kind} {report.participant}, {report.organisation} {report.role}".strip(" ,"),
        "opens" if report.kind == "server" else "connects to": report.server,
    }
    if report.valid_from and report.valid_until:
        facts["valid"] = f"{report.valid_from:%Y-%m-%d} to {report.valid_until:%Y-%m-%d}, {report.days_left} days left"
    for name, fact in facts.items():
        console.print(f"{name + ':':<13}{fact}", markup=False, soft_wrap=True)
    for note in report.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    for problem in report.problems:
        console.print(f"WRONG: {problem}", markup=False, soft_wrap=True, style="bold red")
    if report.good:
        console.print(f"{kit}: whole, signed, valid, and without code of its own", markup=False, soft_wrap=True)
    else:
        console.print(f"{kit}: do not use this kit", markup=False, soft_wrap=True, style="bold red")
