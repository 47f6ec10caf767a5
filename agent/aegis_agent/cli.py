"""The `aegis-agent` command."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import typer
from aegis_protocol import __version__
from aegis_protocol.errors import AegisError, ErrorReply
from rich.console import Console
from rich.table import Table

from aegis_agent.config import AgentConfig, ConfigInvalid, load
from aegis_agent.log import configure
from aegis_agent.virtual_board.cli import virtual_board_command

app = typer.Typer(
    help="Builds firmware in a sandbox, flashes and watches boards, for clients far away.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
toolchains_app = typer.Typer(
    help="The toolchains on this machine: see them, install one.", no_args_is_help=True
)
config_app = typer.Typer(help="The settings in force.", no_args_is_help=True)
app.add_typer(toolchains_app, name="toolchains")
app.add_typer(config_app, name="config")
app.command("virtual-board")(virtual_board_command)

EXIT_CODES: Final = {"config.invalid": 2, "link.refused": 4, "enroll.refused": 4}
"""Exit code by error code; every other named failure exits with 1."""

T = TypeVar("T")
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


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


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)
    ] = False,
) -> None:
    if version:
        typer.echo(f"aegis-agent {__version__}")
        raise typer.Exit


@app.command()
def run(
    url: Annotated[
        str | None, typer.Option(help="Control's URL (CONTROL_BASE_URL).", show_default=False)
    ] = None,
    state_dir: Annotated[
        Path | None, typer.Option(help="Where the agent keeps its state (AEGIS_STATE_DIR).")
    ] = None,
) -> None:
    """
    Run the agent until SIGTERM.

    The first SIGTERM (or Ctrl-C) lets running jobs finish, a second cancels them, a third exits.
    """
    from aegis_agent.daemon import start

    config = load(control_base_url=url, state_dir=state_dir)
    configure(config.log)
    _finish(start(config))


@app.command()
def enroll(
    url: Annotated[str | None, typer.Option(help="Control's URL (CONTROL_BASE_URL).")] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="A file with the token, `-` for standard input.", allow_dash=True),
    ] = None,
    state_dir: Annotated[Path | None, typer.Option(help="AEGIS_STATE_DIR.")] = None,
    as_json: AsJson = False,
) -> None:
    """
    Join a control plane with a token of `aegis-control enroll-token create`.

    The token comes from --token-file, AEGIS_ENROLL_TOKEN, or a prompt; never from the command
    line, where other users could read it.
    """
    from aegis_agent.enroll import enroll as join
    from aegis_agent.identity import Identity

    config = load(control_base_url=url, state_dir=state_dir)
    configure(config.log)
    identity = Identity.open(config.state_dir)
    enrollment = _finish(join(config, identity, _token(token_file)))
    if as_json:
        _print_json({"agent_id": enrollment.agent_id, "control": enrollment.base_url})
    else:
        typer.echo(f"Enrolled at {enrollment.base_url} as {enrollment.agent_id}.")
        typer.echo("Start it with: aegis-agent run")


@app.command()
def identity(
    state_dir: Annotated[Path | None, typer.Option(help="AEGIS_STATE_DIR.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print this agent's id and public key, to compare with what a client was shown."""
    from aegis_agent.identity import Identity

    config = load(state_dir=state_dir)
    me = Identity.open(config.state_dir)
    if as_json:
        _print_json({"agent_id": me.agent_id, "key": me.public_text, "name": config.name})
    else:
        typer.echo(f"id   {me.agent_id}\nkey  {me.public_text}\nname {config.name}")


@app.command()
def boards(
    state_dir: Annotated[Path | None, typer.Option(help="AEGIS_STATE_DIR.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the boards of this machine: those on USB and those of agent.toml."""
    from aegis_agent.boards import BoardRegistry

    config = load(state_dir=state_dir)
    config.state_dir.mkdir(parents=True, exist_ok=True)
    registry = BoardRegistry(
        config.boards,
        discover=config.discover_boards,
        state_dir=config.state_dir,
        on_change=lambda _: None,
    )
    found = _finish(registry.looked())
    if as_json:
        _print_json({"boards": [board.model_dump(mode="json") for board in found]})
        return
    table = Table("id", "chip", "state", "labels", "description")
    for board in found:
        labels = ",".join(f"{key}={value}" for key, value in board.labels.items())
        table.add_row(board.id, board.chip or "?", board.state, labels, board.description)
    Console().print(table)


@toolchains_app.command("list")
def toolchains_list(
    state_dir: Annotated[Path | None, typer.Option(help="AEGIS_STATE_DIR.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show which toolchains were found, and the chips that they build for."""
    from aegis_agent.toolchains import Toolchains

    config = load(state_dir=state_dir)
    found = _finish(Toolchains.detect(platformio_home=config.toolchain_home)).found
    if as_json:
        _print_json({"toolchains": [kind.model_dump(mode="json") for kind in found]})
        return
    if not found:
        typer.echo("No toolchain yet. Install one with: aegis-agent toolchains install")
        return
    table = Table("kind", "version", "targets")
    for kind in found:
        table.add_row(kind.kind, kind.version, " ".join(kind.targets))
    Console().print(table)


@toolchains_app.command("install")
def toolchains_install(
    state_dir: Annotated[Path | None, typer.Option(help="AEGIS_STATE_DIR.")] = None,
    python: Annotated[
        Path, typer.Option(help="The Python that PlatformIO's environment is made with.")
    ] = Path(sys.executable),
) -> None:
    """Install PlatformIO, in an environment of its own, with the platform of the fixtures."""
    from aegis_agent.platformio_home import install

    config = load(state_dir=state_dir)
    config.state_dir.mkdir(parents=True, exist_ok=True)
    _finish(install(config.toolchain_home, python=python, on_progress=typer.echo))
    typer.echo(f"PlatformIO is ready in {config.toolchain_home}.")


@toolchains_app.command("install-platform")
def toolchains_install_platform(
    spec: Annotated[str, typer.Argument(help="Such as espressif32@6.13.0, or a URL of one.")],
    board: Annotated[
        str | None, typer.Option(help="A board of your project: its compiler is installed too.")
    ] = None,
    framework: Annotated[
        list[str] | None, typer.Option(help="A framework of your project: arduino, espidf.")
    ] = None,
    state_dir: Annotated[Path | None, typer.Option(help="AEGIS_STATE_DIR.")] = None,
) -> None:
    """Install a PlatformIO platform for every project on this agent (needs a network)."""
    from aegis_agent.platformio_home import install_platform

    config = load(state_dir=state_dir)
    _finish(
        install_platform(
            config.toolchain_home,
            spec,
            board=board,
            frameworks=tuple(framework or ()),
            on_progress=typer.echo,
        )
    )
    typer.echo(f"{spec} is installed.")


@config_app.command("show")
def config_show(as_json: AsJson = False) -> None:
    """Print every setting in force; secrets are not shown."""
    values = load().model_dump(mode="json")
    if as_json:
        _print_json(values)
        return
    aliases = {name: field.validation_alias for name, field in AgentConfig.model_fields.items()}
    for name, value in values.items():
        typer.echo(f"{aliases[name] or name} = {value}")


@config_app.command("validate")
def config_validate() -> None:
    """Say what is wrong with the settings, and how to mend it."""
    load()
    typer.echo("The settings are valid.")


def _finish(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def _token(path: Path | None) -> str:
    if path is not None and str(path) == "-":
        token = sys.stdin.readline()
    elif path is not None:
        try:
            token = path.read_text()
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigInvalid(f"{path} can't be read: {exc}") from exc
    else:
        token = os.environ.get("AEGIS_ENROLL_TOKEN") or ""
        if not token and sys.stdin.isatty():
            token = typer.prompt("Token", hide_input=True)
    if not token.strip():
        raise ConfigInvalid(
            "there is no token",
            remedy="Give it by --token-file, AEGIS_ENROLL_TOKEN or at the prompt.",
        )
    return token.strip()


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2))
