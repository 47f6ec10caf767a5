"""
What was revoked at which agent: numbered in commit order, so that a cursor says how far one is.

A change is told as `revocation`, with the agent's id.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from aegis_protocol.control_link import Revocation
from pydantic import TypeAdapter
from sqlalchemy import Row, and_, bindparam, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control.bus import tell
from aegis_control.store.locks import Lock, locked
from aegis_control.store.tables import agents, jobs, revocations

Kind: TypeAlias = Literal["grant", "job", "key"]

MOST: Final = 400
"""How many are told at once: with their reasons they fit a frame."""

_FEW_IDS: Final = 32
"""As many agents are named in a statement; of more, those that are meant are picked out."""

_JOB: Final = and_(revocations.c.kind == "job", revocations.c.what == bindparam("job"))
_GRANT: Final = and_(revocations.c.kind == "grant", revocations.c.what == bindparam("jti"))
_OF_JOB: Final = select(revocations.c.seq).where(_JOB).limit(1)
_OF_GRANT: Final = select(revocations.c.seq).where(or_(_GRANT, _JOB)).limit(1)

_REVOCATION: Final[TypeAdapter[Revocation]] = TypeAdapter(Revocation)

_BEHIND: Final = (
    select(agents.c.id, agents.c.revoked_through)
    .join(revocations, revocations.c.agent_id == agents.c.id)
    .where(revocations.c.seq > agents.c.revoked_through)
    .distinct()
)


@dataclass(frozen=True)
class RevocationRecord:
    """done: the agent has said that it carried it out."""

    seq: int
    kind: Kind
    what: str
    agent_id: str
    agent_name: str
    job_id: str | None
    reason: str
    by: str
    at: float
    done: bool


async def add(
    conn: AsyncConnection,
    agent_id: str,
    item: Revocation,
    *,
    kind: Kind,
    what: str,
    job_id: str | None,
    by: str,
    now_s: float,
) -> int:
    """Have `agent_id` told of `item`; returns its number."""
    await locked(conn, Lock.REVOCATIONS)
    statement = insert(revocations).values(
        agent_id=agent_id,
        kind=kind,
        what=what,
        job_id=job_id,
        item=item.model_dump(mode="json"),
        reason=item.reason,
        by=by,
        at=now_s,
    )
    added = await conn.execute(statement.returning(revocations.c.seq))
    await tell(conn, "revocation", agent_id)
    return int(added.scalar_one())


async def since(
    conn: AsyncConnection, agent_id: str, after: int
) -> tuple[tuple[Revocation, ...], int]:
    """
    Return what the agent is to be told after `after`, and how far that reaches; `MOST` at once.

    A cursor from beyond the last one is of another store: then it is all of it.
    """
    own = revocations.c.agent_id == agent_id
    last = await conn.execute(select(func.max(revocations.c.seq)).where(own))
    through = last.scalar_one() or 0
    if after > through:
        after = 0
    rows = await conn.execute(
        select(revocations.c.seq, revocations.c.item)
        .where(own, revocations.c.seq > after)
        .order_by(revocations.c.seq)
        .limit(MOST)
    )
    found = list(rows)
    items = tuple(_REVOCATION.validate_python(row.item) for row in found)
    return items, found[-1].seq if found else through


async def behind(conn: AsyncConnection, agent_ids: Collection[str]) -> Mapping[str, int]:
    """Those of `agent_ids` that have something left to carry out, and how far each has come."""
    few = len(agent_ids) <= _FEW_IDS
    statement = _BEHIND.where(agents.c.id.in_(agent_ids)) if few else _BEHIND
    wanted = set(agent_ids)
    rows = await conn.execute(statement)
    return {row.id: row.revoked_through for row in rows if row.id in wanted}


async def done(conn: AsyncConnection, agent_id: str, through: int) -> None:
    """The agent has carried out all `through` there."""
    statement = update(agents).where(agents.c.id == agent_id).values(revoked_through=through)
    await conn.execute(statement)
    await tell(conn, "revocation", agent_id)


async def is_revoked(conn: AsyncConnection, jti: str, job_id: str) -> bool:
    """Tell whether this grant, or its whole job, was revoked."""
    found = await conn.execute(_OF_GRANT, {"jti": jti, "job": job_id})
    return found.first() is not None


async def is_job_revoked(conn: AsyncConnection, job_id: str) -> bool:
    return (await conn.execute(_OF_JOB, {"job": job_id})).first() is not None


async def recent(conn: AsyncConnection, *, limit: int) -> tuple[RevocationRecord, ...]:
    """The newest first."""
    rows = await conn.execute(_WITH_CURSOR.order_by(revocations.c.seq.desc()).limit(limit))
    return tuple(_record(row) for row in rows)


async def of_job(conn: AsyncConnection, job_id: str) -> tuple[RevocationRecord, ...]:
    """What was taken back of a job, newest first: itself, its grants, its owner's key there."""
    of_key = (
        select(revocations.c.seq)
        .join(jobs, jobs.c.id == job_id)
        .where(
            revocations.c.kind == "key",
            revocations.c.what == jobs.c.identity,
            revocations.c.agent_id == jobs.c.agent_id,
        )
    )
    own = or_(revocations.c.job_id == job_id, revocations.c.seq.in_(of_key))
    rows = await conn.execute(_WITH_CURSOR.where(own).order_by(revocations.c.seq.desc()))
    return tuple(_record(row) for row in rows)


async def of(conn: AsyncConnection, kind: Kind, what: str) -> tuple[RevocationRecord, ...]:
    """Those of one thing, oldest first."""
    own = and_(revocations.c.kind == kind, revocations.c.what == what)
    rows = await conn.execute(_WITH_CURSOR.where(own).order_by(revocations.c.seq))
    return tuple(_record(row) for row in rows)


async def forget(conn: AsyncConnection, *, before_s: float) -> int:
    """Delete those from before `before_s`; returns how many."""
    return (await conn.execute(delete(revocations).where(revocations.c.at < before_s))).rowcount


_WITH_CURSOR: Final = select(revocations, agents.c.revoked_through, agents.c.name).select_from(
    revocations.outerjoin(agents, agents.c.id == revocations.c.agent_id)
)


def _record(row: Row[Any]) -> RevocationRecord:
    return RevocationRecord(
        seq=row.seq,
        kind=row.kind,
        what=row.what,
        agent_id=row.agent_id,
        agent_name=row.name or "",
        job_id=row.job_id,
        reason=row.reason,
        by=row.by,
        at=row.at,
        # an agent that is not enrolled any more has no connection left
        done=row.revoked_through is None or row.revoked_through >= row.seq,
    )
