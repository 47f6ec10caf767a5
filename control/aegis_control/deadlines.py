"""
What time alone does to jobs: one loop that looks every second.

    pending   its client is away, or it waits too long  expired
    assigned  nobody connected in time                 pending again, once; then expired
    any live  its time is over and the agent is mute   expired, and the agent is told
    any live  its agent's link is down too long        lost
    lost      for too long                             failed
    lost      and its agent came back without it       pending again if its client waits, or failed

After the store was away every grace begins afresh: meanwhile nobody could be heard. The agent ends
a job by its time itself; here it is only caught when it did not.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from aegis_protocol.control_link import JobCancel
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.agent import AgentGone, SessionOver
from aegis_protocol.failures.http import AgentOffline, JobTimedOut
from aegis_protocol.states import IllegalMove, JobState
from sqlalchemy.exc import DBAPIError

from aegis_control.hub import set_within
from aegis_control.jobs import Jobs
from aegis_control.link.link import Link
from aegis_control.link.orders import Orders
from aegis_control.link.registry import Links
from aegis_control.log import get_logger
from aegis_control.presence import Presence
from aegis_control.store import (
    agents,
    clock,
    events,
    fleet_events,
    idempotency,
    jobs,
    keys,
    revocations,
    tickets,
)
from aegis_control.store.database import Database
from aegis_control.store.jobs import LIVE, JobRecord
from aegis_control.store.mirror import Mirror

log = get_logger("deadlines")

_LOOK_S: Final = 1.0
_SEEN_EVERY_S: Final = 5.0
_SEEN_STEP_S: Final = 30.0
"""By so much `last_seen` has to have moved for it to be written while the link is up."""
_NOTE_EVERY_S: Final = 5.0
_NOTED: Final = (JobState.PENDING, JobState.LOST)
_FORGET_EVERY_S: Final = 600.0
_SPARE_S: Final = 60.0
"""How long after a job's end the agent has to say so itself."""
_ASK_AROUND_S: Final = 12.0
"""So long every replica has to note whose client it has, and an older process of an agent, which
has a job that a newer one lacks, to come back with it."""
_KEEP_EVENTS_S: Final = 24 * 3600.0
_KEEP_JOBS_S: Final = 30 * 24 * 3600.0
_KEEP_TOKENS_S: Final = 7 * 24 * 3600.0
"""So that a list still shows who used one."""


@dataclass(frozen=True)
class Graces:
    absent_after_s: float
    max_wait_s: float
    connect_grace_s: float
    lost_after_s: float
    failed_after_s: float


@dataclass(frozen=True)
class Due:
    """A move that a job's time has come for."""

    job_id: str
    to: JobState
    error: AegisError | None = None


def due(
    job: JobRecord,
    graces: Graces,
    *,
    now_s: float,
    absent_s: float,
    waits: bool,
    agent_down_s: float,
    store_up_s: float = math.inf,
) -> Due | None:
    """
    Return what is due for a job that is pending or live, if anything is.

    absent_s, waits  for how long its client was not there, and whether it counts as waiting
    store_up_s       for how long the store has answered: before, neither clients nor agents could
                     be heard, and no grace has run
    """
    since_s = min(now_s - job.updated_at, store_up_s)
    absent_s, agent_down_s = min(absent_s, store_up_s), min(agent_down_s, store_up_s)
    unmet_s = min(now_s - (job.assigned_at or now_s), store_up_s)
    match job.state:
        case JobState.PENDING if absent_s > graces.absent_after_s:
            why = "; ".join(reason.detail for reason in job.reasons) or "no agent was free"
            left = JobTimedOut(f"its client went away while it waited: {why}")
            return Due(job.id, JobState.EXPIRED, left)
        case JobState.PENDING if since_s > graces.max_wait_s:
            why = "; ".join(map(str, job.reasons)) or "no agent was free"
            return Due(job.id, JobState.EXPIRED, JobTimedOut(f"it has waited too long: {why}"))
        case JobState.ASSIGNED if unmet_s > graces.connect_grace_s:
            if job.returns:
                never = JobTimedOut("nobody connected to it, twice")
                return Due(job.id, JobState.EXPIRED, never)
            return Due(job.id, JobState.PENDING)
        case JobState.LOST if job.lacked:
            if since_s <= min(_ASK_AROUND_S, graces.lost_after_s):
                return None
            if waits:
                return Due(job.id, JobState.PENDING)
            gone = AgentGone("the agent came back without the job, and nobody waited for it")
            return Due(job.id, JobState.FAILED, gone)
        case JobState.LOST if since_s > graces.failed_after_s:
            return Due(job.id, JobState.FAILED, AgentGone("its agent did not come back"))
    if job.state not in LIVE:
        return None
    if job.ends_at is not None and now_s > job.ends_at + _SPARE_S:
        return Due(job.id, JobState.EXPIRED, SessionOver("the job's time is over"))
    if job.state is not JobState.LOST and agent_down_s > graces.lost_after_s:
        return Due(job.id, JobState.LOST)
    return None


class Deadlines:
    def __init__(
        self,
        database: Database,
        open_jobs: Mirror[JobRecord],
        ledger: Jobs,
        links: Links,
        orders: Orders,
        presence: Presence,
        graces: Graces,
    ) -> None:
        self._database = database
        self._open_jobs = open_jobs
        self._ledger = ledger
        self._links = links
        self._orders = orders
        self._presence = presence
        self._graces = graces
        self._note_every_s = min(_NOTE_EVERY_S, graces.absent_after_s / 4)
        self._noted_at = 0.0
        self._store_failed_at = -math.inf

    async def run(self, stopping: asyncio.Event) -> None:
        """Look every second until `stopping` is set. No transaction is cut off."""
        seen_at, forgot_at = 0.0, 0.0
        here: tuple[Link, ...] = ()
        while not stopping.is_set():
            now = time.monotonic()
            try:
                await self._note_clients()
                await self.look()
                if now - seen_at > _SEEN_EVERY_S:
                    seen_at = now
                    await self._write_seen(self._links.own().values(), step_s=_SEEN_STEP_S)
                if now - forgot_at > _FORGET_EVERY_S:
                    forgot_at = now
                    await self._forget()
            except DBAPIError as exc:
                self._store_failed_at = time.monotonic()
                log.error("deadlines.failed", detail=str(exc.orig))  # noqa: TRY400
            here = tuple(self._links.own().values())  # they end while we stop
            await set_within(stopping, _LOOK_S)
        try:
            await self._write_seen(here, step_s=0.0)
        except DBAPIError as exc:
            log.error("deadlines.failed", detail=str(exc.orig))  # noqa: TRY400

    async def look(self) -> None:
        """Do once what is due. No other replica looks meanwhile: it would act on what it saw."""
        async with self._database.alone("deadlines"):
            await self._database.in_step()
            await self._look()

    async def _look(self) -> None:
        open_jobs = await self._open_jobs.now()
        self._presence.keep_only(open_jobs)
        if not open_jobs:
            return
        async with self._database.read() as conn:
            store_now_s = await clock.now_s(conn)
        for job in tuple(open_jobs.values()):
            noted_s = store_now_s - (job.client_seen or job.created_at)
            found = due(
                job,
                self._graces,
                now_s=time.time(),
                absent_s=self._presence.absent_s(job.id, noted_s=noted_s),
                waits=self._presence.waits(job.id, noted_s=noted_s),
                agent_down_s=0.0 if job.agent_id is None else self._links.down_s(job.agent_id),
                store_up_s=time.monotonic() - self._store_failed_at,
            )
            if found is not None:
                await self._do(job, found)

    async def _do(self, job: JobRecord, found: Due) -> None:
        try:
            async with self._ledger.change() as change:
                now = await jobs.get(change.conn, job.id)
                if now is None or (now.state, now.attempt) != (job.state, job.attempt):
                    return  # it is another's turn
                unmet = found.to is JobState.PENDING and job.state is JobState.ASSIGNED
                values = {"returns": job.returns + 1} if unmet else {}
                await change.move(job.id, found.to, error=found.error, **values)
        except IllegalMove:
            return
        if found.to is not JobState.LOST and not job.lacked:
            await tell_agent_to_end(self._orders, job, "its time at control is over")

    async def _note_clients(self) -> None:
        """Let the other replicas know whose clients are here."""
        now = time.monotonic()
        if not self._database.shared or now - self._noted_at < self._note_every_s:
            return
        open_jobs = (await self._open_jobs.now()).values()
        asked_about = [job.id for job in open_jobs if job.state in _NOTED]
        news = self._presence.news(asked_about)
        self._noted_at = now
        if news:
            async with self._database.write() as conn:
                await jobs.note_clients(conn, news, now_s=await clock.now_s(conn))

    async def _write_seen(self, links: Iterable[Link], *, step_s: float) -> None:
        heard = {link: link.heard_at for link in links}
        news = {link: at for link, at in heard.items() if at - link.noted_at >= step_s}
        if news:
            async with self._database.write() as conn:
                await agents.seen(conn, {link.agent_id: at for link, at in news.items()})
            for link, at in news.items():
                link.noted_at = at

    async def _forget(self) -> None:
        now_s = time.time()
        async with self._database.write() as conn:
            await events.forget(conn, before_s=now_s - _KEEP_EVENTS_S)
            await fleet_events.forget(conn, before_s=now_s - _KEEP_EVENTS_S)
            await tickets.forget(conn, now_s=now_s)
            await idempotency.forget(conn, now_s=now_s)
            await keys.forget_tokens(conn, before_s=now_s - _KEEP_TOKENS_S)
            await jobs.forget_ended(conn, before_s=now_s - _KEEP_JOBS_S)
            await revocations.forget(conn, before_s=now_s - _KEEP_JOBS_S)


async def tell_agent_to_end(orders: Orders, job: JobRecord, reason: str) -> bool:
    """Ask the job's agent to end it; False when it can't be asked (its next hello will tell it)."""
    if job.agent_id is None:
        return False
    try:
        await orders.send(job.agent_id, JobCancel(job_id=job.id, reason=reason))
    except AgentOffline:
        return False
    return True
