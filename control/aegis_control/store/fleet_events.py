"""What `GET /events` tells, kept for a day for those who come back."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from sqlalchemy import Text, bindparam, cast, delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control.store.tables import fleet_events

_NEXT: Final = (
    select(
        fleet_events.c.id,
        fleet_events.c.type,
        fleet_events.c.identity,
        fleet_events.c.targets,
        fleet_events.c.project_key,
        fleet_events.c.board_id,
        cast(fleet_events.c.data, Text).label("data"),  # as it is kept, not read
    )
    .where(fleet_events.c.id > bindparam("after"))
    .order_by(fleet_events.c.id)
    .limit(bindparam("most"))
)


@dataclass(frozen=True, slots=True)
class Announced:
    """As in `announcing.announce`; data: JSON, without a line break."""

    id: int
    type: str
    identity: str | None
    targets: frozenset[str]
    project_key: str | None
    board_id: str | None
    data: str

    def text(self) -> bytes:
        """What a listener is sent."""
        return f"id: {self.id}\nevent: {self.type}\ndata: {self.data}\n\n".encode()


async def after(conn: AsyncConnection, cursor: int, *, limit: int) -> tuple[Announced, ...]:
    """The events with an id above `cursor`, oldest first."""
    return tuple(
        Announced(
            row.id,
            sys.intern(row.type),
            row.identity,
            _targets(tuple(row.targets)),
            row.project_key,
            row.board_id,
            row.data,
        )
        for row in await conn.execute(_NEXT, {"after": cursor, "most": limit})
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


@lru_cache(maxsize=256)
def _targets(names: tuple[str, ...]) -> frozenset[str]:
    """The same set for the same names: most agents have the same targets."""
    return frozenset(names)
