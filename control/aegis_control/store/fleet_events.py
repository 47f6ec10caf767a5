"""What `GET /events` tells, kept for a day for those who come back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control.store.tables import fleet_events


@dataclass(frozen=True)
class Announced:
    """As in `announcing.announce`."""

    id: int
    type: str
    identity: str | None
    targets: frozenset[str]
    project_key: str | None
    board_id: str | None
    data: Mapping[str, Any]


async def after(conn: AsyncConnection, cursor: int, *, limit: int) -> tuple[Announced, ...]:
    """The events with an id above `cursor`, oldest first."""
    statement = (
        select(fleet_events)
        .where(fleet_events.c.id > cursor)
        .order_by(fleet_events.c.id)
        .limit(limit)
    )
    return tuple(
        Announced(
            row.id,
            row.type,
            row.identity,
            frozenset(row.targets),
            row.project_key,
            row.board_id,
            row.data,
        )
        for row in await conn.execute(statement)
    )


async def bounds(conn: AsyncConnection) -> tuple[int, int]:
    """The ids of the oldest and the newest event; zeros when there never was one."""
    statement = select(func.min(fleet_events.c.id), func.max(fleet_events.c.id))
    oldest, newest = (await conn.execute(statement)).one()
    return oldest or 0, newest or 0


async def forget(conn: AsyncConnection, *, before_s: float) -> int:
    """Delete events from before `before_s`, but for the newest of all; returns how many."""
    _, newest = await bounds(conn)
    statement = delete(fleet_events).where(fleet_events.c.at < before_s, fleet_events.c.id < newest)
    return (await conn.execute(statement)).rowcount
