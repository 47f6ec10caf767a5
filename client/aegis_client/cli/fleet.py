"""agents, agents trust, agents forget, boards."""

from __future__ import annotations

from typing import Annotated

import typer

from aegis_client.cli.options import Json

agents_app = typer.Typer(
    help="Show the agents, and decide which keys to trust.",
    invoke_without_command=True,
    rich_markup_mode=None,
)


def register(app: typer.Typer) -> None:
    app.add_typer(agents_app, name="agents")
    app.command()(boards)


@agents_app.callback()
def agents(context: typer.Context, as_json: Json = False) -> int | None:
    """Show the agents that there are, their states, and whether their keys are trusted."""
    if context.invoked_subcommand is not None:
        context.obj = {"json": as_json}
        return None
    from aegis_client.cli import fleet_work

    return fleet_work.agents(as_json=as_json)


@agents_app.command()
def trust(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The agent's name or id.")],
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="KEY", help="Its key or id, as `aegis-agent identity` says."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Pin an agent's key. With --key it must be that one; a changed key needs --key."""
    from aegis_client.cli import fleet_work

    return fleet_work.trust(name, key, as_json=as_json or _json(context))


@agents_app.command()
def forget(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The agent's name.")],
    as_json: Json = False,
) -> int:
    """Remove an agent's pin."""
    from aegis_client.cli import fleet_work

    return fleet_work.forget(name, as_json=as_json or _json(context))


def boards(as_json: Json = False) -> int:
    """Show the boards, their agents and their states."""
    from aegis_client.cli import fleet_work

    return fleet_work.boards(as_json=as_json)


def _json(context: typer.Context) -> bool:
    return bool((context.obj or {}).get("json"))
