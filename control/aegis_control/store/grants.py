"""The grants that were signed: for whom, for which job, at which agent. Never the grant itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from aegis_protocol.grant import GrantClaims
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control.acting import actor
from aegis_control.store.tables import grants
from aegis_control.store.written_last import add_last

_ADD: Final = insert(grants)


@dataclass(frozen=True)
class GrantRecord:
    """
    at, expires_at         unix seconds; a connection that it opened lives longer
    source                 the address that asked for it
    opened_at, closed_at   of its connection, as its agent told
    closed_code            the error that closed it, where one did
    """

    jti: str
    job_id: str
    agent_id: str
    identity: str
    at: float
    expires_at: float
    channels: Sequence[str] | None = None
    actions: Sequence[str] | None = None
    source: str | None = None
    opened_at: float | None = None
    closed_at: float | None = None
    closed_code: str | None = None


def add(conn: AsyncConnection, claims: GrantClaims) -> None:
    """Keep a grant, at the transaction's end."""
    add_last(
        conn,
        _ADD,
        {
            "jti": claims.jti,
            "job_id": claims.job_id,
            "agent_id": claims.aud,
            "identity": claims.sub,
            "at": claims.iat,
            "expires_at": claims.exp,
            "channels": list(claims.webrtc.allowed_channels),
            "actions": [str(action) for action in claims.actions],
            "source": actor().source,
        },
    )


async def get(conn: AsyncConnection, jti: str) -> GrantRecord | None:
    row = (await conn.execute(select(grants).where(grants.c.jti == jti))).one_or_none()
    return None if row is None else GrantRecord(**row._mapping)


async def recent(
    conn: AsyncConnection, identity: str | None, *, limit: int
) -> tuple[GrantRecord, ...]:
    """The newest first; None: everybody's."""
    statement = select(grants).order_by(grants.c.at.desc(), grants.c.jti.desc()).limit(limit)
    if identity is not None:
        statement = statement.where(grants.c.identity == identity)
    return tuple(GrantRecord(**row._mapping) for row in await conn.execute(statement))
