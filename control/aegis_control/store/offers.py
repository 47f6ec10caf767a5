"""Offers that were passed on: which grant belongs to which job, and how many candidates it sent."""

from __future__ import annotations

from typing import Final, Literal

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control.store.conflicts import add_unless_there
from aegis_control.store.tables import offers

MAX_CANDIDATES: Final = 32

_OFFERED: Final = select(offers.c.jti).where(
    offers.c.jti == bindparam("jti"),
    offers.c.job_id == bindparam("job"),
    offers.c.agent_id == bindparam("agent"),
)


async def add(conn: AsyncConnection, jti: str, job_id: str, agent_id: str, *, now_s: float) -> None:
    """Note an offer; the same one again changes nothing."""
    offer = {"jti": jti, "job_id": job_id, "agent_id": agent_id, "at": now_s}
    await add_unless_there(conn, offers, offer | {"client_candidates": 0, "agent_candidates": 0})


async def exists(conn: AsyncConnection, jti: str, job_id: str, agent_id: str) -> bool:
    """Tell whether `jti` was offered to this agent for this job."""
    offer = {"jti": jti, "job": job_id, "agent": agent_id}
    return (await conn.execute(_OFFERED, offer)).one_or_none() is not None


async def latest(conn: AsyncConnection, job_id: str) -> str | None:
    """The grant that was offered last for the job."""
    statement = (
        select(offers.c.jti)
        .where(offers.c.job_id == job_id)
        .order_by(offers.c.at.desc(), offers.c.jti.desc())
        .limit(1)
    )
    return (await conn.execute(statement)).scalar_one_or_none()


async def count(conn: AsyncConnection, job_id: str) -> int:
    statement = select(func.count()).where(offers.c.job_id == job_id)
    return int((await conn.execute(statement)).scalar_one())


async def add_candidate(
    conn: AsyncConnection, jti: str, job_id: str, side: Literal["client", "agent"]
) -> bool:
    """Count one candidate of `side`; False when it had sent all that it may, or knows no offer."""
    column = offers.c.client_candidates if side == "client" else offers.c.agent_candidates
    statement = (
        update(offers)
        .where(offers.c.jti == jti, offers.c.job_id == job_id, column < MAX_CANDIDATES)
        .values({column: column + 1})
    )
    return (await conn.execute(statement)).rowcount > 0
