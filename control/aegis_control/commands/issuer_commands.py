"""`issuer`: the keys that sign grants."""

from __future__ import annotations

import typer
from aegis_protocol.http_api.issuer import IssuerKeyList

from aegis_control.commands.asking import Asking, Json, KeyFile, State, Url
from aegis_control.commands.tables import print_table
from aegis_control.commands.times import second

app = typer.Typer(help="The keys that sign grants.", no_args_is_help=True)


@app.command("list", epilog="Example: aegis-control issuer list")
def list_keys(
    url: Url = None, key_file: KeyFile = None, state_dir: State = None, as_json: Json = False
) -> None:
    """Show the issuer's keys, oldest first: which one signs, and whose grants are valid."""
    _show(Asking(url, key_file, state_dir).get("/services/issuer", IssuerKeyList), as_json=as_json)


@app.command("rotate", epilog="Example: aegis-control issuer rotate")
def rotate(
    url: Url = None, key_file: KeyFile = None, state_dir: State = None, as_json: Json = False
) -> None:
    """
    Make a new key, signed by the present one: agents follow by themselves, nothing is restarted.

    What was signed with the key before stays valid until the next rotation.
    """
    asking = Asking(url, key_file, state_dir)
    _show(asking.post("/services/issuer/rotate", None, IssuerKeyList), as_json=as_json)


def _show(found: IssuerKeyList, *, as_json: bool) -> None:
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    print_table(
        ("KEY", "STATE", "MADE", "SIGNED BY"),
        [(row.kid, row.state, second(row.made_at), row.prev_kid or "") for row in found.keys],
    )
