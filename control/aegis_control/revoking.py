"""
Taking a permission back: of a grant, of a job, of a key.

What is revoked is kept first; then whichever replica has the agent's link tells it, and it says
when that is done. An agent without a link is told first thing in its next `welcome`. Revoking ends
connections, not work: what runs finishes, and its results are kept. What never began is canceled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from aegis_protocol.control_link import JobRevoke, KeyRevoke, Revocations
from aegis_protocol.failures.agent import SessionRevoked
from aegis_protocol.failures.http import AgentOffline, GrantNotFound, JobOver, KeyNotFound
from aegis_protocol.states import JobState, ended
from sqlalchemy.exc import DBAPIError

from aegis_control.acting import actor
from aegis_control.agent_rounds import AgentRounds
from aegis_control.bus import EVERYTHING
from aegis_control.hub import set_within
from aegis_control.jobs import Change, Jobs, not_found
from aegis_control.link.registry import Links
from aegis_control.log import get_logger
from aegis_control.store import grants, jobs, keys, revocations
from aegis_control.store.audit import Act, record
from aegis_control.store.database import Database
from aegis_control.store.jobs import LIVE, JobRecord
from aegis_control.store.revocations import Kind, RevocationRecord

log = get_logger("revoking")

_LOOK_S: Final = 5.0
"""A word on the bus can be lost: so often every link here is looked at without one."""
_NOTHING_RUNS: Final = (JobState.PENDING, JobState.ASSIGNED)


class Revoking:
    def __init__(self, database: Database, ledger: Jobs, links: Links) -> None:
        self._database = database
        self._ledger = ledger
        self._links = links
        self._rounds = AgentRounds(self._tell, on_failure=_failed, look_s=_LOOK_S)
        self._waiting: set[asyncio.Event] = set()
        database.bus.subscribe("revocation", self.look_at)

    async def grant(self, jti: str, reason: str) -> tuple[RevocationRecord, ...]:
        """Close the connection that this grant opened, and accept it no more. GrantNotFound."""
        async with self._ledger.change() as change:
            found = await grants.get(change.conn, jti)
            if found is None:
                raise GrantNotFound(f"there is no grant {jti}", jti=jti)
            item = JobRevoke(job_id=found.job_id, jti=jti, reason=reason)
            await revocations.add(
                change.conn,
                found.agent_id,
                item,
                kind="grant",
                what=jti,
                job_id=found.job_id,
                by=actor().who,
                now_s=change.now_s,
            )
            await _note(change, "grant.revoked", reason, job_id=found.job_id, jti=jti)
        return await self._told_of("grant", jti)

    async def job(self, job_id: str, reason: str) -> tuple[RevocationRecord, ...]:
        """
        Close the job's connections and grant no more for it; one that did not begin is canceled.

        Raises JobNotFound, JobOver.
        """
        async with self._ledger.change() as change:
            job = await jobs.get(change.conn, job_id)
            if job is None:
                raise not_found(job_id)
            if ended(job.state):
                raise JobOver(f"the job is {job.state} already", job_id=job_id)
            if job.agent_id is not None:
                await revocations.add(
                    change.conn,
                    job.agent_id,
                    JobRevoke(job_id=job_id, reason=reason),
                    kind="job",
                    what=job_id,
                    job_id=job_id,
                    by=actor().who,
                    now_s=change.now_s,
                )
            await _cancel(change, [job], reason)
            await _note(change, "job.revoked", reason, job_id=job_id)
        return await self._told_of("job", job_id)

    async def key(self, key_id: str, reason: str) -> tuple[RevocationRecord, ...]:
        """
        Take a key back; its connections are closed, its jobs that did not begin canceled.

        Raises KeyNotFound.
        """
        async with self._ledger.change() as change:
            if not await keys.revoke(change.conn, key_id, now_s=change.now_s):
                raise KeyNotFound(f"there is no key {key_id}", key_id=key_id)
            own = [
                job
                for job in await jobs.in_states(change.conn, (JobState.PENDING, *LIVE))
                if job.identity == key_id
            ]
            for agent_id in sorted({job.agent_id for job in own if job.agent_id is not None}):
                await revocations.add(
                    change.conn,
                    agent_id,
                    KeyRevoke(identity=key_id, reason=reason),
                    kind="key",
                    what=key_id,
                    job_id=None,
                    by=actor().who,
                    now_s=change.now_s,
                )
            await _cancel(change, own, reason)
            await _note(change, "key.revoked", reason, key_id=key_id)
        return await self._told_of("key", key_id)

    async def settled(
        self, kind: Kind, what: str, *, within_s: float
    ) -> tuple[RevocationRecord, ...]:
        """Wait until every agent that has to has carried it out; return how far that has come."""
        until = time.monotonic() + within_s
        changed = asyncio.Event()
        self._waiting.add(changed)
        try:
            while True:
                changed.clear()
                found = await self._of(kind, what)
                left_s = until - time.monotonic()
                if all(one.done for one in found) or not await set_within(changed, left_s):
                    return found
        finally:
            self._waiting.discard(changed)

    def look_at(self, agent_id: str) -> None:
        """Have `run` look what that agent is still to be told."""
        self._rounds.tell(agent_id)
        for event in self._waiting:
            event.set()

    async def run(self, stopping: asyncio.Event) -> None:
        """Tell the agents whose links are here, until `stopping` is set and `look_at` after it."""
        await self._rounds.run(stopping)

    async def _tell(self, told: set[str]) -> None:
        links = self._links.own()
        here = [a for a in links if a in told or EVERYTHING in told]
        if not here:
            return
        async with self._database.read() as conn:
            for agent_id, after in (await revocations.behind(conn, here)).items():
                items, through = await revocations.since(conn, agent_id, after)
                try:
                    links[agent_id].send(Revocations(revocations=items, through=through))
                except AgentOffline:
                    continue  # its next welcome says it

    async def _told_of(self, kind: Kind, what: str) -> tuple[RevocationRecord, ...]:
        found = await self._of(kind, what)
        log.warning("permission.revoked", kind=kind, what=what, agents=[o.agent_id for o in found])
        return found

    async def _of(self, kind: Kind, what: str) -> tuple[RevocationRecord, ...]:
        async with self._database.read() as conn:
            return await revocations.of(conn, kind, what)


async def _cancel(change: Change, own: Sequence[JobRecord], reason: str) -> None:
    """Cancel those of `own` in which nothing runs."""
    for job in own:
        if job.state in _NOTHING_RUNS:
            why = SessionRevoked(reason or "an operator took the permission back")
            await change.move(job.id, JobState.CANCELED, error=why)


def _failed(exc: DBAPIError) -> None:
    log.error("revocations.failed", detail=str(exc.orig))


async def _note(
    change: Change, what: str, reason: str, *, job_id: str | None = None, **facts: str
) -> None:
    act = Act(what=what, job_id=job_id, facts={"reason": reason, **facts})
    await record(change.conn, act, now_s=change.now_s)
