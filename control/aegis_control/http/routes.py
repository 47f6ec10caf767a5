"""The route table: the router, the OpenAPI document and the docs all come from it."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from aegis_control.control import Control
from aegis_control.http import (
    agent_orders,
    agents,
    audit,
    boards,
    callers,
    enrollment,
    event_stream,
    fleet_stream,
    grants,
    health,
    issuer,
    jobs,
    keys,
    leases,
    openapi,
    policy,
    revocations,
    sessions,
    signaling,
    status,
    tickets,
)
from aegis_control.http.route import Call, Reply, Route


async def _openapi(control: Control, call: Call) -> Reply:
    return Reply(openapi.Document(openapi.document(ROUTES)))


_OPENAPI: Final = Route(
    "GET",
    "/openapi.json",
    _openapi,
    "This API as an OpenAPI document.",
    role=None,
    gives={HTTPStatus.OK: None},
)

ROUTES: Final[tuple[Route, ...]] = (
    *health.ROUTES,
    _OPENAPI,
    *issuer.ROUTES,
    *callers.ROUTES,
    *grants.ROUTES,
    *signaling.ROUTES,
    *event_stream.ROUTES,
    *fleet_stream.ROUTES,
    *tickets.ROUTES,
    *jobs.ROUTES,
    *agents.ROUTES,
    *boards.ROUTES,
    *leases.ROUTES,
    *enrollment.ROUTES,
    *status.ROUTES,
    *keys.ROUTES,
    *policy.ROUTES,
    *sessions.ROUTES,
    *revocations.ROUTES,
    *agent_orders.ROUTES,
    *audit.ROUTES,
)

LOCAL_ROUTES: Final = tuple(route for route in ROUTES if route.local)
