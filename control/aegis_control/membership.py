"""
Which machines belong here no longer: an agent is removed, or revoked.

    removed   forgotten: it may enrol again, with a token, under the same key or a new one
    revoked   its key may neither link up nor enrol, until the agent is removed

Either way its jobs have failed, and whichever replica has its link closes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Set
from typing import Final

from aegis_protocol.errors import AegisError
from aegis_protocol.failures.agent import AgentGone
from aegis_protocol.failures.http import AgentNotFound, AgentRevoked, LinkRefused
from aegis_protocol.states import JobState
from sqlalchemy.exc import DBAPIError

from aegis_control.agent_rounds import AgentRounds
from aegis_control.bus import EVERYTHING
from aegis_control.jobs import Change, Jobs
from aegis_control.link.registry import Links
from aegis_control.log import get_logger
from aegis_control.store import agents, audit, jobs
from aegis_control.store.agents import AgentRecord
from aegis_control.store.audit import Act
from aegis_control.store.database import Database
from aegis_control.store.jobs import LIVE
from aegis_control.store.mirror import Mirror

log = get_logger("agents")

_LOOK_S: Final = 60.0


class Membership:
    def __init__(
        self, database: Database, ledger: Jobs, links: Links, records: Mirror[AgentRecord]
    ) -> None:
        self._ledger = ledger
        self._links = links
        self._records = records
        self._rounds = AgentRounds(self._oust, on_failure=_failed, look_s=_LOOK_S)
        database.bus.subscribe("agent", self._rounds.tell)

    async def remove(self, agent: str) -> AgentRecord:
        """Forget an agent. agent: an id or a name, here and below. AgentNotFound."""
        async with self._ledger.change() as change:
            record = await _known(change, agent)
            await _fail_jobs(change, record, "its agent was removed by an operator")
            await agents.remove(change.conn, record.id)
            await _note(change, record, "agent.removed")
        log.info("agent.removed", agent_id=record.id, name=record.name)
        return record

    async def revoke(self, agent: str, *, reason: str) -> AgentRecord:
        """Take an agent's key back; once more changes nothing but the reason. AgentNotFound."""
        async with self._ledger.change() as change:
            record = await _known(change, agent)
            await _fail_jobs(change, record, "its agent was revoked by an operator")
            await agents.revoke(change.conn, record.id, reason, now_s=change.now_s)
            await _note(change, record, "agent.revoked", reason=reason)
        log.warning("agent.revoked", agent_id=record.id, name=record.name, reason=reason)
        return record

    async def run(self, stopping: asyncio.Event) -> None:
        """Close the links here of agents that belong here no longer, until `wake` after a stop."""
        await self._rounds.run(stopping)

    def wake(self) -> None:
        """Have `run` look whether it is to stop."""
        self._rounds.wake()

    async def _oust(self, told: Set[str]) -> None:
        links = self._links.own()
        here = links if EVERYTHING in told else {a: links[a] for a in told if a in links}
        if not here:
            return
        known = await self._records.now()
        for agent_id, link in here.items():
            error = refusal(known.get(agent_id))
            if error is not None:
                link.close(error, cause="removed" if agent_id not in known else "revoked")


def _failed(exc: DBAPIError) -> None:
    log.error("membership.failed", detail=str(exc.orig))


def refusal(record: AgentRecord | None) -> AegisError | None:
    """Why an agent may not link up, if it may not. None: nobody enrolled it, or it was removed."""
    if record is None:
        return LinkRefused("this agent is not enrolled here, or was removed by an operator")
    if record.revoked_at is not None:
        why = f": {record.revoked_reason}" if record.revoked_reason else ""
        return AgentRevoked(f"this agent was revoked by an operator{why}", agent_id=record.id)
    return None


async def _known(change: Change, agent: str) -> AgentRecord:
    record = await agents.get(change.conn, agent) or await agents.named(change.conn, agent)
    if record is None:
        raise AgentNotFound(f"there is no agent {agent}", agent_id=agent)
    return record


async def _fail_jobs(change: Change, record: AgentRecord, why: str) -> None:
    for job in await jobs.in_states(change.conn, LIVE, agent_id=record.id):
        await change.move(job.id, JobState.FAILED, error=AgentGone(why))


async def _note(change: Change, record: AgentRecord, what: str, **facts: str) -> None:
    act = Act(what=what, agent_id=record.id, outcome=record.name, facts=facts)
    await audit.record(change.conn, act, now_s=change.now_s)
