"""Who holds which board, and the fencing number of each holding: every one is higher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aegis_protocol.failures.board import BoardBusy
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control.store.tables import board_fences


async def hold(
    conn: AsyncConnection, agent_id: str, board_ids: Sequence[str], job_id: str
) -> Mapping[str, int]:
    """
    Take all of `board_ids` for `job_id`; returns the fencing number of each.

    Raises BoardBusy when another job holds one of them: roll the transaction back.
    """
    fences: dict[str, int] = {}
    for board_id in sorted(board_ids):
        known = (board_fences.c.agent_id == agent_id) & (board_fences.c.board_id == board_id)
        taken = await conn.execute(
            update(board_fences)
            .where(known, board_fences.c.job_id.is_(None))
            .values(job_id=job_id, fence=board_fences.c.fence + 1)
            .returning(board_fences.c.fence)
        )
        fence = taken.scalar_one_or_none()
        if fence is None:
            found = await conn.execute(select(board_fences.c.job_id).where(known))
            if found.one_or_none() is not None:
                raise BoardBusy(f"board {board_id} is held by another job", board_id=board_id)
            fence = 1
            await conn.execute(
                insert(board_fences).values(
                    agent_id=agent_id, board_id=board_id, fence=fence, job_id=job_id
                )
            )
        fences[board_id] = fence
    return fences


async def release(conn: AsyncConnection, job_id: str) -> int:
    """Give back what `job_id` holds; returns how many boards that were."""
    statement = update(board_fences).where(board_fences.c.job_id == job_id).values(job_id=None)
    return (await conn.execute(statement)).rowcount


async def holders(conn: AsyncConnection) -> Mapping[tuple[str, str], str]:
    """Return (agent id, board id) to the job that holds it."""
    statement = select(
        board_fences.c.agent_id, board_fences.c.board_id, board_fences.c.job_id
    ).where(board_fences.c.job_id.is_not(None))
    return {
        (agent_id, board_id): job_id for agent_id, board_id, job_id in await conn.execute(statement)
    }
