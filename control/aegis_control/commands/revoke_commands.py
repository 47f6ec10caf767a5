"""`revoke`: take a permission back, and see whether the agents know."""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from aegis_protocol.http_api.revocations import RevocationList, RevocationRow, RevokeRequest

from aegis_control.commands import agents_commands
from aegis_control.commands.asking import Asking, Json, KeyFile, State, Url
from aegis_control.commands.tables import print_table
from aegis_control.commands.times import second

app = typer.Typer(
    help="Take back grants, jobs, keys. What runs finishes; its connections end at once.",
    no_args_is_help=True,
)

_Reason = Annotated[str, typer.Option(help="What the peers are told.")]


@app.command(
    "grant", epilog="Example: aegis-control revoke grant 01a0c450-71dc-7b12-88bd-b86ccf33cc01"
)
def grant(
    jti: Annotated[str, typer.Argument(help="The grant's id: see `list-grants`.")],
    reason: _Reason = "",
    url: Url = None,
    key_file: KeyFile = None,
    state_dir: State = None,
    as_json: Json = False,
) -> None:
    """
    Close the one connection that a grant opened; the grant is accepted no more.
    """
    _revoke(Asking(url, key_file, state_dir), "grant", jti, reason, as_json=as_json)


@app.command(
    "job",
    epilog='Example: aegis-control revoke job JOB_ID --reason "wrong board"',
)
def job(
    job_id: Annotated[str, typer.Argument(help="The job's id.")],
    reason: _Reason = "",
    url: Url = None,
    key_file: KeyFile = None,
    state_dir: State = None,
    as_json: Json = False,
) -> None:
    """
    Close every connection of a job and grant no more for it; what runs in it finishes.
    """
    _revoke(Asking(url, key_file, state_dir), "job", job_id, reason, as_json=as_json)


@app.command(
    "key", epilog='Example: aegis-control revoke key b6x3o5tq7yfn2wsd --reason "laptop lost"'
)
def key(
    key_id: Annotated[str, typer.Argument(help="The key's id: see `keys list`.")],
    reason: _Reason = "",
    url: Url = None,
    key_file: KeyFile = None,
    state_dir: State = None,
    as_json: Json = False,
) -> None:
    """
    Take a key back, close its connections, cancel its jobs that did not begin.
    """
    _revoke(Asking(url, key_file, state_dir), "key", key_id, reason, as_json=as_json)


app.command("agent", epilog='Example: aegis-control revoke agent lab-1 --reason "stolen"')(
    agents_commands.revoke
)


@app.command("list", epilog="Example: aegis-control revoke list")
def list_revocations(
    url: Url = None, key_file: KeyFile = None, state_dir: State = None, as_json: Json = False
) -> None:
    """
    Show what was revoked, newest first, and at which agent it is still pending.
    """
    _show(Asking(url, key_file, state_dir).get("/services/revocations", RevocationList), as_json)


def _revoke(
    asking: Asking, kind: Literal["grant", "job", "key"], of: str, reason: str, *, as_json: bool
) -> None:
    body = RevokeRequest(kind=kind, id=of, reason=reason[:200])
    found = asking.post("/services/revocations", body, RevocationList)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    if not found.revocations:
        typer.echo(f"revoked {kind} {of}; no agent has anything of it")
    for row in found.revocations:
        typer.echo(f"revoked {kind} {of}, {how_far(row)}")


def how_far(row: RevocationRow) -> str:
    where = row.agent_name or row.agent_id
    if row.state == "done":
        return f"done at {where}"
    return f"pending at {where}: told first when its link is back"


def _show(found: RevocationList, as_json: bool) -> None:
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    if not found.revocations:
        typer.echo("Nothing was revoked.")
        return
    print_table(
        ("WHEN", "WHAT", "AT", "STATE", "BY", "REASON"),
        [
            (
                second(row.at),
                f"{row.kind} {row.id}",
                row.agent_name or row.agent_id,
                row.state,
                row.by,
                row.reason,
            )
            for row in found.revocations
        ],
        whole=("WHEN", "WHAT"),
    )
