"""
Who has which board, by a job or by a lease, and the fencing number of each holding: every one is
higher. A board that an identity has leased goes to none but its jobs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from aegis_protocol.failures.board import BoardBusy
from sqlalchemy import ColumnElement, bindparam, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control.store.conflicts import add_unless_there
from aegis_control.store.tables import board_fences, board_leases, jobs

BoardKey = tuple[str, str]
"""An agent's id and a board's."""

_RELEASE: Final = (
    update(board_fences)
    .where(board_fences.c.job_id == bindparam("job"))
    .values(job_id=None, freed_at=bindparam("now"), kicked=None)
)
_HOLDINGS: Final = (
    select(
        board_fences.c.agent_id,
        board_fences.c.board_id,
        board_fences.c.job_id,
        board_fences.c.lease_id,
        board_fences.c.lease_identity,
        board_leases.c.expires_at,
    )
    .select_from(board_fences.outerjoin(board_leases, board_leases.c.id == board_fences.c.lease_id))
    .where(or_(board_fences.c.job_id.is_not(None), board_fences.c.lease_id.is_not(None)))
)


@dataclass(frozen=True)
class LeaseHolding:
    lease_id: str
    identity: str
    until_s: float


@dataclass(frozen=True)
class Holdings:
    """jobs: the job that has a board. leases: who has one by a lease; it may be both."""

    jobs: Mapping[BoardKey, str]
    leases: Mapping[BoardKey, LeaseHolding]


@dataclass(frozen=True)
class Kicked:
    """A job is to give a board back: the holding up to `fence` is void."""

    board_id: str
    fence: int
    force: bool


async def hold(
    conn: AsyncConnection, agent_id: str, board_ids: Sequence[str], job_id: str, identity: str
) -> Mapping[str, int]:
    """
    Take all of `board_ids` for `job_id`; returns the fencing number of each.

    Raises BoardBusy when another job holds one of them, or another identity has leased it: roll
    the transaction back.
    """
    fences: dict[str, int] = {}
    for board_id in sorted(board_ids):
        free = (board_fences.c.job_id.is_(None)) & or_(
            board_fences.c.lease_id.is_(None), board_fences.c.lease_identity == identity
        )
        fence = await _taken(conn, agent_id, board_id, free, {"job_id": job_id})
        if fence is None:
            raise BoardBusy(f"board {board_id} is held by another", board_id=board_id)
        fences[board_id] = fence
    return fences


async def release(conn: AsyncConnection, job_id: str, *, now_s: float) -> int:
    """Give back what `job_id` holds; returns how many boards that were."""
    return (await conn.execute(_RELEASE, {"job": job_id, "now": now_s})).rowcount


async def lease(
    conn: AsyncConnection, agent_id: str, board_id: str, lease_id: str, identity: str
) -> int | None:
    """
    Give a board to a lease and return its fencing number.

    None when another lease has it, or a job of another identity.
    """
    own_jobs = select(jobs.c.id).where(jobs.c.identity == identity)
    free = (board_fences.c.lease_id.is_(None)) & or_(
        board_fences.c.job_id.is_(None), board_fences.c.job_id.in_(own_jobs)
    )
    return await _taken(
        conn, agent_id, board_id, free, {"lease_id": lease_id, "lease_identity": identity}
    )


async def unlease(conn: AsyncConnection, lease_id: str) -> None:
    await conn.execute(
        update(board_fences)
        .where(board_fences.c.lease_id == lease_id)
        .values(lease_id=None, lease_identity=None)
    )


async def kick(
    conn: AsyncConnection, agent_id: str, board_id: str, *, force: bool
) -> tuple[Kicked, str] | None:
    """
    Void the present holding of a board by a job; returns what its agent is to be told, and the
    job. None when no job has it. It is told again at each link until the job has ended.
    """
    known = (board_fences.c.agent_id == agent_id) & (board_fences.c.board_id == board_id)
    statement = (
        update(board_fences)
        .where(known, board_fences.c.job_id.is_not(None))
        .values(kicked="force" if force else "soft")
        .returning(board_fences.c.fence, board_fences.c.job_id)
    )
    row = (await conn.execute(statement)).one_or_none()
    return None if row is None else (Kicked(board_id, row.fence, force), row.job_id)


async def kicked(conn: AsyncConnection, agent_id: str) -> tuple[Kicked, ...]:
    """The boards of an agent that its jobs are still to give back."""
    statement = select(board_fences.c.board_id, board_fences.c.fence, board_fences.c.kicked).where(
        board_fences.c.agent_id == agent_id, board_fences.c.kicked.is_not(None)
    )
    return tuple(
        Kicked(board_id, fence, word == "force")
        for board_id, fence, word in await conn.execute(statement)
    )


async def holdings(conn: AsyncConnection) -> Holdings:
    """Who has what, in one look."""
    by_job: dict[BoardKey, str] = {}
    by_lease: dict[BoardKey, LeaseHolding] = {}
    for agent_id, board_id, job_id, lease_id, identity, until_s in await conn.execute(_HOLDINGS):
        if job_id is not None:
            by_job[agent_id, board_id] = job_id
        if lease_id is not None:
            by_lease[agent_id, board_id] = LeaseHolding(lease_id, identity, until_s or 0.0)
    return Holdings(by_job, by_lease)


async def _taken(
    conn: AsyncConnection,
    agent_id: str,
    board_id: str,
    free: ColumnElement[bool],
    values: dict[str, str],
) -> int | None:
    """Set `values` on the board if it is `free`, with the next fencing number."""
    known = (board_fences.c.agent_id == agent_id) & (board_fences.c.board_id == board_id)
    take = (
        update(board_fences)
        .where(known, free)
        .values(**values, fence=board_fences.c.fence + 1)
        .returning(board_fences.c.fence)
    )
    fence: int | None = (await conn.execute(take)).scalar_one_or_none()
    row = {"agent_id": agent_id, "board_id": board_id, "fence": 0}
    if fence is None:  # it is not free, or was never held; who holds it first just now commits
        await add_unless_there(conn, board_fences, row)
        fence = (await conn.execute(take)).scalar_one_or_none()
    return fence
