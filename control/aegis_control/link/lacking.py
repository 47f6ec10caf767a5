"""
What becomes of a job when its agent came back without it: the agent's machine or process was new.

    it may have been writing to a board   it has failed: `board.in_doubt`
    this was its third attempt            it has failed: `agent.gone`
    its client waits for it here          it is pending again, and its attempt one higher
    otherwise                             it is lost; `deadlines` asks around, then decides

Nothing runs anew by itself: control gives a slot, and the client says what to do with it.
"""

from __future__ import annotations

from typing import Final

from aegis_protocol.actions import Action
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.agent import AgentGone
from aegis_protocol.failures.board import BoardInDoubt
from aegis_protocol.states import JobState
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control.jobs import Change
from aegis_control.store import jobs, sessions
from aegis_control.store.jobs import JobRecord

MOST_ATTEMPTS: Final = 3
"""A job that its agents lost so often is what takes them down, as likely as not."""
_WRITES: Final = frozenset({Action.BOARD_FLASH, Action.CONSOLE_WRITE})


async def settle_lacking(change: Change, job: JobRecord, *, waited_for: bool) -> None:
    """
    Move `job`, which is running or lost, though its agent has it no more.

    waited_for  its client is here, and no older process of the agent can be alive
    """
    await sessions.only(change.conn, job.id, job.agent_id or "", (), now_s=change.now_s)
    why_not = await _why_not_again(change.conn, job)
    if why_not is not None:
        await change.move(job.id, JobState.FAILED, error=why_not)
        return
    gone = AgentGone("the agent came back without the job", agent_id=job.agent_id)
    if job.state is not JobState.LOST:
        await change.move(job.id, JobState.LOST, error=gone)
    elif not job.lacked:
        await jobs.set_lacked(change.conn, job.id, gone.body(), now_s=change.now_s)
    if waited_for:
        await change.move(job.id, JobState.PENDING)


async def _why_not_again(conn: AsyncConnection, job: JobRecord) -> AegisError | None:
    if job.boards and await sessions.any_may(conn, job.id, _WRITES):
        board = min(job.boards)
        return BoardInDoubt(
            f"the agent lost the job, which may have been writing to {board}",
            board_id=board,
            agent_id=job.agent_id,
        )
    if job.attempt >= MOST_ATTEMPTS:
        return AgentGone(
            f"the agent came back without the job, which was placed {job.attempt} times",
            attempts=job.attempt,
        )
    return None
