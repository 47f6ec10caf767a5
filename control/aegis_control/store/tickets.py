"""Tickets for event streams: of each only its digest, whose it is, and which stream it opens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control.store.tables import event_tickets


async def add(
    conn: AsyncConnection,
    digest: bytes,
    identity: Mapping[str, Any],
    stream: str,
    *,
    expires_at: float,
) -> None:
    await conn.execute(
        insert(event_tickets).values(
            digest=digest, identity=dict(identity), stream=stream, expires_at=expires_at
        )
    )


async def take(
    conn: AsyncConnection, digest: bytes, stream: str, *, now_s: float
) -> Mapping[str, Any] | None:
    """Use a ticket up and return whose it was; None when it does not open `stream` (any more)."""
    statement = (
        delete(event_tickets)
        .where(
            event_tickets.c.digest == digest,
            event_tickets.c.stream == stream,
            event_tickets.c.expires_at > now_s,
        )
        .returning(event_tickets.c.identity)
    )
    found: Mapping[str, Any] | None = (await conn.execute(statement)).scalar_one_or_none()
    return found


async def forget(conn: AsyncConnection, *, now_s: float) -> int:
    """Delete what has expired; returns how many."""
    statement = delete(event_tickets).where(event_tickets.c.expires_at <= now_s)
    return (await conn.execute(statement)).rowcount
