"""
Frames on their way to agents whose link another replica has.

Whoever has the agent's newest link takes them; a replica whose link is of an older epoch gets none.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from aegis_protocol.control_link import TO_AGENT, ToAgent
from sqlalchemy import delete, exists, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control.store.tables import agent_frames, agent_links

KEEP_S: Final = 60.0
"""A frame that nobody took for so long is void; the agent's next hello sets things right."""


async def add(conn: AsyncConnection, agent_id: str, frame: ToAgent, *, now_s: float) -> None:
    await conn.execute(
        insert(agent_frames).values(
            agent_id=agent_id, frame=frame.model_dump(mode="json"), at=now_s
        )
    )


async def take(
    conn: AsyncConnection, agent_id: str, epoch: int, *, now_s: float
) -> tuple[ToAgent, ...]:
    """Take the agent's frames, oldest first, if its newest link is of this epoch."""
    newest = exists().where(
        agent_links.c.agent_id == agent_id,
        agent_links.c.epoch == epoch,
        agent_links.c.ended_at.is_(None),
    )
    statement = (
        delete(agent_frames)
        .where(agent_frames.c.agent_id == agent_id, newest)
        .returning(agent_frames.c.id, agent_frames.c.frame, agent_frames.c.at)
    )
    rows = sorted(await conn.execute(statement), key=lambda row: row.id)
    return tuple(TO_AGENT.validate_python(row.frame) for row in rows if now_s - row.at < KEEP_S)


async def waiting(conn: AsyncConnection, agent_ids: Collection[str]) -> frozenset[str]:
    """Of these agents, those for whom there are frames."""
    found = await conn.execute(select(agent_frames.c.agent_id).distinct())
    return frozenset(found.scalars()) & frozenset(agent_ids)


async def forget(conn: AsyncConnection, *, now_s: float) -> int:
    """Delete what nobody took in time; returns how many frames."""
    statement = delete(agent_frames).where(agent_frames.c.at < now_s - KEEP_S)
    return (await conn.execute(statement)).rowcount
