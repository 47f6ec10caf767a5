"""`keys`: the API keys, and what each may do."""

from __future__ import annotations

import time
from typing import Annotated, Final

import typer
from aegis_protocol.actions import Role
from aegis_protocol.failures.http import KeyNotFound
from aegis_protocol.http_api.keys import KeyList, KeyMade, KeyRequest, KeyRow

from aegis_control import key_limits
from aegis_control.commands.asking import Asking, Json, KeyFile, State, Url
from aegis_control.commands.naming import beginning, the_one
from aegis_control.commands.outcome import done
from aegis_control.commands.tables import print_table
from aegis_control.commands.times import ago, minute, seconds_until
from aegis_control.identity import LIMIT_KINDS

keys = typer.Typer(help="API keys.", no_args_is_help=True)

_MARKER: Final = "aegis_sk_"
_COLUMNS: Final = ("ID", "ROLE", "NAME", "MADE", "EXPIRES", "LAST ASKED", "STATE", "LIMITS")


@keys.command(
    "create",
    epilog="Example: aegis-control keys create --role builder --name ci --expires 90d"
    " --limit targets=esp32p4,esp32c6 --limit jobs=2",
)
def create(
    role: Annotated[Role, typer.Option(help="What the key may do.")],
    name: Annotated[str, typer.Option(help="Whose it is, for the list.")] = "",
    expires: Annotated[
        str | None, typer.Option(help="When it ends: 12h, 30d, 2027-01-31. Default: never.")
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(help=f"KIND=WORD,WORD, several times; kinds: {', '.join(LIMIT_KINDS)}."),
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
            expires_in_secs=None if expires is None else _life_s(expires),
            limits=key_limits.from_words(limit or []),
        ),
        KeyMade,
    )
    typer.echo(made.model_dump_json(indent=2) if as_json else made.key)


@keys.command("list", epilog="Example: aegis-control keys list aegis_sk_b6x3")
def list_keys(
    prefix: Annotated[
        str, typer.Argument(help="Only keys that begin so, with or without aegis_sk_.")
    ] = "",
    url: Url = None,
    key_file: KeyFile = None,
    state_dir: State = None,
    as_json: Json = False,
) -> None:
    """Show the keys, without their secrets."""
    begins = beginning(prefix, _MARKER) if prefix else ""
    found = _found(Asking(url, key_file, state_dir), begins)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    if not found.keys:
        typer.echo("There is no such key.")
        return
    print_table(_COLUMNS, [_row(key) for key in found.keys], whole=("ID", "MADE", "EXPIRES"))


@keys.command("revoke", epilog="Example: aegis-control keys revoke aegis_sk_b6x3")
def revoke(
    key: Annotated[
        str, typer.Argument(help="The key's id, or enough of its beginning to tell it apart.")
    ],
    url: Url = None,
    key_file: KeyFile = None,
    state_dir: State = None,
    as_json: Json = False,
) -> None:
    """Take a key back."""
    asking = Asking(url, key_file, state_dir)
    begins = beginning(key, _MARKER)
    row = the_one(begins, _found(asking, begins).keys)
    if row is None:
        raise KeyNotFound(f"there is no key {begins}", key_id=begins)
    asking.delete(f"/services/keys/{row.id}")
    words = f"revoked {row.id}" + (f" ({row.name})" if row.name else "")
    done({"revoked": row.id, "name": row.name}, words, as_json=as_json)


def _row(row: KeyRow) -> tuple[str, ...]:
    return (
        row.id,
        str(row.role),
        row.name,
        minute(row.created_at),
        minute(row.expires_at, none="never"),
        ago(row.asked_at),
        _state(row),
        " ".join(f"{kind}={','.join(words)}" for kind, words in row.limits.items()),
    )


def _state(row: KeyRow) -> str:
    if row.revoked:
        return "revoked"
    over = row.expires_at is not None and row.expires_at <= time.time()
    return "expired" if over else "good"


def _life_s(expires: str) -> int:
    return seconds_until(expires, option="--expires")


def _found(asking: Asking, begins: str) -> KeyList:
    return asking.get("/services/keys" + (f"?prefix={begins}" if begins else ""), KeyList)
