"""
The grants with what became of them. One that opened a connection is a session until that closes.

An agent tells when a connection opened and closed. What it could not tell while its link was down
it says in its next `hello`; a session ends with its job in any case.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from aegis_protocol.actions import Action
from sqlalchemy import ColumnElement, Row, Select, and_, bindparam, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control.store.jobs import LIVE
from aegis_control.store.tables import agents, grants, jobs, keys, offers, revocations

_OPENED: Final = (
    update(grants)
    .where(grants.c.jti == bindparam("grant"), grants.c.opened_at.is_(None))
    .values(opened_at=bindparam("now"))
)


async def opened(conn: AsyncConnection, jti: str, *, now_s: float) -> None:
    """The grant's connection is open; once more changes nothing."""
    await conn.execute(_OPENED, {"grant": jti, "now": now_s})


async def closed(
    conn: AsyncConnection, jti: str, agent_id: str, code: str | None, *, now_s: float
) -> bool:
    """The connection is closed; False when none was open at this agent."""
    statement = (
        update(grants)
        .where(
            grants.c.jti == jti,
            grants.c.agent_id == agent_id,
            grants.c.opened_at.is_not(None),
            grants.c.closed_at.is_(None),
        )
        .values(closed_at=now_s, closed_code=code)
    )
    return (await conn.execute(statement)).rowcount > 0


async def only(
    conn: AsyncConnection, job_id: str, agent_id: str, jtis: Collection[str], *, now_s: float
) -> None:
    """Of the job's connections at this agent, only those of `jtis` are open still."""
    await conn.execute(
        update(grants)
        .where(
            grants.c.job_id == job_id,
            grants.c.agent_id == agent_id,
            grants.c.opened_at.is_not(None),
            grants.c.closed_at.is_(None),
            grants.c.jti.not_in(list(jtis)),
        )
        .values(closed_at=now_s)
    )


async def any_may(conn: AsyncConnection, job_id: str, actions: Collection[Action]) -> bool:
    """Tell whether a connection of the job was opened that may do one of `actions`."""
    statement = select(grants.c.actions).where(
        grants.c.job_id == job_id, grants.c.opened_at.is_not(None)
    )
    granted = (await conn.execute(statement)).scalars()
    return any(not {str(action) for action in actions}.isdisjoint(may or ()) for may in granted)


async def count(conn: AsyncConnection) -> int:
    """How many sessions live."""
    statement = select(func.count()).select_from(grants.join(jobs)).where(_live())
    return int((await conn.execute(statement)).scalar_one())


async def rows(
    conn: AsyncConnection,
    *,
    limit: int,
    live: bool = False,
    job_id: str | None = None,
    identity: str | None = None,
    agent: str | None = None,
) -> tuple[Row[Any], ...]:
    """
    The newest grants first, each with its job, agent and offer.

    live    only those whose connection is open
    agent   an id or a name
    """
    statement = _joined().order_by(grants.c.at.desc(), grants.c.jti.desc()).limit(limit)
    if live:
        statement = statement.where(_live())
    if job_id is not None:
        statement = statement.where(grants.c.job_id == job_id)
    if identity is not None:
        statement = statement.where(grants.c.identity == identity)
    if agent is not None:
        statement = statement.where(or_(grants.c.agent_id == agent, agents.c.name == agent))
    return tuple(await conn.execute(statement))


async def one(conn: AsyncConnection, jti: str) -> Row[Any] | None:
    """One of `rows`."""
    row: Row[Any] | None = (await conn.execute(_joined().where(grants.c.jti == jti))).one_or_none()
    return row


def _joined() -> Select[Any]:
    return select(
        grants,
        offers.c.at.label("offered_at"),
        agents.c.name.label("agent_name"),
        jobs.c.state.label("job_state"),
        jobs.c.ends_at,
        _revoked_at().label("revoked_at"),
    ).select_from(
        grants.join(jobs)
        .outerjoin(offers, offers.c.jti == grants.c.jti)
        .outerjoin(agents, agents.c.id == grants.c.agent_id)
        .outerjoin(keys, keys.c.id == grants.c.identity)
    )


def _revoked_at() -> ColumnElement[Any]:
    """When the grant, its job or its key was revoked; its connection may be open a moment more."""
    hit = or_(
        and_(revocations.c.kind == "grant", revocations.c.what == grants.c.jti),
        and_(revocations.c.kind == "job", revocations.c.what == grants.c.job_id),
    )
    own = select(func.min(revocations.c.at)).where(hit).correlate(grants).scalar_subquery()
    return func.coalesce(own, keys.c.revoked_at)


def _live() -> ColumnElement[bool]:
    return and_(
        grants.c.opened_at.is_not(None),
        grants.c.closed_at.is_(None),
        jobs.c.state.in_(LIVE),
        jobs.c.agent_id == grants.c.agent_id,
    )
