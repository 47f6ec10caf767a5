"""Leases of boards: in the queue, held, or ended."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aegis_protocol.http_api.leases import LeaseWish
from aegis_protocol.states import LeaseState
from sqlalchemy import Row, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control.bus import tell
from aegis_control.store import boards
from aegis_control.store.tables import board_fences, board_leases

OPEN: Final = (LeaseState.QUEUED, LeaseState.HELD)


@dataclass(frozen=True)
class LeaseRecord:
    """
    limits      of the key that asked, as a job keeps them
    for_s       for how long it is held once it is
    expires_at  queued: when it gives up waiting; held: when it ends
    end         how it ended: released, expired, idle, kicked
    """

    id: str
    identity: str
    state: LeaseState
    wish: LeaseWish
    limits: Mapping[str, Sequence[str]]
    for_s: float
    note: str
    agent_id: str | None
    board_id: str | None
    fence: int | None
    created_at: float
    held_at: float | None
    expires_at: float
    ended_at: float | None
    end: str | None


async def create(
    conn: AsyncConnection,
    lease_id: str,
    identity: str,
    wish: LeaseWish,
    limits: Mapping[str, Sequence[str]],
    *,
    for_s: float,
    note: str,
    now_s: float,
    until_s: float,
) -> LeaseRecord:
    """Put a lease into the queue, until `until_s`."""
    statement = (
        insert(board_leases)
        .values(
            id=lease_id,
            identity=identity,
            state=LeaseState.QUEUED,
            wish=wish.model_dump(mode="json"),
            limits={kind: list(words) for kind, words in limits.items()},
            for_s=for_s,
            note=note,
            created_at=now_s,
            expires_at=until_s,
        )
        .returning(*board_leases.c)
    )
    await tell(conn, "lease", lease_id)
    return _record((await conn.execute(statement)).one())


async def give(
    conn: AsyncConnection, lease: LeaseRecord, agent_id: str, board_id: str, *, now_s: float
) -> LeaseRecord | None:
    """Give a queued lease its board. None when the board, or the lease, is not free for it."""
    fence = await boards.lease(conn, agent_id, board_id, lease.id, lease.identity)
    if fence is None:
        return None
    return await _changed(
        conn,
        lease.id,
        (LeaseState.QUEUED,),
        state=LeaseState.HELD,
        agent_id=agent_id,
        board_id=board_id,
        fence=fence,
        held_at=now_s,
        expires_at=now_s + lease.for_s,
    )


async def extend(conn: AsyncConnection, lease_id: str, *, until_s: float) -> LeaseRecord | None:
    """Let a held lease last until then. None when it is not held."""
    return await _changed(conn, lease_id, (LeaseState.HELD,), expires_at=until_s)


async def end(
    conn: AsyncConnection, lease_id: str, how: str, *, now_s: float
) -> LeaseRecord | None:
    """End a lease, and give its board back. None when it has ended already."""
    ended = await _changed(conn, lease_id, OPEN, state=LeaseState.ENDED, ended_at=now_s, end=how)
    if ended is not None:
        await boards.unlease(conn, lease_id)
    return ended


async def get(conn: AsyncConnection, lease_id: str) -> LeaseRecord | None:
    row = (
        await conn.execute(select(board_leases).where(board_leases.c.id == lease_id))
    ).one_or_none()
    return None if row is None else _record(row)


async def open_ones(
    conn: AsyncConnection, ids: Collection[str] | None
) -> Mapping[str, LeaseRecord]:
    """The leases that have not ended (of these ids), by id."""
    statement = select(board_leases).where(board_leases.c.state.in_(OPEN))
    if ids is not None:
        statement = statement.where(board_leases.c.id.in_(ids))
    rows = (_record(row) for row in await conn.execute(statement))
    return {record.id: record for record in rows}


async def count_open(conn: AsyncConnection, identity: str) -> int:
    statement = select(func.count()).where(
        board_leases.c.identity == identity, board_leases.c.state.in_(OPEN)
    )
    return int((await conn.execute(statement)).scalar_one())


async def unused_since(conn: AsyncConnection) -> Mapping[str, float]:
    """Since when no job has had the board of each held lease; those with a job are left out."""
    statement = (
        select(board_leases.c.id, board_leases.c.held_at, board_fences.c.freed_at)
        .select_from(board_leases.join(board_fences, board_fences.c.lease_id == board_leases.c.id))
        .where(board_leases.c.state == LeaseState.HELD, board_fences.c.job_id.is_(None))
    )
    return {
        lease_id: max(held_at, freed_at or 0.0)
        for lease_id, held_at, freed_at in await conn.execute(statement)
    }


async def forget_ended(conn: AsyncConnection, *, before_s: float) -> int:
    """Delete leases that ended before `before_s`; returns how many."""
    statement = delete(board_leases).where(
        board_leases.c.state == LeaseState.ENDED, board_leases.c.ended_at < before_s
    )
    return (await conn.execute(statement)).rowcount


async def _changed(
    conn: AsyncConnection, lease_id: str, states: Sequence[LeaseState], **values: Any
) -> LeaseRecord | None:
    statement = (
        update(board_leases)
        .where(board_leases.c.id == lease_id, board_leases.c.state.in_(states))
        .values(**values)
        .returning(*board_leases.c)
    )
    row = (await conn.execute(statement)).one_or_none()
    if row is None:
        return None
    await tell(conn, "lease", lease_id)
    return _record(row)


def _record(row: Row[Any]) -> LeaseRecord:
    return LeaseRecord(
        id=row.id,
        identity=row.identity,
        state=LeaseState(row.state),
        wish=LeaseWish.model_validate(row.wish),
        limits=row.limits,
        for_s=row.for_s,
        note=row.note,
        agent_id=row.agent_id,
        board_id=row.board_id,
        fence=row.fence,
        created_at=row.created_at,
        held_at=row.held_at,
        expires_at=row.expires_at,
        ended_at=row.ended_at,
        end=row.end,
    )
