"""`fedspleen`: every error of the user ends as one sentence and a non-zero exit code."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from fl_app.cli import audit, client, config, job, kit, server
from fl_app.cli.dicom import import_dicom
from fl_app.cli.export import export
from fl_app.cli.join import join
from fl_app.cli.networks import networks
from fl_app.cli.phantom import phantom
from fl_app.cli.predict import predict
from fl_app.cli.provision import provision
from fl_app.cli.report import report
from fl_app.cli.simulate import simulate
from fl_app.errors import ConfigError, UserError
from fl_app.processes import Interrupted, raise_on_signals

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train one 3D segmentation model together; every image stays where it is.",
    epilog="Exit codes: 0 done; 1 the work failed; 2 wrong use; 3 done, but falls short of what was asked for; "
    "130 ended by Ctrl-C; 143 ended by SIGTERM.",
)
app.command()(simulate)
app.command()(predict)
app.command()(export)
app.command()(join)
app.command("import-dicom")(import_dicom)
app.command()(provision)
app.command()(report)
app.command()(phantom)
app.add_typer(audit.app, name="audit")
app.command()(networks)
app.add_typer(config.app, name="config")
app.add_typer(kit.app, name="kit")
app.add_typer(server.app, name="server")
app.add_typer(client.app, name="client")
for command in (job.submit, job.status, job.follow, job.abort, job.download):
    app.command()(command)


def _print_versions(wanted: bool) -> None:
    if wanted:
        from fl_app.result import software_versions
        from fl_app.training.device import describe_device

        for name, version in {**software_versions(), "device": describe_device()}.items():
            print(name, version)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_versions, is_eager=True, help="Print the versions that matter."),
    ] = False,
) -> None:
    """What stands before the command."""


def main() -> None:
    """Run a command; exit with 0, 1 (failed work), 2 (wrong use), 3 (not what was asked for) or 128 + signal."""
    raise_on_signals()
    try:
        app(prog_name="fedspleen")  # however it was started: completion is for this name
    except UserError as error:
        # a job's mistakes begin with their file and line, where editors look for them
        print(error if isinstance(error, ConfigError) else f"fedspleen: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Interrupted as end:
        print(f"fedspleen: ended by {end}", file=sys.stderr)
        sys.exit(end.exit_code)


if __name__ == "__main__":
    main()
