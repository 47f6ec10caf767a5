"""`toolchains`: what this machine builds with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from aegis_agent.commands.asking import AsJson, finish, print_json, settings
from aegis_agent.state_dir import prepare

app = typer.Typer(
    help="The toolchains on this machine: see them, install one.", no_args_is_help=True
)

StateDir = Annotated[Path | None, typer.Option("--state-dir", help="AEGIS_STATE_DIR.")]


@app.command("list")
def show(state_dir: StateDir = None, as_json: AsJson = False) -> None:
    """Show which toolchains were found, and the chips that they build for."""
    from aegis_agent.toolchains import Toolchains

    config = settings(state_dir=state_dir)
    found = finish(Toolchains.detect(platformio_home=config.toolchain_home)).found
    if as_json:
        print_json({"toolchains": [kind.model_dump(mode="json") for kind in found]})
        return
    if not found:
        typer.echo("No toolchain yet. Install one with: aegis-agent toolchains install")
        return
    table = Table("kind", "version", "targets")
    for kind in found:
        table.add_row(kind.kind, kind.version, " ".join(kind.targets))
    Console().print(table)


@app.command("install")
def install_platformio(
    state_dir: StateDir = None,
    python: Annotated[
        Path, typer.Option(help="The Python that PlatformIO's environment is made with.")
    ] = Path(sys.executable),
) -> None:
    """Install PlatformIO, in an environment of its own, with the platform of the fixtures."""
    from aegis_agent.platformio_home import install

    config = settings(state_dir=state_dir)
    prepare(config.state_dir)
    finish(install(config.toolchain_home, python=python, on_progress=typer.echo))
    typer.echo(f"PlatformIO is ready in {config.toolchain_home}.")


@app.command("install-platform")
def install_platform(
    spec: Annotated[str, typer.Argument(help="Such as espressif32@6.13.0, or a URL of one.")],
    board: Annotated[
        str | None, typer.Option(help="A board of your project: its compiler is installed too.")
    ] = None,
    framework: Annotated[
        list[str] | None, typer.Option(help="A framework of your project: arduino, espidf.")
    ] = None,
    state_dir: StateDir = None,
) -> None:
    """Install a PlatformIO platform for every project on this agent (needs a network)."""
    from aegis_agent.platformio_home import install_platform as install

    config = settings(state_dir=state_dir)
    finish(
        install(
            config.toolchain_home,
            spec,
            board=board,
            frameworks=tuple(framework or ()),
            on_progress=typer.echo,
        )
    )
    typer.echo(f"{spec} is installed.")
