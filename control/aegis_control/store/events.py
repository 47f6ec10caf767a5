"""What the owners of jobs are told, kept for replay. Ids grow, and are never given twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from aegis_protocol.events import SignalEvent
from sqlalchemy import bindparam, delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control.store.tables import job_events

_ADD: Final = insert(job_events)
_AFTER: Final = (
    select(job_events.c.id, job_events.c.type, job_events.c.data)
    .where(job_events.c.job_id == bindparam("job"), job_events.c.id > bindparam("cursor"))
    .order_by(job_events.c.id)
    .limit(bindparam("most"))
)


@dataclass(frozen=True)
class StoredEvent:
    id: int
    type: str
    data: dict[str, Any]


async def add(conn: AsyncConnection, job_id: str, event: SignalEvent, *, now_s: float) -> None:
    data = event.model_dump(mode="json")
    await conn.execute(_ADD, {"job_id": job_id, "type": event.type, "at": now_s, "data": data})


async def after(
    conn: AsyncConnection, job_id: str, cursor: int, *, limit: int
) -> tuple[StoredEvent, ...]:
    """The job's events with an id above `cursor`, oldest first."""
    wanted = {"job": job_id, "cursor": cursor, "most": limit}
    return tuple(StoredEvent(*row) for row in await conn.execute(_AFTER, wanted))


async def since(
    conn: AsyncConnection, job_id: str, types: Sequence[str], *, since_s: float, limit: int
) -> tuple[StoredEvent, ...]:
    """The job's newest events of `types` from `since_s` on, oldest first."""
    statement = (
        select(job_events.c.id, job_events.c.type, job_events.c.data)
        .where(
            job_events.c.job_id == job_id,
            job_events.c.type.in_(types),
            job_events.c.at >= since_s,
        )
        .order_by(job_events.c.id.desc())
        .limit(limit)
    )
    rows = list(await conn.execute(statement))
    return tuple(StoredEvent(row.id, row.type, row.data) for row in reversed(rows))


async def head(conn: AsyncConnection, job_id: str) -> int:
    """The id of the job's newest event; 0 when there is none."""
    statement = select(func.max(job_events.c.id)).where(job_events.c.job_id == job_id)
    return (await conn.execute(statement)).scalar_one() or 0


async def is_lost(conn: AsyncConnection, cursor: int, *, since_s: float) -> bool:
    """Tell whether events after `cursor`, of a job made at `since_s`, may have been forgotten."""
    oldest = select(job_events.c.id, job_events.c.at).order_by(job_events.c.id).limit(1)
    row = (await conn.execute(oldest)).one_or_none()
    return row is not None and cursor < row.id - 1 and since_s < row.at


async def forget(conn: AsyncConnection, *, before_s: float) -> int:
    """Delete events older than `before_s`; returns how many."""
    return (await conn.execute(delete(job_events).where(job_events.c.at < before_s))).rowcount
