"""`enroll-token`: with what a machine may join."""

from __future__ import annotations

from typing import Annotated

import typer
from aegis_protocol.http_api import EnrollTokenMade, EnrollTokenRequest

from aegis_control.commands.asking import Asking, Json, KeyFile, State, Url

tokens = typer.Typer(help="Tokens with which agents enrol.", no_args_is_help=True)


@tokens.command("create")
def create_token(
    ttl_secs: Annotated[int, typer.Option(min=10, max=30 * 86_400)] = 3600,
    name: Annotated[str | None, typer.Option(help="Only for the agent of this name.")] = None,
    url: Url = None,
    key_file: KeyFile = None,
    state_dir: State = None,
    as_json: Json = False,
) -> None:
    """Make a token with which one agent may enrol, and print it, this once."""
    made = Asking(url, key_file, state_dir).post(
        "/services/enroll-tokens",
        EnrollTokenRequest(ttl_secs=ttl_secs, name=name),
        EnrollTokenMade,
    )
    typer.echo(made.model_dump_json(indent=2) if as_json else made.token)
