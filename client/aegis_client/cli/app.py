"""The command line as a whole: what commands there are, `--version`, and the way into each."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer

from aegis_client.cli import account, artifacts, boards, build, fleet, jobs, leases

app = typer.Typer(
    name="espctl",
    help="Build, flash and watch ESP32-family firmware on machines you own, from anywhere.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from aegis_protocol import __version__

        typer.echo(f"espctl {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    url: Annotated[
        str | None, typer.Option("--url", metavar="URL", help="Control, for this command.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if url:
        os.environ["ESPCTL_URL"] = url


account.register(app)
fleet.register(app)
build.register(app)
boards.register(app)
artifacts.register(app)
jobs.register(app)
leases.register(app)


def main() -> int:
    """Run `espctl`; return its exit code."""
    from aegis_protocol.errors import AegisError

    from aegis_client.cli.output import Output
    from aegis_client.exit_codes import ExitCode, exit_code
    from aegis_client.failures import UsageInvalid

    out = Output(json="--json" in sys.argv[1:])
    try:
        return int(app(standalone_mode=False) or 0)
    except typer.Abort:
        return ExitCode.INTERRUPTED
    except typer.TyperException as exc:
        out.error(UsageInvalid(exc.format_message()))
        return ExitCode.USAGE
    except AegisError as exc:
        out.error(exc)
        return exit_code(exc.code)
    except Exception as exc:  # noqa: BLE001 - here is where a defect ends up, and is told as one
        if not out.json:
            traceback.print_exc()
        out.error(AegisError(f"a defect in espctl: {type(exc).__name__}"))
        return ExitCode.INTERNAL
