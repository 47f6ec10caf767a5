"""`aegis-control`: the commands of the control plane's operator."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Annotated, Final

import typer
from aegis_protocol import __version__
from aegis_protocol.errors import AegisError

from aegis_control.commands import (
    agents_commands,
    audit_commands,
    boards_commands,
    config_commands,
    doctor_commands,
    issuer_commands,
    jobs_commands,
    key_commands,
    lease_commands,
    order_commands,
    policy_commands,
    revoke_commands,
    session_commands,
    status_commands,
    store_commands,
    token_commands,
    verify_commands,
)
from aegis_control.commands.outcome import fail

_HELP: Final = "Says who may do what, knows the agents, schedules, and introduces the peers."

_UNPRINTABLE: Final = (errno.ENOSPC, errno.EPIPE, errno.EIO)

app = typer.Typer(
    name="aegis-control",
    help=_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)
app.add_typer(key_commands.keys, name="keys")
app.add_typer(token_commands.tokens, name="enroll-token")
app.add_typer(agents_commands.agents, name="agents")
app.add_typer(audit_commands.app, name="audit")
app.add_typer(config_commands.app, name="config")
app.add_typer(policy_commands.app, name="policy")
app.add_typer(issuer_commands.app, name="issuer")
app.add_typer(revoke_commands.app, name="revoke")
app.add_typer(lease_commands.leases, name="lease")
app.command("status", epilog="Example: aegis-control status --watch")(status_commands.status)
app.command("doctor", epilog="Example: aegis-control doctor --json")(doctor_commands.doctor)
app.command("list-agents", epilog="Example: aegis-control list-agents --json")(
    agents_commands.list_agents
)
app.command("list-grants", epilog="Example: aegis-control list-grants --agent lab-1 --limit 10")(
    session_commands.list_grants
)
app.command("list-sessions", epilog="Example: aegis-control list-sessions --who mcp")(
    session_commands.list_sessions
)
app.command(
    "verify-token",
    epilog="Example: aegis-control verify-token operator.key, or a pipe into it",
)(verify_commands.verify_token)
app.command("list-jobs", epilog="Example: aegis-control list-jobs --state pending")(
    jobs_commands.list_jobs
)
app.command(
    "show-job", epilog="Example: aegis-control show-job 0198f2c0-5b1e-7c3a-9d4f-1a2b3c4d5e6f"
)(jobs_commands.show_job)
app.command("list-boards", epilog="Example: aegis-control list-boards --json")(
    boards_commands.list_boards
)
app.command("migrate", epilog="Example: aegis-control migrate --check")(store_commands.migrate)
app.command("reset", epilog="Example: aegis-control reset --yes-delete-everything")(
    store_commands.reset
)
app.command("pause-agent", epilog="Example: aegis-control pause-agent lab-1 --reason maintenance")(
    order_commands.pause
)
app.command("resume-agent", epilog="Example: aegis-control resume-agent lab-1")(
    order_commands.resume
)
app.command("drain-agent", epilog="Example: aegis-control drain-agent lab-1 --deadline 30m")(
    order_commands.drain
)
app.command("reset-agent", epilog="Example: aegis-control reset-agent lab-1")(order_commands.reset)


def main() -> None:
    """Run the command line; a named failure is one line and its exit code."""
    as_json = "--json" in sys.argv[1:]
    try:
        app()
    except AegisError as exc:
        sys.exit(fail(exc, as_json=as_json))
    except OSError as exc:
        if exc.errno not in _UNPRINTABLE:
            raise
        sys.stdout = None  # nothing more can be written, at exit neither
        typer.echo(f"aegis-control: the output can't be written: {exc.strerror}", err=True)
        sys.exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"aegis-control {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show it and exit."),
    ] = False,
) -> None:
    """Options of every command."""


@app.command(epilog="Example: aegis-control serve --listen 127.0.0.1:8470")
def serve(
    listen: Annotated[
        str | None, typer.Option(help="host:port; port 0 takes a free one. [AEGIS_LISTEN]")
    ] = None,
    state_dir: Annotated[
        Path | None, typer.Option(help="Where control keeps everything. [AEGIS_STATE_DIR]")
    ] = None,
    public_base_url: Annotated[
        str | None,
        typer.Option(help="How agents and clients reach it. [CONTROL_PUBLIC_BASE_URL]"),
    ] = None,
) -> None:
    """Run the control plane until SIGTERM or Ctrl-C."""
    from aegis_control import event_loop, log
    from aegis_control import serve as server
    from aegis_control.config_sources import load

    loaded = load(listen=listen, state_dir=state_dir, public_base_url=public_base_url)
    config = loaded.config
    log.configure(config.log)
    for path in loaded.unreadable:
        log.get_logger("serve").info("config.file_unreadable", file=path)
    os.umask(0o077)

    def announce(served: server.Served) -> None:
        typer.echo(f"aegis-control {__version__} listens on {served.base_url}")
        typer.echo(f"state: {config.state_dir}")
        if served.operator_key is not None:
            typer.echo(f"first operator key: in {served.operator_key}")
        sys.stdout.flush()

    event_loop.run(server.serve_until_signal(config, announce=announce))
