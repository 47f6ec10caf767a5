"""login, logout, whoami, doctor, test-connection."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aegis_client.cli.options import Agent, Json


def register(app: typer.Typer) -> None:
    app.command()(login)
    app.command()(logout)
    app.command()(whoami)
    app.command()(doctor)
    app.command("test-connection")(test_connection)


def login(
    url: Annotated[str, typer.Argument(metavar="URL", help="Control, such as https://host.")],
    key_stdin: Annotated[
        bool, typer.Option("--key-stdin", help="Read the key from standard input.")
    ] = False,
    key_file: Annotated[
        Path | None, typer.Option("--key-file", metavar="FILE", help="Read the key from a file.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Try a key at control and keep it. It is never an argument: others see those."""
    from aegis_client.cli import account_work

    return account_work.login(url, key_stdin=key_stdin, key_file=key_file, as_json=as_json)


def logout(as_json: Json = False) -> int:
    """Forget the kept key."""
    from aegis_client.cli import account_work

    return account_work.logout(as_json=as_json)


def whoami(as_json: Json = False) -> int:
    """Show what the key may do."""
    from aegis_client.cli import account_work

    return account_work.whoami(as_json=as_json)


def doctor(
    link: Annotated[
        bool, typer.Option("--link", help="Also connect to an agent, which takes a slot of it.")
    ] = False,
    agent: Agent = None,
    as_json: Json = False,
) -> int:
    """Check settings, store, control, key, clock, agents and network, and say what to mend."""
    from aegis_client.cli import doctor_work

    return doctor_work.doctor(link=link or agent is not None, agent=agent, as_json=as_json)


def test_connection(agent: Agent = None, as_json: Json = False) -> int:
    """Connect to an agent and measure every hop on the way, which takes a slot of it."""
    from aegis_client.cli import doctor_work

    return doctor_work.test_connection(agent=agent, as_json=as_json)
