"""What operators order of agents."""

from __future__ import annotations

import asyncio
import time
from http import HTTPStatus
from typing import Final

from aegis_protocol.actions import Role
from aegis_protocol.failures.http import AgentNotFound
from aegis_protocol.http_api.agents import Agent, DrainRequest, PauseRequest
from aegis_protocol.states import AgentState

from aegis_control.control import Control
from aegis_control.fleet import Fleet
from aegis_control.http.route import Call, Reply, Route

_HEARD_WITHIN_S: Final = 1.0
_LOOK_S: Final = 0.05


async def pause(control: Control, call: Call) -> Reply:
    wanted = call.taking(PauseRequest)
    record = await control.ordering.pause(call.path("agent_id"), reason=wanted.reason)
    return await _agent(control, record.id)


async def resume(control: Control, call: Call) -> Reply:
    record = await control.ordering.resume(call.path("agent_id"))
    return await _heard(control, record.id)


async def drain(control: Control, call: Call) -> Reply:
    wanted = call.taking(DrainRequest)
    record = await control.ordering.drain(
        call.path("agent_id"), reason=wanted.reason, deadline_s=wanted.deadline_secs
    )
    return await _agent(control, record.id)


async def reset(control: Control, call: Call) -> Reply:
    record = await control.ordering.reset(call.path("agent_id"))
    return await _heard(control, record.id)


async def _heard(control: Control, agent_id: str) -> Reply:
    """
    The agent as it is once it has taken jobs again, which it says itself; one that does not say so
    soon (its link is slow, its disk full) is shown as it is.
    """
    ends = time.monotonic() + _HEARD_WITHIN_S
    while True:
        found = await _look(control, agent_id)
        stale = found.state in (AgentState.PAUSED, AgentState.DRAINING)
        if not stale or time.monotonic() > ends:
            return Reply(found)
        await asyncio.sleep(_LOOK_S)


async def _agent(control: Control, agent_id: str) -> Reply:
    return Reply(await _look(control, agent_id))


async def _look(control: Control, agent_id: str) -> Agent:
    async with control.database.read() as conn:
        fleet = await Fleet.look(conn, control.links)
    found = next((agent for agent in fleet.agents() if agent.id == agent_id), None)
    if found is None:
        raise AgentNotFound(f"there is no agent {agent_id}", agent_id=agent_id)
    return found


ROUTES: Final = (
    Route(
        "POST",
        "/services/agents/{agent_id}/pause",
        pause,
        "Give an agent no new jobs; what runs goes on.",
        role=Role.OPERATOR,
        takes=PauseRequest,
        gives={HTTPStatus.OK: Agent},
        local=True,
        lasting=True,
    ),
    Route(
        "POST",
        "/services/agents/{agent_id}/resume",
        resume,
        "Take back a pause or a drain.",
        role=Role.OPERATOR,
        gives={HTTPStatus.OK: Agent},
        local=True,
        lasting=True,
    ),
    Route(
        "POST",
        "/services/agents/{agent_id}/drain",
        drain,
        "Give an agent no new jobs; what runs finishes, or is canceled at the deadline.",
        role=Role.OPERATOR,
        takes=DrainRequest,
        gives={HTTPStatus.OK: Agent},
        local=True,
        lasting=True,
    ),
    Route(
        "POST",
        "/services/agents/{agent_id}/reset",
        reset,
        "Take back every order, and a quarantine.",
        role=Role.OPERATOR,
        gives={HTTPStatus.OK: Agent},
        local=True,
        lasting=True,
    ),
)
