"""Agents: listed, linked, removed, revoked."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from aegis_protocol.actions import Role
from aegis_protocol.http_api.agents import AgentList, RevokeAgentRequest
from aiohttp import web

from aegis_control.control import Control
from aegis_control.fleet import Fleet
from aegis_control.http.route import Call, Reply, Route


async def list_agents(control: Control, call: Call) -> Reply:
    async with control.database.read() as conn:
        fleet = await Fleet.look(conn, control.links)
    return Reply(AgentList(agents=fleet.agents()))


async def link(control: Control, call: Call) -> web.StreamResponse:
    return await control.link_endpoint.serve(call.request)


async def remove_agent(control: Control, call: Call) -> Reply:
    """Forget an agent, by id or name: its link is closed and its jobs have failed."""
    await control.membership.remove(call.path("agent_id"))
    return Reply(status=HTTPStatus.NO_CONTENT)


async def revoke_agent(control: Control, call: Call) -> Reply:
    """Take an agent's key back, by id or name: as its removal, and it may not enrol again."""
    reason = call.taking(RevokeAgentRequest).reason
    await control.membership.revoke(call.path("agent_id"), reason=reason)
    return Reply(status=HTTPStatus.NO_CONTENT)


ROUTES: Final = (
    Route(
        "GET",
        "/agents",
        list_agents,
        "The agents, with their states and why one is not usable.",
        role=Role.VIEWER,
        gives={HTTPStatus.OK: AgentList},
        local=True,
    ),
    Route(
        "GET",
        "/agents/link",
        link,
        "The agents' WebSocket.",
        role=None,
        gives={HTTPStatus.SWITCHING_PROTOCOLS: None},
        streams=True,
    ),
    Route(
        "POST",
        "/services/agents/{agent_id}/revoke",
        revoke_agent,
        "Take an agent's key back, by id or name: it may neither link up nor enrol.",
        role=Role.OPERATOR,
        takes=RevokeAgentRequest,
        gives={HTTPStatus.NO_CONTENT: None},
        local=True,
        lasting=True,
    ),
    Route(
        "DELETE",
        "/services/agents/{agent_id}",
        remove_agent,
        "Forget an agent, by id or name.",
        role=Role.OPERATOR,
        gives={HTTPStatus.NO_CONTENT: None},
        local=True,
        lasting=True,
    ),
)
