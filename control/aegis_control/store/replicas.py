"""The processes that serve this store, and when each last said that it lives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control.store.tables import agent_links, replicas

BEAT_S: Final = 2.0
"""How often a replica says that it lives."""

DEAD_S: Final = 10.0
"""One that said nothing for so long is dead."""


@dataclass(frozen=True)
class ReplicaRecord:
    """Times are the store's (`clock`). alive: it said so within `DEAD_S`."""

    id: str
    name: str
    version: str
    address: str
    started_at: float
    seen_at: float
    alive: bool


async def join(
    conn: AsyncConnection,
    replica_id: str,
    *,
    name: str,
    version: str,
    address: str,
    alone: bool,
    now_s: float,
) -> None:
    """
    Add a replica; alone: there can be no other.

    When no other lives, agents have been without a link from now on: whatever time passed while
    nobody served them is not held against their jobs.
    """
    others = await every(conn, now_s=now_s)
    if alone or not any(other.alive for other in others):
        await conn.execute(delete(replicas))
        await conn.execute(update(agent_links).values(ended_at=now_s))
    await conn.execute(
        insert(replicas).values(
            id=replica_id,
            name=name[:120],
            version=version[:40],
            address=address[:200],
            started_at=now_s,
            seen_at=now_s,
        )
    )


async def beat(conn: AsyncConnection, replica_id: str, *, now_s: float) -> bool:
    """Say that the replica lives; False when it was given up as dead in the meantime."""
    statement = update(replicas).where(replicas.c.id == replica_id).values(seen_at=now_s)
    return (await conn.execute(statement)).rowcount > 0


async def leave(conn: AsyncConnection, replica_id: str, *, now_s: float) -> tuple[str, ...]:
    """Take a replica out; returns the agents that had their links there."""
    await conn.execute(delete(replicas).where(replicas.c.id == replica_id))
    return await _end_links(conn, replica_id, now_s)


async def bury(
    conn: AsyncConnection, *, now_s: float
) -> tuple[tuple[ReplicaRecord, tuple[str, ...]], ...]:
    """
    Take out every replica that is dead; returns each with the agents that had their links there.

    Those links ended when it was last seen. Of several who bury at once, one gets to.
    """
    found: list[tuple[ReplicaRecord, tuple[str, ...]]] = []
    for record in await every(conn, now_s=now_s):
        if record.alive:
            continue
        gone = await conn.execute(
            delete(replicas).where(replicas.c.id == record.id, replicas.c.seen_at == record.seen_at)
        )
        if gone.rowcount:
            found.append((record, await _end_links(conn, record.id, record.seen_at)))
    return tuple(found)


async def every(conn: AsyncConnection, *, now_s: float) -> tuple[ReplicaRecord, ...]:
    """All that are known, the oldest first; one that died is here until it is buried."""
    rows = await conn.execute(select(replicas).order_by(replicas.c.started_at, replicas.c.id))
    return tuple(
        ReplicaRecord(
            id=row.id,
            name=row.name,
            version=row.version,
            address=row.address,
            started_at=row.started_at,
            seen_at=row.seen_at,
            alive=now_s - row.seen_at < DEAD_S,
        )
        for row in rows
    )


async def _end_links(conn: AsyncConnection, replica_id: str, at_s: float) -> tuple[str, ...]:
    statement = (
        update(agent_links)
        .where(agent_links.c.replica_id == replica_id, agent_links.c.ended_at.is_(None))
        .values(ended_at=at_s)
        .returning(agent_links.c.agent_id)
    )
    return tuple((await conn.execute(statement)).scalars())
