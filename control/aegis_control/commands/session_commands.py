"""`list-grants` and `list-sessions`: who was let to which agent, and who is there now."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias
from urllib.parse import urlencode

import typer
from aegis_protocol.http_api.sessions import GrantList, GrantRow, SessionList, SessionRow

from aegis_control.commands.asking import Asking, Json, KeyFile, State, Url
from aegis_control.commands.tables import print_table
from aegis_control.commands.times import ago, minute

Job: TypeAlias = Annotated[str, typer.Option("--job", help="Only of this job.")]
Who: TypeAlias = Annotated[str, typer.Option("--who", help="Only of this identity: a key's id.")]
Agent: TypeAlias = Annotated[str, typer.Option("--agent", help="Only there: a name or an id.")]
Limit: TypeAlias = Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")]


def list_grants(
    job: Job = "",
    who: Who = "",
    agent: Agent = "",
    limit: Limit = 50,
    url: Url = None,
    key_file: KeyFile = None,
    state_dir: State = None,
    as_json: Json = False,
) -> None:
    """Show the grants that were issued, newest first, and what became of each."""
    path = _path("/services/grants", job, who, agent, limit)
    found = Asking(url, key_file, state_dir).get(path, GrantList)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    if not found.grants:
        typer.echo("There is no such grant.")
        return
    print_table(
        ("GRANT", "ISSUED", "WHO", "FROM", "AGENT", "JOB", "CHANNELS", "STATE"),
        [(row.jti, minute(row.issued_at), *_of(row), _state(row)) for row in found.grants],
        whole=("GRANT", "JOB", "ISSUED"),
    )


def list_sessions(
    job: Job = "",
    who: Who = "",
    agent: Agent = "",
    limit: Limit = 200,
    url: Url = None,
    key_file: KeyFile = None,
    state_dir: State = None,
    as_json: Json = False,
) -> None:
    """Show the connections between clients and agents that are open now."""
    path = _path("/services/sessions", job, who, agent, limit)
    found = Asking(url, key_file, state_dir).get(path, SessionList)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    if not found.sessions:
        typer.echo("No connection is open.")
        return
    print_table(
        ("GRANT", "OPEN SINCE", "WHO", "FROM", "AGENT", "JOB", "CHANNELS", "UNTIL"),
        [(row.jti, ago(row.opened_at), *_of(row), _until(row)) for row in found.sessions],
        whole=("GRANT", "JOB", "OPEN SINCE"),
    )


def _until(row: SessionRow) -> str:
    return minute(row.ends_at) if row.revoked_at is None else "revoked, pending at the agent"


def _of(row: GrantRow | SessionRow) -> tuple[str, ...]:
    agent = row.agent_name or row.agent_id
    return row.identity, row.source or "", agent, row.job_id, " ".join(row.channels)


def _state(row: GrantRow) -> str:
    match row.state:
        case "open":
            pending = " (revoked, pending at the agent)" if row.revoked_at is not None else ""
            return f"open since {minute(row.opened_at)}{pending}"
        case "closed":
            when = "" if row.closed_at is None else f" {minute(row.closed_at)}"
            return f"closed{when}" + (f": {row.code}" if row.code else "")
        case _:
            return row.state


def _path(base: str, job: str, who: str, agent: str, limit: int) -> str:
    given: dict[str, Any] = {"limit": limit}
    given |= {k: v for k, v in (("job", job), ("identity", who), ("agent", agent)) if v}
    return f"{base}?{urlencode(given)}"
