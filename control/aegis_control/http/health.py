"""How control is, for whoever asks: health, what lives, metrics."""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import Final

from aegis_protocol import PROTOCOL_VERSION, __version__
from aegis_protocol.http_api.health import Health, HealthSessions
from aegis_protocol.states import JobState
from aiohttp import web

from aegis_control.control import Control
from aegis_control.http.route import Call, Reply, Route
from aegis_control.store import jobs, sessions
from aegis_control.store.jobs import LIVE


async def health(control: Control, call: Call) -> Reply:
    """200 while control works; 503 when the store is down or control is stopping."""
    store = await control.database.answers()
    draining = control.stopping.is_set()
    body = Health(
        status="draining" if draining else "ok" if store else "error",
        version=__version__,
        protocol=PROTOCOL_VERSION,
        time=time.time(),
        store="ok" if store else "error",
        policy=control.policy.standing.told,
        agents_online=len(control.links.all()),
    )
    well = store and not draining
    return Reply(body, HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE)


async def health_sessions(control: Control, call: Call) -> Reply:
    async with control.database.read() as conn:
        counts = await jobs.count_by_state(conn)
        open_sessions = await sessions.count(conn)
    return Reply(
        HealthSessions(
            jobs=sum(counts[state] for state in LIVE),
            sessions=open_sessions,
            links=len(control.links.all()),
            event_streams=control.streams.count,
        )
    )


async def metrics(control: Control, call: Call) -> web.StreamResponse:
    async with control.database.read() as conn:
        counts = await jobs.count_by_state(conn)
    for state in (JobState.PENDING, *LIVE):
        control.metrics.jobs.labels(state=state).set(counts[state])
    return web.Response(
        body=control.metrics.render(),
        headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
    )


ROUTES: Final = (
    Route(
        "GET",
        "/health",
        health,
        "Whether control works.",
        role=None,
        gives={HTTPStatus.OK: Health, HTTPStatus.SERVICE_UNAVAILABLE: Health},
        local=True,
    ),
    Route(
        "GET",
        "/health/sessions",
        health_sessions,
        "How many jobs, links and event streams live.",
        role=None,
        gives={HTTPStatus.OK: HealthSessions},
        local=True,
    ),
    Route(
        "GET",
        "/metrics",
        metrics,
        "Counts and times for Prometheus.",
        role=None,
        gives={HTTPStatus.OK: None},
        local=True,
    ),
)
