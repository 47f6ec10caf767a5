"""`lease`: who holds which board, and taking one back."""

from __future__ import annotations

from typing import Annotated, Final
from urllib.parse import quote

import typer
from aegis_protocol.failures.board import LeaseNotFound
from aegis_protocol.http_api.leases import Lease, LeaseList
from aegis_protocol.states import LeaseState

from aegis_control.commands.asking import Asking, Json, KeyFile, State, Url
from aegis_control.commands.tables import print_table
from aegis_control.commands.times import minute

leases = typer.Typer(help="Leases of boards.", no_args_is_help=True)

_COLUMNS: Final = ("ID", "BOARD", "AGENT", "STATE", "HOLDER", "UNTIL", "FENCE", "NOTE")


@leases.command("list", epilog="Example: aegis-control lease list --json")
def list_leases(
    url: Url = None, key_file: KeyFile = None, state_dir: State = None, as_json: Json = False
) -> None:
    """Show who holds which board until when, and who waits for one."""
    found = Asking(url, key_file, state_dir).get("/leases", LeaseList)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    elif not found.leases:
        typer.echo("No board is leased.")
    else:
        print_table(_COLUMNS, [_row(lease) for lease in found.leases], whole=("ID", "UNTIL"))


@leases.command("kick", epilog="Example: aegis-control lease kick bench-p4")
def kick(
    lease: Annotated[str, typer.Argument(metavar="LEASE", help="Its id, or the board's.")],
    force: Annotated[
        bool, typer.Option("--force", help="In the middle of a flash too: the board needs another.")
    ] = False,
    url: Url = None,
    key_file: KeyFile = None,
    state_dir: State = None,
    as_json: Json = False,
) -> None:
    """End a lease. A job that uses the board ends too, after the flash that is being written."""
    asking = Asking(url, key_file, state_dir)
    lease_id = _id_of(asking, lease)
    ended = asking.delete_for(f"/leases/{quote(lease_id, safe='')}?force={int(force)}", Lease)
    if as_json:
        typer.echo(ended.model_dump_json(indent=2))
    else:
        typer.echo(f"{ended.board_id or 'a place in the queue'} was taken from {ended.holder}")


def _id_of(asking: Asking, word: str) -> str:
    """A board's lease is meant before anybody's wish for it."""
    open_ones = asking.get("/leases", LeaseList).leases
    for lease in sorted(open_ones, key=lambda lease: lease.state is not LeaseState.HELD):
        if word in (lease.id, lease.board_id):
            return lease.id
    raise LeaseNotFound(
        f"there is no lease {word}",
        remedy="`aegis-control lease list` shows the leases there are.",
        lease=word,
    )


def _row(lease: Lease) -> tuple[str, ...]:
    wish = lease.wish.board
    labels = [f"{name}={value}" for name, value in wish.labels.items()]
    wanted = " ".join(word for word in (wish.id, wish.chip, *labels) if word) or "any"
    queued = lease.state is LeaseState.QUEUED
    why = "; ".join(reason.detail for reason in lease.reasons)
    return (
        lease.id,
        lease.board_id or f"wants {wanted}",
        lease.agent_name or "",
        f"{lease.state}, {lease.position} before" if queued else str(lease.state),
        lease.holder,
        minute(lease.expires_at),
        "" if lease.fence is None else str(lease.fence),
        "; ".join(word for word in (lease.note, why) if word),
    )
