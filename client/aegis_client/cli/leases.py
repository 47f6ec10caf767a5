"""lease take, lease renew, lease release, lease list."""

from __future__ import annotations

from typing import Annotated

import typer

from aegis_client.cli import options
from aegis_client.cli.options import Json

lease_app = typer.Typer(
    help="Hold a board for a time: nobody else's jobs get it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

For = Annotated[
    int, typer.Option("--for", min=1, max=7 * 86_400, metavar="S", help="Seconds to hold it.")
]
Word = Annotated[str, typer.Argument(metavar="LEASE", help="A lease's id, or its board's.")]


def register(app: typer.Typer) -> None:
    app.add_typer(lease_app, name="lease")


@lease_app.command()
def take(
    board: Annotated[
        str | None, typer.Argument(metavar="[BOARD]", help="A board's id; see `espctl boards`.")
    ] = None,
    chip: options.Chip = None,
    label: options.Labels = None,
    agent: options.Agent = None,
    for_secs: For = 1800,
    wait: Annotated[
        int, typer.Option("--wait", min=0, max=86_400, metavar="S", help="Seconds in the queue.")
    ] = 0,
    note: Annotated[
        str, typer.Option("--note", metavar="TEXT", help="What for; operators see it.")
    ] = "",
    as_json: Json = False,
) -> int:
    """
    Hold a board; your jobs get it, and no other's.

    Example: espctl lease take bench-p4 --for 3600 --wait 600
    """
    from aegis_client.cli import leases_work

    return leases_work.take(
        board,
        chip=chip,
        labels=label or [],
        agent=agent,
        for_secs=for_secs,
        wait_secs=wait,
        note=note,
        as_json=as_json,
    )


@lease_app.command()
def renew(lease: Word, for_secs: For = 1800, as_json: Json = False) -> int:
    """
    Hold a board for so long from now.

    Example: espctl lease renew bench-p4 --for 3600
    """
    from aegis_client.cli import leases_work

    return leases_work.renew(lease, for_secs=for_secs, as_json=as_json)


@lease_app.command()
def release(lease: Word, as_json: Json = False) -> int:
    """
    Give a board back, or leave the queue for it.

    Example: espctl lease release bench-p4
    """
    from aegis_client.cli import leases_work

    return leases_work.release(lease, as_json=as_json)


@lease_app.command("list")
def list_leases(as_json: Json = False) -> int:
    """
    Show who holds which board, until when, and who waits.

    Example: espctl lease list
    """
    from aegis_client.cli import leases_work

    return leases_work.list_leases(as_json=as_json)
