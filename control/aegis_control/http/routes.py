"""The route table: the router, the OpenAPI document and the docs all come from it."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from aegis_protocol.actions import Role
from aegis_protocol.http_api import (
    Agent,
    AgentList,
    BoardList,
    DrainRequest,
    EnrollReply,
    EnrollRequest,
    EnrollTokenMade,
    EnrollTokenRequest,
    GrantReply,
    GrantRequest,
    Health,
    HealthSessions,
    IceCandidate,
    Job,
    JobList,
    Jwks,
    KeyList,
    KeyMade,
    KeyRequest,
    OfferReply,
    OfferRequest,
    PauseRequest,
    PendingReply,
    WhoAmI,
)

from aegis_control.control import Control
from aegis_control.http import agent_orders, endpoints, openapi, services
from aegis_control.http.event_stream import job_events
from aegis_control.http.route import Call, Query, Reply, Route

_OK: Final = HTTPStatus.OK
_CREATED: Final = HTTPStatus.CREATED
_ACCEPTED: Final = HTTPStatus.ACCEPTED
_EMPTY: Final = HTTPStatus.NO_CONTENT
_DOWN: Final = HTTPStatus.SERVICE_UNAVAILABLE
_SWITCH: Final = HTTPStatus.SWITCHING_PROTOCOLS
_LIMIT: Final = Query(
    "limit",
    f"At most so many; {endpoints.ROWS} by default.",
    {"type": "integer", "minimum": 1, "maximum": endpoints.MAX_ROWS},
)


async def _openapi(control: Control, call: Call) -> Reply:
    return Reply(openapi.Document(openapi.document(ROUTES)))


ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "GET",
        "/health",
        endpoints.health,
        "Whether control works.",
        role=None,
        gives={_OK: Health, _DOWN: Health},
        local=True,
    ),
    Route(
        "GET",
        "/health/sessions",
        endpoints.health_sessions,
        "How many jobs, links and event streams live.",
        role=None,
        gives={_OK: HealthSessions},
        local=True,
    ),
    Route(
        "GET",
        "/metrics",
        endpoints.metrics,
        "Counts and times for Prometheus.",
        role=None,
        gives={_OK: None},
        local=True,
    ),
    Route(
        "GET",
        "/openapi.json",
        _openapi,
        "This API as an OpenAPI document.",
        role=None,
        gives={_OK: None},
    ),
    Route(
        "GET",
        "/.well-known/jwks.json",
        endpoints.jwks,
        "The issuer's public keys.",
        role=None,
        gives={_OK: Jwks},
    ),
    Route(
        "GET",
        "/whoami",
        endpoints.whoami,
        "My key: its role, limits and expiry.",
        role=Role.VIEWER,
        gives={_OK: WhoAmI},
        local=True,
    ),
    Route(
        "POST",
        "/grant/request",
        endpoints.request_grant,
        "Ask for an agent and a grant: 200 with both, or 202 with the reasons to wait.",
        role=Role.VIEWER,
        takes=GrantRequest,
        gives={_OK: GrantReply, _ACCEPTED: PendingReply},
    ),
    Route(
        "POST",
        "/signaling/{job_id}/offer",
        endpoints.offer,
        "Send an offer to the job's agent; the grant is the Bearer token.",
        role=None,
        takes=OfferRequest,
        proves=True,
        gives={_ACCEPTED: OfferReply},
    ),
    Route(
        "POST",
        "/signaling/{job_id}/candidate",
        endpoints.candidate,
        "Send an ICE candidate to the job's agent, by the grant or the owner's key.",
        role=None,
        takes=IceCandidate,
        proves=True,
        gives={_EMPTY: None},
    ),
    Route(
        "GET",
        "/signaling/{job_id}/events",
        job_events,
        "The job's events (server-sent), for its owner.",
        role=Role.VIEWER,
        gives={_OK: None},
        streams=True,
    ),
    Route(
        "GET",
        "/jobs",
        endpoints.list_jobs,
        "My jobs, newest first (an operator: everybody's); `limit` of them.",
        role=Role.VIEWER,
        queries=(_LIMIT,),
        gives={_OK: JobList},
        local=True,
    ),
    Route(
        "GET",
        "/jobs/{job_id}",
        endpoints.one_job,
        "One job.",
        role=Role.VIEWER,
        gives={_OK: Job},
        local=True,
    ),
    Route(
        "DELETE",
        "/jobs/{job_id}",
        endpoints.cancel_job,
        "Cancel a job.",
        role=Role.VIEWER,
        gives={_OK: Job},
        local=True,
    ),
    Route(
        "GET",
        "/agents",
        endpoints.list_agents,
        "The agents, with their states and why one is not usable.",
        role=Role.VIEWER,
        gives={_OK: AgentList},
        local=True,
    ),
    Route(
        "GET",
        "/boards",
        endpoints.list_boards,
        "The boards, with who holds them.",
        role=Role.VIEWER,
        gives={_OK: BoardList},
        local=True,
    ),
    Route(
        "POST",
        "/agents/enroll",
        endpoints.enroll,
        "Join with a token: a public key in, an agent id and the issuer's keys out.",
        role=None,
        takes=EnrollRequest,
        proves=True,
        gives={_OK: EnrollReply},
    ),
    Route(
        "GET",
        "/agents/link",
        endpoints.link,
        "The agents' WebSocket.",
        role=None,
        gives={_SWITCH: None},
        streams=True,
    ),
    Route(
        "POST",
        "/services/keys",
        services.make_key,
        "Make an API key; its text is shown this once.",
        role=Role.OPERATOR,
        takes=KeyRequest,
        gives={_CREATED: KeyMade},
        local=True,
    ),
    Route(
        "GET",
        "/services/keys",
        services.list_keys,
        "The API keys, without their secrets.",
        role=Role.OPERATOR,
        queries=(Query("prefix", "Only keys whose ids begin so."),),
        gives={_OK: KeyList},
        local=True,
    ),
    Route(
        "DELETE",
        "/services/keys/{key_id}",
        services.revoke_key,
        "Take an API key back.",
        role=Role.OPERATOR,
        gives={_EMPTY: None},
        local=True,
    ),
    Route(
        "POST",
        "/services/enroll-tokens",
        services.make_enroll_token,
        "Make a token with which one agent may enrol.",
        role=Role.OPERATOR,
        takes=EnrollTokenRequest,
        gives={_CREATED: EnrollTokenMade},
        local=True,
    ),
    Route(
        "POST",
        "/services/agents/{agent_id}/pause",
        agent_orders.pause,
        "Give an agent no new jobs; what runs goes on.",
        role=Role.OPERATOR,
        takes=PauseRequest,
        gives={_OK: Agent},
        local=True,
    ),
    Route(
        "POST",
        "/services/agents/{agent_id}/resume",
        agent_orders.resume,
        "Take back a pause or a drain.",
        role=Role.OPERATOR,
        gives={_OK: Agent},
        local=True,
    ),
    Route(
        "POST",
        "/services/agents/{agent_id}/drain",
        agent_orders.drain,
        "Give an agent no new jobs; what runs finishes, or is canceled at the deadline.",
        role=Role.OPERATOR,
        takes=DrainRequest,
        gives={_OK: Agent},
        local=True,
    ),
    Route(
        "POST",
        "/services/agents/{agent_id}/reset",
        agent_orders.reset,
        "Take back every order, and a quarantine.",
        role=Role.OPERATOR,
        gives={_OK: Agent},
        local=True,
    ),
    Route(
        "DELETE",
        "/services/agents/{agent_id}",
        services.remove_agent,
        "Forget an agent, by id or name.",
        role=Role.OPERATOR,
        gives={_EMPTY: None},
        local=True,
    ),
)

LOCAL_ROUTES: Final = tuple(route for route in ROUTES if route.local)
