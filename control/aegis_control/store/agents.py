"""
Enrolled agents: their keys, names, link epochs, and what they last said of themselves.

Every change is told as `agent`, but for when one was last heard.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aegis_protocol.control_link import Hello
from aegis_protocol.states import Order
from sqlalchemy import Row, bindparam, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control.bus import tell
from aegis_control.store.tables import agents

MAX_REASON: Final = 200

_SKEW: Final = "skew_s"
"""Beside what the agent said of itself."""

_ONE: Final = select(agents).where(agents.c.id == bindparam("agent"))


@dataclass(frozen=True)
class AgentRecord:
    """
    ordered        what stands ordered of it, with the reason in words
    ordered_until  draining: when what still runs is canceled (unix seconds); None: never
    resets         how often it was reset: what it remembers of an older number is void
    arrivals       its last hellos: at, instance, address (see `link.clones`)
    cloned         two processes have its key, as far as a quarantine says so
    skew_s         its clock less ours when it linked up last; None where that is not known
    """

    id: str
    name: str
    public_key: bytes
    link_epoch: int
    last_seen: float | None
    hello: Hello | None
    ordered: Order = Order.NONE
    ordered_reason: str = ""
    ordered_until: float | None = None
    resets: int = 0
    arrivals: tuple[Mapping[str, Any], ...] = ()
    cloned: bool = False
    revoked_at: float | None = None
    revoked_reason: str = ""
    skew_s: float | None = None


async def get(conn: AsyncConnection, agent_id: str) -> AgentRecord | None:
    row = (await conn.execute(_ONE, {"agent": agent_id})).one_or_none()
    return None if row is None else _record(row)


async def lock(conn: AsyncConnection, agent_id: str) -> AgentRecord | None:
    """As `get`; nobody else writes the row until the transaction ends."""
    statement = select(agents).where(agents.c.id == agent_id).with_for_update()
    row = (await conn.execute(statement)).one_or_none()
    return None if row is None else _record(row)


async def named(conn: AsyncConnection, name: str) -> AgentRecord | None:
    row = (await conn.execute(select(agents).where(agents.c.name == name))).one_or_none()
    return None if row is None else _record(row)


async def every(conn: AsyncConnection) -> tuple[AgentRecord, ...]:
    """All agents, by name."""
    return tuple(_record(row) for row in await conn.execute(select(agents).order_by(agents.c.name)))


async def some(conn: AsyncConnection, ids: Collection[str] | None) -> Mapping[str, AgentRecord]:
    """The agents of these ids (None: all), by id."""
    statement = select(agents)
    if ids is not None:
        statement = statement.where(agents.c.id.in_(ids))
    return {row.id: _record(row) for row in await conn.execute(statement)}


async def enroll(
    conn: AsyncConnection, agent_id: str, name: str, public_key: bytes, *, now_s: float
) -> None:
    """Add an agent, or give a known one its new name. The name must be free."""
    renamed = await conn.execute(update(agents).where(agents.c.id == agent_id).values(name=name))
    if renamed.rowcount == 0:
        await conn.execute(
            insert(agents).values(
                id=agent_id, name=name, public_key=public_key, enrolled_at=now_s, link_epoch=0
            )
        )
    await tell(conn, "agent", agent_id)


async def rename(conn: AsyncConnection, agent_id: str, name: str) -> None:
    """The name must be free."""
    await conn.execute(update(agents).where(agents.c.id == agent_id).values(name=name))
    await tell(conn, "agent", agent_id)


async def begin_link(
    conn: AsyncConnection, agent_id: str, hello: Hello, *, now_s: float
) -> int | None:
    """Keep `hello` and return the link's epoch, one higher; None when nobody enrolled it."""
    statement = (
        update(agents)
        .where(agents.c.id == agent_id)
        .values(
            link_epoch=agents.c.link_epoch + 1,
            revoked_through=hello.revoked_through,
            last_seen=now_s,
            hello=hello.model_dump(mode="json", exclude={"signature", "jobs"})
            | {"signature": "", "jobs": [], _SKEW: hello.clock - now_s},
        )
        .returning(agents.c.link_epoch)
    )
    epoch: int | None = (await conn.execute(statement)).scalar_one_or_none()
    await tell(conn, "agent", agent_id)
    return epoch


async def seen(conn: AsyncConnection, times: Mapping[str, float]) -> None:
    """Write when each agent was last heard, in one batch; what is newer stays."""
    if times:
        statement = (
            update(agents)
            .where(agents.c.id == bindparam("agent"), agents.c.last_seen < bindparam("at"))
            .values(last_seen=bindparam("at"))
        )
        await conn.execute(statement, [{"agent": a, "at": at} for a, at in times.items()])


async def set_ordered(
    conn: AsyncConnection,
    agent_id: str,
    ordered: Order,
    reason: str,
    *,
    until_s: float | None = None,
) -> AgentRecord | None:
    """
    Keep what is ordered of an agent; it holds until the next order. None when it isn't enrolled.

    until_s  draining: when what still runs is canceled
    """
    return await _order(
        conn,
        agent_id,
        {"ordered": ordered, "ordered_reason": reason[:MAX_REASON], "ordered_until": until_s},
    )


async def reset(conn: AsyncConnection, agent_id: str) -> AgentRecord | None:
    """Take every order back, and have the agent forget what it ordered of itself."""
    lifted: dict[str, Any] = {
        "ordered": Order.NONE,
        "ordered_reason": "",
        "ordered_until": None,
        "arrivals": [],
        "cloned": False,
    }
    return await _order(conn, agent_id, lifted | {"resets": agents.c.resets + 1})


async def set_arrivals(
    conn: AsyncConnection, agent_id: str, arrivals: Sequence[Mapping[str, Any]], *, cloned: bool
) -> None:
    """Keep an agent's last hellos, and whether two processes were seen to have its key."""
    await conn.execute(
        update(agents)
        .where(agents.c.id == agent_id)
        .values(arrivals=[dict(arrival) for arrival in arrivals], cloned=cloned)
    )


async def revoke(conn: AsyncConnection, agent_id: str, reason: str, *, now_s: float) -> None:
    """Take the agent's key back. Only `remove` undoes it."""
    values = {
        "revoked_at": func.coalesce(agents.c.revoked_at, now_s),
        "revoked_reason": reason[:MAX_REASON],
    }
    await _order(conn, agent_id, values)


async def remove(conn: AsyncConnection, agent_id: str) -> bool:
    """Forget an agent, and its link with it; tells whether it was there."""
    await tell(conn, "agent", agent_id)
    await tell(conn, "link", agent_id)
    return (await conn.execute(delete(agents).where(agents.c.id == agent_id))).rowcount > 0


async def quarantined_itself(
    conn: AsyncConnection, agent_id: str, reason: str, *, resets: int
) -> bool:
    """
    Keep that the agent took itself out of service; False when that is known, or no more true.

    resets  how many the agent had heard of when it said so
    """
    statement = (
        update(agents)
        .where(
            agents.c.id == agent_id,
            agents.c.resets <= resets,
            agents.c.ordered != Order.QUARANTINED,
        )
        .values(ordered=Order.QUARANTINED, ordered_reason=reason[:MAX_REASON], ordered_until=None)
    )
    return (await conn.execute(statement)).rowcount > 0


async def _order(
    conn: AsyncConnection, agent_id: str, values: Mapping[str, Any]
) -> AgentRecord | None:
    await tell(conn, "agent", agent_id)
    statement = update(agents).where(agents.c.id == agent_id).values(**values)
    row = (await conn.execute(statement.returning(*agents.c))).one_or_none()
    return None if row is None else _record(row)


def _record(row: Row[Any]) -> AgentRecord:
    return AgentRecord(
        id=row.id,
        name=row.name,
        public_key=row.public_key,
        link_epoch=row.link_epoch,
        last_seen=row.last_seen,
        hello=None if row.hello is None else Hello.model_validate(row.hello),
        ordered=Order(row.ordered),
        ordered_reason=row.ordered_reason,
        ordered_until=row.ordered_until,
        resets=row.resets,
        arrivals=tuple(row.arrivals or ()),
        cloned=row.cloned,
        revoked_at=row.revoked_at,
        revoked_reason=row.revoked_reason,
        skew_s=None if row.hello is None else row.hello.get(_SKEW),
    )
