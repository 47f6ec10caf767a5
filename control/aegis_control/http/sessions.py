"""What operators see of grants and of the connections that they opened."""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import Any, Final, Literal

from aegis_protocol.actions import Role
from aegis_protocol.http_api.sessions import GrantList, GrantRow, SessionList, SessionRow
from aegis_protocol.states import JobState
from sqlalchemy import Row

from aegis_control.control import Control
from aegis_control.http.route import Call, Reply, Route
from aegis_control.http.rows import LIMIT, OF, row_limit
from aegis_control.store import sessions
from aegis_control.store.jobs import LIVE

_FILTER_CHARS = 80


async def list_grants(control: Control, call: Call) -> Reply:
    """The newest first, whatever became of them."""
    rows = await _rows(control, call, live=False)
    now_s = time.time()
    return Reply(GrantList(grants=tuple(grant_row(row, now_s=now_s) for row in rows)))


async def list_sessions(control: Control, call: Call) -> Reply:
    """The connections that are open, the newest first."""
    rows = await _rows(control, call, live=True)
    return Reply(
        SessionList(
            sessions=tuple(
                SessionRow(
                    jti=row.jti,
                    job_id=row.job_id,
                    identity=row.identity,
                    agent_id=row.agent_id,
                    agent_name=row.agent_name,
                    channels=tuple(row.channels or ()),
                    source=row.source,
                    opened_at=row.opened_at,
                    revoked_at=row.revoked_at,
                    ends_at=row.ends_at,
                )
                for row in rows
            )
        )
    )


async def _rows(control: Control, call: Call, *, live: bool) -> tuple[Row[Any], ...]:
    query = call.request.query
    given = {name: query[name][:_FILTER_CHARS] for name in _FILTERS if query.get(name)}
    async with control.database.read() as conn:
        return await sessions.rows(
            conn,
            limit=row_limit(call),
            live=live,
            job_id=given.get("job"),
            identity=given.get("identity"),
            agent=given.get("agent"),
        )


_FILTERS = ("job", "identity", "agent")


def grant_row(row: Row[Any], *, now_s: float) -> GrantRow:
    """A grant as an operator sees it."""
    return GrantRow(
        jti=row.jti,
        job_id=row.job_id,
        identity=row.identity,
        agent_id=row.agent_id,
        agent_name=row.agent_name,
        channels=tuple(row.channels or ()),
        actions=tuple(row.actions or ()),
        source=row.source,
        state=_state(row, now_s=now_s),
        issued_at=row.at,
        expires_at=row.expires_at,
        offered_at=row.offered_at,
        opened_at=row.opened_at,
        closed_at=row.closed_at,
        code=row.closed_code,
        revoked_at=row.revoked_at,
    )


def _state(
    row: Row[Any], *, now_s: float
) -> Literal["unused", "expired", "offered", "revoked", "open", "closed"]:
    if row.closed_at is not None:
        return "closed"
    if row.opened_at is not None:
        return "open" if JobState(row.job_state) in LIVE else "closed"
    if row.revoked_at is not None:
        return "revoked"
    if row.offered_at is not None:
        return "offered"
    return "unused" if now_s < row.expires_at else "expired"


ROUTES: Final = (
    Route(
        "GET",
        "/services/grants",
        list_grants,
        "The grants that were issued, newest first, and what became of them.",
        role=Role.OPERATOR,
        queries=(LIMIT, *OF),
        gives={HTTPStatus.OK: GrantList},
        local=True,
    ),
    Route(
        "GET",
        "/services/sessions",
        list_sessions,
        "The connections between clients and agents that are open now.",
        role=Role.OPERATOR,
        queries=(LIMIT, *OF),
        gives={HTTPStatus.OK: SessionList},
        local=True,
    ),
)
