"""
`GET /events`: server-sent events of agents, boards and jobs, for whoever may see them.

A stream that begins afresh starts with what is true now: the agents that are there, their boards,
the jobs and leases that are not over. A keepalive with an id ends it. One that comes back with
`Last-Event-ID` goes on after that event, and if what came after it is not kept any more, a `reset`
says so and the stream begins afresh. Keepalives have the id of the newest event, so that the cursor
stays young though nothing was of interest.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Final

from aegis_protocol.actions import Role
from aegis_protocol.events import Connected, KeepAlive, Reset
from aegis_protocol.states import AgentState, JobState
from aiohttp import web
from sqlalchemy.exc import DBAPIError

from aegis_control import announcements
from aegis_control.control import Control
from aegis_control.fleet import Fleet
from aegis_control.http import event_filter
from aegis_control.http.event_filter import Filter, filter_of
from aegis_control.http.route import Call, Route
from aegis_control.http.sse import ReaderGone, Sse, event_text, last_event_id
from aegis_control.hub import set_within
from aegis_control.log import get_logger
from aegis_control.store import jobs, leases
from aegis_control.store.announcing import Announcement
from aegis_control.store.jobs import LIVE, JobRecord
from aegis_control.store.leases import LeaseRecord
from aegis_control.streams import OpenStream

log = get_logger("events")

_LOOK_S: Final = 5.0
"""How soon a reader that left is noticed when there is nothing to tell."""
_CHUNK_BYTES: Final = 16_384


async def fleet_events(control: Control, call: Call) -> web.StreamResponse:
    """Serve events until the caller leaves or control stops."""
    wanted = filter_of(call.request, call.identity)
    cursor = last_event_id(call.request)
    sse = Sse(call.request)
    with (
        control.feed.listen() as changed,
        control.streams.one_more(call.identity, changed) as opened,
    ):
        try:
            await sse.open()
            await _Stream(control, sse, wanted, opened).serve(cursor)
        except ReaderGone:
            log.debug("stream.broken", path="/events")
        except DBAPIError as exc:
            log.error("store.failed", detail=str(exc.orig))  # noqa: TRY400
    return sse.response


class _Stream:
    def __init__(self, control: Control, sse: Sse, wanted: Filter, opened: OpenStream) -> None:
        self._control = control
        self._sse = sse
        self._wanted = wanted
        self._opened = opened
        self._cursor = 0

    async def serve(self, cursor: int | None) -> None:
        """Tell what is true and what comes, until one side leaves or the key is good no more."""
        changed = self._opened.changed
        if cursor is None:
            await self._say(Connected(time=time.time()), None)
            await self._snapshot()
        else:
            self._cursor = cursor
            await self._say(Connected(time=time.time()), cursor)
        quiet_since = time.monotonic()
        while not self._control.stopping.is_set() and not self._sse.left:
            changed.clear()
            if not await self._control.streams.may_go_on(self._opened):
                return
            news = await self._control.feed.after(self._cursor)
            if news is None:
                await self._say(Reset(), None)
                await self._snapshot()
            elif news:
                texts = [told.text() for told in news if self._wanted.passes(told)]
                if texts:
                    await self._sse.write(b"".join(texts))
                    quiet_since = time.monotonic()
                self._cursor = news[-1].id
            else:
                keepalive_s = self._control.config.keepalive_s
                if time.monotonic() - quiet_since >= keepalive_s:
                    await self._say(KeepAlive(time=time.time()), self._cursor)
                    quiet_since = time.monotonic()
                await set_within(changed, min(_LOOK_S, keepalive_s))

    async def _snapshot(self) -> None:
        """What is true now, without ids: a reader that loses it half-way begins afresh."""
        head = await self._control.feed.head()
        async with self._control.database.read() as conn:
            fleet = await Fleet.look(conn, self._control.links)
            waiting = await jobs.in_states(conn, (JobState.PENDING,))
            leased = await leases.open_ones(conn, None)
        chunk = b""
        for found in _now(fleet, (*waiting, *fleet.live), leased.values()):
            if self._wanted.passes(found):
                chunk += event_text(found.event, found.type, None)
            if len(chunk) > _CHUNK_BYTES:
                await self._sse.write(chunk)
                chunk = b""
        self._cursor = head
        await self._sse.write(chunk + event_text(KeepAlive(time=time.time()), "keepalive", head))

    async def _say(self, event: Connected | Reset | KeepAlive, event_id: int | None) -> None:
        await self._sse.write(event_text(event, event.type, event_id))


def _now(
    fleet: Fleet, open_jobs: Iterable[JobRecord], open_leases: Iterable[LeaseRecord]
) -> Iterator[Announcement]:
    for agent in fleet.agents():
        if agent.state is not AgentState.DISCONNECTED:
            yield announcements.agent_is_online(agent)
            for board in agent.boards:
                holding = fleet.held.leases.get((agent.id, board.id))
                until_s = None if holding is None else holding.until_s
                yield announcements.board_changed(agent.id, board, until_s)
    for job in open_jobs:
        yield announcements.job_state(job)
        if job.state not in LIVE:
            yield from announcements.available(job)
    for lease in open_leases:
        yield announcements.lease_state(lease)


ROUTES: Final = (
    Route(
        "GET",
        "/events",
        fleet_events,
        "Events of agents, boards and jobs (server-sent), as far as the key may see them.",
        role=Role.VIEWER,
        queries=event_filter.QUERIES,
        gives={HTTPStatus.OK: None},
        streams=True,
    ),
)
