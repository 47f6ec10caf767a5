"""Which replica has an agent's link, under which epoch, and what the agent said on it last."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control.store.tables import agent_links, replicas

_IS_CURRENT: Final = select(agent_links.c.epoch).where(
    agent_links.c.agent_id == bindparam("agent"),
    agent_links.c.epoch == bindparam("link_epoch"),
    agent_links.c.ended_at.is_(None),
)


@dataclass(frozen=True)
class LinkRecord:
    """
    facts          see `link.other`
    ended_at       when it ended (the store's clock); None: it lives, as far as its replica does
    replica_seen   when that said last that it lives; None: it is not there any more
    """

    agent_id: str
    replica_id: str
    epoch: int
    facts: Mapping[str, Any]
    ended_at: float | None
    replica_seen: float | None


async def begin(
    conn: AsyncConnection, agent_id: str, replica_id: str, epoch: int, facts: Mapping[str, Any]
) -> None:
    """Make this the agent's link. The epoch is higher than that of any before."""
    values = {"replica_id": replica_id, "epoch": epoch, "facts": dict(facts), "ended_at": None}
    there = await conn.execute(
        update(agent_links).where(agent_links.c.agent_id == agent_id).values(**values)
    )
    if there.rowcount == 0:  # raising the epoch locked the agent's row: nobody else is here
        await conn.execute(insert(agent_links).values(agent_id=agent_id, **values))


async def tell_facts(
    conn: AsyncConnection, agent_id: str, epoch: int, facts: Mapping[str, Any]
) -> bool:
    """Keep what the agent said last; False when a newer link has taken this one's place."""
    statement = update(agent_links).where(*_current(agent_id, epoch)).values(facts=dict(facts))
    return (await conn.execute(statement)).rowcount > 0


async def end(
    conn: AsyncConnection,
    agent_id: str,
    replica_id: str,
    *,
    epoch: int | None = None,
    now_s: float,
) -> bool:
    """The replica's link (of that epoch) ended; False when it was not the newest, or over."""
    statement = (
        update(agent_links)
        .where(
            agent_links.c.agent_id == agent_id,
            agent_links.c.replica_id == replica_id,
            agent_links.c.ended_at.is_(None),
        )
        .values(ended_at=now_s)
    )
    if epoch is not None:
        statement = statement.where(agent_links.c.epoch == epoch)
    return (await conn.execute(statement)).rowcount > 0


async def of_replica(conn: AsyncConnection, replica_id: str) -> tuple[str, ...]:
    """The agents whose links that replica has, as far as the store knows."""
    statement = select(agent_links.c.agent_id).where(
        agent_links.c.replica_id == replica_id, agent_links.c.ended_at.is_(None)
    )
    return tuple((await conn.execute(statement)).scalars())


async def is_current(conn: AsyncConnection, agent_id: str, epoch: int) -> bool:
    """Tell whether the agent's link is the one of this epoch, and not over."""
    link = {"agent": agent_id, "link_epoch": epoch}
    return (await conn.execute(_IS_CURRENT, link)).one_or_none() is not None


async def is_over(conn: AsyncConnection, agent_id: str) -> bool:
    """Tell whether the agent's last link is known to have ended, or it never had one."""
    statement = select(agent_links.c.epoch).where(
        agent_links.c.agent_id == agent_id, agent_links.c.ended_at.is_(None)
    )
    return (await conn.execute(statement)).one_or_none() is None


async def is_up(conn: AsyncConnection, agent_id: str) -> bool:
    """Tell whether the agent has a link, at a replica that is not known to be dead."""
    found = (await look(conn, [agent_id])).get(agent_id)
    return found is not None and found.ended_at is None and found.replica_seen is not None


async def look(
    conn: AsyncConnection, agent_ids: Collection[str] | None = None
) -> Mapping[str, LinkRecord]:
    """The links of these agents (None: of all), also those that ended."""
    statement = select(agent_links, replicas.c.seen_at).outerjoin(
        replicas, replicas.c.id == agent_links.c.replica_id
    )
    if agent_ids is not None:
        statement = statement.where(agent_links.c.agent_id.in_(agent_ids))
    return {
        row.agent_id: LinkRecord(
            row.agent_id, row.replica_id, row.epoch, row.facts, row.ended_at, row.seen_at
        )
        for row in await conn.execute(statement)
    }


async def remove(conn: AsyncConnection, agent_id: str) -> None:
    """Forget the agent's link; whoever has it closes it."""
    await conn.execute(delete(agent_links).where(agent_links.c.agent_id == agent_id))


def _current(agent_id: str, epoch: int) -> tuple[Any, ...]:
    return (
        agent_links.c.agent_id == agent_id,
        agent_links.c.epoch == epoch,
        agent_links.c.ended_at.is_(None),
    )
