"""`enroll-token`: with what a machine may join."""

from __future__ import annotations

import time
from typing import Annotated, Final

import typer
from aegis_protocol.failures.http import TokenNotFound
from aegis_protocol.http_api.enrollment import (
    EnrollTokenList,
    EnrollTokenMade,
    EnrollTokenRequest,
    EnrollTokenRow,
)

from aegis_control.commands.asking import Asking, Json, KeyFile, State, Url
from aegis_control.commands.naming import beginning, the_one
from aegis_control.commands.outcome import done
from aegis_control.commands.tables import print_table
from aegis_control.commands.times import minute

tokens = typer.Typer(help="Tokens with which agents enrol.", no_args_is_help=True)

_MARKER: Final = "aegis_et_"


@tokens.command("create", epilog="Example: aegis-control enroll-token create --name lab-1")
def create_token(
    ttl_secs: Annotated[
        int, typer.Option(min=10, max=30 * 86_400, help="How long it is good.")
    ] = 3600,
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


@tokens.command("list", epilog="Example: aegis-control enroll-token list --json")
def list_tokens(
    url: Url = None, key_file: KeyFile = None, state_dir: State = None, as_json: Json = False
) -> None:
    """Show the tokens, without their secrets: who used one, and which still are good."""
    found = Asking(url, key_file, state_dir).get("/services/enroll-tokens", EnrollTokenList)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    if not found.tokens:
        typer.echo("There is no token. `aegis-control enroll-token create` makes one.")
        return
    print_table(
        ("ID", "FOR", "MADE", "EXPIRES", "STATE"),
        [
            (row.id, row.name or "any", minute(row.created_at), minute(row.expires_at), _state(row))
            for row in found.tokens
        ],
        whole=("ID", "MADE", "EXPIRES"),
    )


@tokens.command("revoke", epilog="Example: aegis-control enroll-token revoke b6x3o5")
def revoke_token(
    token: Annotated[
        str, typer.Argument(help="The token's id, or enough of its beginning to tell it apart.")
    ],
    url: Url = None,
    key_file: KeyFile = None,
    state_dir: State = None,
    as_json: Json = False,
) -> None:
    """Take a token back. An agent that it enrolled stays."""
    asking = Asking(url, key_file, state_dir)
    begins = beginning(token, _MARKER)
    row = the_one(begins, asking.get("/services/enroll-tokens", EnrollTokenList).tokens)
    if row is None:
        raise TokenNotFound(f"there is no enrolment token {begins}", token_id=begins)
    asking.delete(f"/services/enroll-tokens/{row.id}")
    done({"revoked": row.id}, f"revoked {row.id}", as_json=as_json)


def _state(row: EnrollTokenRow) -> str:
    if row.used_by is not None:
        return f"used by {row.used_by} at {minute(row.used_at)}"
    if row.revoked:
        return "revoked"
    return "expired" if row.expires_at <= time.time() else "good"
