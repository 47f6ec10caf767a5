"""`keys` and `enroll-token`: who may come in."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from aegis_protocol.actions import Role
from aegis_protocol.failures.http import BadRequest
from aegis_protocol.http_api import (
    EnrollTokenMade,
    EnrollTokenRequest,
    KeyList,
    KeyMade,
    KeyRequest,
)
from rich.console import Console
from rich.table import Table

from aegis_control.commands.asking import Asking, Json, KeyFile, State, Url
from aegis_control.identity import LIMIT_KINDS

keys = typer.Typer(help="API keys.", no_args_is_help=True)
tokens = typer.Typer(help="Tokens with which agents enrol.", no_args_is_help=True)


@keys.command("create")
def create(
    role: Annotated[Role, typer.Option(help="What the key may do.")],
    name: Annotated[str, typer.Option(help="Whose it is, for the list.")] = "",
    expires_in_days: Annotated[float | None, typer.Option(min=0.001)] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(help="KIND=WORD, several times; kinds: targets, labels, boards, channels."),
    ] = None,
    url: Url = None,
    key_file: KeyFile = None,
    state_dir: State = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it, this once."""
    made = Asking(url, key_file, state_dir).post(
        "/services/keys",
        KeyRequest(
            role=role,
            name=name[:80],
            expires_in_secs=None if expires_in_days is None else int(expires_in_days * 86_400) or 1,
            limits=_limits(limit or []),
        ),
        KeyMade,
    )
    typer.echo(made.model_dump_json(indent=2) if as_json else made.key)


@keys.command("list")
def list_keys(
    url: Url = None, key_file: KeyFile = None, state_dir: State = None, as_json: Json = False
) -> None:
    """Show the keys, without their secrets."""
    found = Asking(url, key_file, state_dir).get("/services/keys", KeyList)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    table = Table("ID", "ROLE", "NAME", "MADE", "EXPIRES", "STATE", box=None, pad_edge=False)
    for row in found.keys:
        table.add_row(
            row.id,
            str(row.role),
            row.name,
            _day(row.created_at),
            "never" if row.expires_at is None else _day(row.expires_at),
            "revoked" if row.revoked else "good",
        )
    Console().print(table)


@keys.command("revoke")
def revoke(key_id: str, url: Url = None, key_file: KeyFile = None, state_dir: State = None) -> None:
    """Take a key back."""
    Asking(url, key_file, state_dir).delete(f"/services/keys/{key_id}")
    typer.echo(f"revoked {key_id}")


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


def _limits(words: list[str]) -> dict[str, tuple[str, ...]]:
    limits: dict[str, tuple[str, ...]] = {}
    for word in words:
        kind, sign, value = word.partition("=")
        if not sign or kind not in LIMIT_KINDS:
            raise BadRequest(f"--limit {word}: written as targets=esp32p4", field="limit")
        limits[kind] = (*limits.get(kind, ()), value)
    return limits


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
