"""`issuer`: the keys that sign grants."""

from __future__ import annotations

import time

import typer
from aegis_protocol.http_api import IssuerKeyList
from rich.console import Console
from rich.table import Table

from aegis_control.commands.asking import Asking, Json, KeyFile, State, Url

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
    table = Table("KEY", "STATE", "MADE", "SIGNED BY", box=None, pad_edge=False)
    for row in found.keys:
        made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.made_at))
        table.add_row(row.kid, row.state, made, row.prev_kid or "")
    Console().print(table)
