"""
Server-sent events of one job, read from the store by their ids.

A stream that begins afresh starts with what is true now (state, assigned, whether the agent is
there) and with the signalling of the last minute, each with its `jti`; one that comes back with
`Last-Event-ID` goes on after that event. A keepalive every 30 s has no id.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from aegis_protocol.actions import Role
from aegis_protocol.errors import ErrorBody
from aegis_protocol.events import (
    SIGNAL_EVENT,
    Assigned,
    Closed,
    Connected,
    KeepAlive,
    Reset,
    SignalEvent,
    State,
)
from aegis_protocol.failures.agent import AgentGone
from aegis_protocol.failures.http import RateLimited
from aegis_protocol.states import ended
from aiohttp import web
from sqlalchemy.exc import DBAPIError

from aegis_control.control import Control
from aegis_control.http import event_filter
from aegis_control.http.route import Call, Route
from aegis_control.http.sse import ReaderGone, Sse, event_text, last_event_id
from aegis_control.hub import set_within
from aegis_control.log import get_logger
from aegis_control.store import agents, events, jobs
from aegis_control.store.events import StoredEvent
from aegis_control.store.jobs import LIVE, JobRecord
from aegis_control.streams import OpenStream

log = get_logger("events")

MAX_STREAMS_PER_JOB: Final = 16

_BATCH: Final = 100
_RECENT_S: Final = 60.0
_SIGNALS: Final = ("answer", "candidate", "rejected")
_LOOK_S: Final = 1.0
"""How soon a listener that left is noticed."""


async def job_events(control: Control, call: Call) -> web.StreamResponse:
    """Serve the events of a job of the caller's until it is over or the caller leaves."""
    job = await control.ledger.owned(call.path("job_id"), call.identity.id)
    cursor = last_event_id(call.request)
    if control.hub.listeners(job.id) >= MAX_STREAMS_PER_JOB:
        raise RateLimited(f"the job has {MAX_STREAMS_PER_JOB} listeners already", retry_after_s=5)
    sse = Sse(call.request)
    with (
        control.hub.listen(job.id) as changed,
        control.streams.one_more(call.identity, changed) as opened,
    ):
        stream = _Stream(control, job.id, sse, opened)
        try:
            await sse.open()
            await stream.begin(cursor)
            await stream.go_on(changed)
        except ReaderGone:
            log.debug("stream.broken", job_id=job.id)
        except DBAPIError as exc:
            log.error("store.failed", detail=str(exc.orig))  # noqa: TRY400
        finally:
            control.presence.seen(job.id)
    return sse.response


class _Stream:
    def __init__(self, control: Control, job_id: str, sse: Sse, opened: OpenStream) -> None:
        self._control = control
        self._job_id = job_id
        self._sse = sse
        self._opened = opened
        self._cursor = 0

    async def begin(self, cursor: int | None) -> None:
        """Say `connected`, and where no cursor came, what is true now."""
        async with self._control.database.read() as conn:
            head = await events.head(conn, self._job_id)
            job = await jobs.get(conn, self._job_id)
            agent = (
                None
                if job is None or job.agent_id is None
                else await agents.get(conn, job.agent_id)
            )
            recent = await events.since(
                conn, self._job_id, _SIGNALS, since_s=time.time() - _RECENT_S, limit=_BATCH
            )
            lost = (
                cursor is not None
                and job is not None
                and await events.is_lost(conn, cursor, since_s=job.created_at)
            )
        if cursor is not None and not lost:
            self._cursor = min(cursor, head)
            await self._write(Connected(job_id=self._job_id, time=time.time()), self._cursor)
            return
        first = recent[0].id - 1 if recent else head
        await self._write(Connected(job_id=self._job_id, time=time.time()), first)
        if lost:
            await self._write(Reset(), None)
        if job is not None:
            await self._snapshot(job, None if agent is None else agent.name)
        await self._write_stored(recent)
        self._cursor = head

    async def go_on(self, changed: asyncio.Event) -> None:
        """Send what comes, and keepalives, until the job is over or somebody leaves."""
        quiet_since = time.monotonic()
        while not self._control.stopping.is_set():
            changed.clear()
            if not await self._control.streams.may_go_on(self._opened):
                return
            async with self._control.database.read() as conn:
                job = await jobs.get(conn, self._job_id)
                news = await events.after(conn, self._job_id, self._cursor, limit=_BATCH)
            if news:
                await self._write_stored(news)
                self._cursor = news[-1].id
                quiet_since = time.monotonic()
                continue
            if job is None or ended(job.state):
                return
            while not changed.is_set() and not self._control.stopping.is_set():
                if self._sse.left:
                    return
                if time.monotonic() - quiet_since >= self._control.config.keepalive_s:
                    await self._write(KeepAlive(time=time.time()), None)
                    quiet_since = time.monotonic()
                await set_within(changed, min(_LOOK_S, self._control.config.keepalive_s))

    async def _snapshot(self, job: JobRecord, agent_name: str | None) -> None:
        await self._write(State(job_id=job.id, state=job.state, reasons=job.reasons), None)
        if ended(job.state):
            error = None if job.error is None else ErrorBody.model_validate(job.error)
            await self._write(Closed(job_id=job.id, error=error), None)
        if job.state not in LIVE or job.agent_id is None:
            return
        await self._write(
            Assigned(job_id=job.id, agent_id=job.agent_id, agent_name=agent_name or ""), None
        )
        if not self._control.links.is_there(job.agent_id):
            gone = AgentGone("the agent has no link to control", agent_id=job.agent_id)
            await self._write(Closed(job_id=job.id, error=gone.body()), None)

    async def _write_stored(self, stored: Sequence[StoredEvent]) -> None:
        for event in stored:
            await self._write(SIGNAL_EVENT.validate_python(event.data), event.id)

    async def _write(self, event: SignalEvent, event_id: int | None) -> None:
        await self._sse.write(event_text(event, event.type, event_id))


ROUTES: Final = (
    Route(
        "GET",
        "/signaling/{job_id}/events",
        job_events,
        "The job's events (server-sent), for its owner.",
        role=Role.VIEWER,
        queries=(event_filter.TICKET,),
        gives={HTTPStatus.OK: None},
        streams=True,
    ),
)
