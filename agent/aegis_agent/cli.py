"""The `aegis-agent` command."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Final

import typer
from aegis_protocol import __version__
from aegis_protocol.errors import AegisError, ErrorReply
from rich.console import Console
from rich.table import Table

from aegis_agent.commands import config_commands, toolchain_commands
from aegis_agent.commands.asking import AsJson, finish, print_json, settings
from aegis_agent.commands.toolchain_commands import StateDir
from aegis_agent.config import AgentConfig, ConfigInvalid
from aegis_agent.log import configure
from aegis_agent.virtual_board.cli import virtual_board_command

app = typer.Typer(
    help="Builds firmware in a sandbox, flashes and watches boards, for clients far away.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(toolchain_commands.app, name="toolchains")
app.add_typer(config_commands.app, name="config")
app.command("virtual-board")(virtual_board_command)

EXIT_CODES: Final = {
    "config.invalid": 2,
    "link.refused": 4,
    "agent.revoked": 4,
    "enroll.refused": 4,
    "enroll.name_taken": 4,
}
"""Exit code by error code; every other named failure exits with 1."""

Url = Annotated[
    str | None, typer.Option(help="Control's URL (CONTROL_BASE_URL).", show_default=False)
]


def main() -> None:
    """Run the command; a named failure becomes one line and an exit code, never a traceback."""
    try:
        app(standalone_mode=True)
    except AegisError as exc:
        if "--json" in sys.argv:
            print(ErrorReply(error=exc.body()).model_dump_json(), file=sys.stderr)  # noqa: T201
        else:
            shown = Console(stderr=True, highlight=False, soft_wrap=True)
            shown.print(f"aegis-agent: {exc.message} [{exc.code}]", markup=False)
            shown.print(exc.remedy, markup=False)
        sys.exit(EXIT_CODES.get(exc.code, 1))


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)
    ] = False,
) -> None:
    if version:
        typer.echo(f"aegis-agent {__version__}")
        raise typer.Exit


@app.command()
def run(url: Url = None, state_dir: StateDir = None) -> None:
    """
    Run the agent until SIGTERM.

    The first SIGTERM (or Ctrl-C) lets running jobs finish, a second cancels them, a third exits.
    """
    from aegis_agent.daemon import start

    config = settings(control_base_url=url, state_dir=state_dir)
    configure(config.log)
    finish(start(config))


@app.command()
def enroll(
    url: Url = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="A file with the token, `-` for standard input.", allow_dash=True),
    ] = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """
    Join a control plane with a token of `aegis-control enroll-token create`.

    The token comes from --token-file, AEGIS_ENROLL_TOKEN, AGENT_AUTH_SECRET or a prompt; never
    from the command line, where other users could read it.
    """
    from aegis_agent.enroll import enroll as join
    from aegis_agent.identity import Identity

    config = settings(control_base_url=url, state_dir=state_dir)
    token = _token(token_file, config)
    enrollment = finish(join(config, Identity.open(config.state_dir), token))
    if as_json:
        print_json({"agent_id": enrollment.agent_id, "control": enrollment.base_url})
    else:
        typer.echo(f"Enrolled at {enrollment.base_url} as {enrollment.agent_id}.")
        typer.echo("Start it with: aegis-agent run")


@app.command()
def identity(state_dir: StateDir = None, as_json: AsJson = False) -> None:
    """Print this agent's id and public key, to compare with what a client was shown."""
    from aegis_agent.identity import Identity

    config = settings(state_dir=state_dir)
    me = Identity.open(config.state_dir)
    if as_json:
        print_json({"agent_id": me.agent_id, "key": me.public_text, "name": config.name})
    else:
        typer.echo(f"id   {me.agent_id}\nkey  {me.public_text}\nname {config.name}")


@app.command()
def boards(state_dir: StateDir = None, as_json: AsJson = False) -> None:
    """List the boards of this machine: those on USB and those of agent.toml."""
    from aegis_agent.boards import BoardRegistry
    from aegis_agent.state_dir import prepare

    config = settings(state_dir=state_dir)
    prepare(config.state_dir)
    registry = BoardRegistry(
        config.boards,
        discover=config.discover_boards,
        state_dir=config.state_dir,
        on_change=lambda _: None,
    )
    found = finish(registry.looked())
    if as_json:
        print_json({"boards": [board.model_dump(mode="json") for board in found]})
        return
    table = Table("id", "chip", "state", "labels", "description")
    for board in found:
        labels = ",".join(f"{key}={value}" for key, value in board.labels.items())
        table.add_row(board.id, board.chip or "?", board.state, labels, board.description)
    Console().print(table)


def _token(path: Path | None, config: AgentConfig) -> str:
    secret = config.agent_auth_secret
    if path is not None and str(path) == "-":
        token = sys.stdin.readline(4096)
    elif path is not None:
        try:
            token = path.read_text()
        except (OSError, UnicodeDecodeError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else "not UTF-8"
            raise ConfigInvalid(f"{path} can't be read: {why}") from exc
    else:
        token = os.environ.get("AEGIS_ENROLL_TOKEN") or ""
        if not token and secret is not None:
            token = secret.get_secret_value()
        if not token and sys.stdin.isatty():
            token = typer.prompt("Token", hide_input=True)
    if not token.strip():
        raise ConfigInvalid(
            "there is no token",
            remedy="Give it by --token-file, AEGIS_ENROLL_TOKEN or at the prompt.",
        )
    return token.strip()
