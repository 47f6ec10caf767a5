"""
The life of jobs: every move, and all that entering a state brings with it, in one transaction.

An end gives the boards back and tells the listeners; a return to pending gives them back, forgets
the agent and raises the attempt. Listeners and the scheduler wake when it is committed.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aegis_protocol.errors import AegisError, ErrorBody
from aegis_protocol.events import Assigned, Closed, SignalEvent, State
from aegis_protocol.failures.http import JobCanceled, JobNotFound
from aegis_protocol.grant import GrantClaims
from aegis_protocol.http_api.grants import GrantRequest
from aegis_protocol.states import JobState, ended
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control import announcements
from aegis_control.fleet_news import tell_boards
from aegis_control.log import get_logger
from aegis_control.metrics import Metrics
from aegis_control.store import audit, boards, jobs, keys, revocations
from aegis_control.store.announcing import announce, tell_owner
from aegis_control.store.audit import Act
from aegis_control.store.database import Database
from aegis_control.store.jobs import JobRecord

log = get_logger("jobs")


class Change:
    """One transaction on jobs. What it touched is told (`job`) when it is committed."""

    def __init__(self, conn: AsyncConnection, metrics: Metrics) -> None:
        self.conn = conn
        self.now_s = time.time()
        self.moved: list[JobRecord] = []
        self.wakes_placement = False
        self._metrics = metrics
        self._news: list[State | Assigned] = []
        self._known: dict[str, JobRecord] = {}
        self._available: set[str] = set()

    async def create(
        self,
        job_id: str,
        identity: str,
        request: GrantRequest,
        limits: Mapping[str, Sequence[str]],
    ) -> JobRecord:
        """Add a pending job, tell those who look for work, and return it."""
        record = await jobs.create(self.conn, job_id, identity, request, limits, now_s=self.now_s)
        made = Act(
            what="job.created",
            who=identity,
            job_id=job_id,
            facts={"target": request.target, "project_key": request.project_key},
        )
        await audit.record(self.conn, made, now_s=self.now_s)
        self._news.append(State(job_id=job_id, state=JobState.PENDING))
        self._known[job_id] = record
        self._available.add(job_id)
        self.wakes_placement = True
        return record

    async def move(
        self,
        job_id: str,
        to: JobState,
        *,
        error: AegisError | ErrorBody | None = None,
        **values: Any,
    ) -> JobRecord:
        """
        Move a job and do all that belongs to its new state. `values` are columns set with it.

        Raises IllegalMove: nothing has happened then, and the transaction must be given up.
        """
        body = error.body() if isinstance(error, AegisError) else error
        if to is JobState.CANCELED and body is None:
            body = JobCanceled("the job was canceled").body()
        if body is not None:
            values["error"] = body.model_dump(mode="json")
        held: JobRecord | None = None
        if to is JobState.PENDING:
            held = await jobs.get(self.conn, job_id)
            self._available.add(job_id)
            values |= {
                "agent_id": None,
                "boards": {},
                "candidates": [],
                "attempt": 1 if held is None else held.attempt + 1,
                "assigned_at": None,
                "ends_at": None,
            }
        if to is JobState.PENDING or to is JobState.RUNNING:
            values["error"] = None  # a lost job may have had one
        record = await jobs.move(self.conn, job_id, to, now_s=self.now_s, **values)
        self.moved.append(record)
        self._known[job_id] = record
        await self.tell(job_id, State(job_id=job_id, state=to, reasons=record.reasons))
        if ended(to):
            await self.tell(job_id, Closed(job_id=job_id, error=body))
            await audit.record(self.conn, _end_of(record), now_s=self.now_s)
        if ended(to) or to is JobState.PENDING:
            await boards.release(self.conn, job_id, now_s=self.now_s)
            self.wakes_placement = True
        if to is not JobState.RUNNING and to is not JobState.LOST:
            await self._tell_boards(held or record)
        return record

    async def tell(self, job_id: str, event: SignalEvent) -> None:
        """Keep `event` for the job's owner."""
        await tell_owner(self.conn, job_id, event, now_s=self.now_s)
        if isinstance(event, State | Assigned):
            self._news.append(event)

    async def _tell_boards(self, job: JobRecord) -> None:
        """Tell how the boards are that the job took, or that it had."""
        if job.boards and job.agent_id is not None:
            await tell_boards(self.conn, job.agent_id, job.boards, now_s=self.now_s)

    async def announce(self) -> None:
        """Tell on `GET /events` what was told of jobs; call it when the jobs are as they stay."""
        unknown = [news.job_id for news in self._news if news.job_id not in self._known]
        if unknown:
            self._known |= await jobs.open_ones(self.conn, unknown)
        for news in self._news:
            job = self._known.get(news.job_id)
            if job is None:
                continue
            if isinstance(news, Assigned):
                await announce(self.conn, announcements.assigned(job, news), now_s=self.now_s)
                continue
            await announce(self.conn, announcements.job_state(job, news), now_s=self.now_s)
            if job.id in self._available:
                self._available.discard(job.id)
                for found in announcements.available(job):
                    await announce(self.conn, found, now_s=self.now_s)


class Jobs:
    """on_room: called when a job may have become placeable."""

    def __init__(
        self, database: Database, metrics: Metrics, *, on_room: Callable[[], None]
    ) -> None:
        self._database = database
        self._metrics = metrics
        self._on_room = on_room

    @asynccontextmanager
    async def change(self) -> AsyncIterator[Change]:
        """A transaction on jobs; it is rolled back when the block raises."""
        async with self._database.write() as conn:
            change = Change(conn, self._metrics)
            yield change
            await change.announce()
        for record in change.moved:
            self._metrics.job_moves.labels(state=record.state).inc()
            error = record.error or {}
            log.info(
                "job.moved",
                job_id=record.id,
                state=str(record.state),
                identity=record.identity,
                agent_id=record.agent_id,
                attempt=record.attempt,
                code=error.get("code"),
            )
        if change.wakes_placement:
            self._on_room()

    async def get(self, job_id: str) -> JobRecord:
        """Return a job. JobNotFound when there is none."""
        async with self._database.read() as conn:
            record = await jobs.get(conn, job_id)
        if record is None:
            raise not_found(job_id)
        return record

    async def is_revoked(self, claims: GrantClaims) -> bool:
        """Tell whether the grant, its job or its identity's key was revoked."""
        async with self._database.read() as conn:
            if await revocations.is_revoked(conn, claims.jti, claims.job_id):
                return True
            key = await keys.get(conn, claims.sub)
        return key is not None and key.revoked_at is not None

    async def owned(self, job_id: str, identity: str) -> JobRecord:
        """Return a job of `identity`; another's is not found either."""
        record = await self.get(job_id)
        if record.identity != identity:
            raise not_found(job_id)
        return record


def _end_of(job: JobRecord) -> Act:
    """A job's end, for the audit."""
    error = job.error or {}
    return Act(
        what="job.ended",
        decision="done" if job.state is JobState.SUCCEEDED else "failed",
        job_id=job.id,
        agent_id=job.agent_id,
        board_id=next(iter(sorted(job.boards)), None),
        outcome=": ".join(str(word) for word in (job.state, error.get("code")) if word),
        facts={
            "identity": job.identity,
            "attempt": job.attempt,
            "target": job.request.target,
            "boards": sorted(job.boards),
            "created_at": job.created_at,
        },
    )


def not_found(job_id: str) -> JobNotFound:
    return JobNotFound(f"there is no job {job_id} of yours", job_id=job_id)
