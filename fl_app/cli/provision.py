"""`fedspleen provision`: from a consortium's file to everybody's startup kit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fl_app.cli.console import open_console


def provision(
    consortium: Annotated[Path, typer.Argument(help="Who takes part; examples are in provisioning/examples/.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for keys and kits.", show_default="a folder named as the consortium")
    ] = None,
    passphrase_file: Annotated[
        Path | None, typer.Option(help="Seal the kits' files with the passphrase in this file (scrypt, AES-256-GCM).")
    ] = None,
    renew: Annotated[
        list[str] | None, typer.Option(help="A participant who gets a new key and certificate; may be repeated.")
    ] = None,
) -> None:
    """Make everybody's startup kit, or update the kits: only those whose content changed, all others stay as they are.

    Run it again after every change of the file: a new site gets a kit, and the others keep theirs.
    """
    from provisioning.consortium import load_consortium
    from provisioning.kit_file import read_passphrase
    from provisioning.provision import STATE, provision

    described = load_consortium(consortium)
    out = out or Path(described.name)
    first = not (out / STATE).exists()
    done = provision(described, out, read_passphrase(passphrase_file), renew or ())
    say = open_console().print
    for names, what in ((done.new, "new"), (done.changed, "changed, to be sent again"), (done.kept, "as before")):
        for name in names:
            say(f"{what}: {done.archives[name]}", soft_wrap=True)
    for name in done.waiting:
        say(
            f"waiting for the request of {name}: `fedspleen kit request` makes it, `kit approve` accepts it",
            style="bold",
        )
    say(f"fingerprint, to be read out to every site by telephone: [bold]{done.fingerprint}[/bold]", soft_wrap=True)
    for name, until in done.removed.items():
        say(
            f"no longer in the file: {name}. Its certificate is valid until {until:%Y-%m-%d}: to lock it out now, run "
            f"`fedspleen kit revoke {name} --admin {out}/kits/YOUR-EMAIL` while the server runs",
            style="bold yellow",
            soft_wrap=True,
        )
    for note in done.notes:
        say(f"caution: {note}", style="bold yellow", soft_wrap=True)
    if first:
        say(
            f"back up {out / STATE} in a safe place: without it, no kit can be added or renewed. Never copy it to a "
            f"server or a site, and send nobody more than their own kit: {out / STATE} holds everybody's private key.",
            soft_wrap=True,
        )
