"""What operators order of agents."""

from __future__ import annotations

from aegis_protocol.failures.http import AgentNotFound
from aegis_protocol.http_api import DrainRequest, PauseRequest

from aegis_control.control import Control
from aegis_control.fleet import Fleet
from aegis_control.http.route import Call, Reply


async def pause(control: Control, call: Call) -> Reply:
    wanted = call.taking(PauseRequest)
    record = await control.ordering.pause(call.path("agent_id"), reason=wanted.reason)
    return await _agent(control, record.id)


async def resume(control: Control, call: Call) -> Reply:
    record = await control.ordering.resume(call.path("agent_id"))
    return await _agent(control, record.id)


async def drain(control: Control, call: Call) -> Reply:
    wanted = call.taking(DrainRequest)
    record = await control.ordering.drain(
        call.path("agent_id"), reason=wanted.reason, deadline_s=wanted.deadline_secs
    )
    return await _agent(control, record.id)


async def reset(control: Control, call: Call) -> Reply:
    record = await control.ordering.reset(call.path("agent_id"))
    return await _agent(control, record.id)


async def _agent(control: Control, agent_id: str) -> Reply:
    async with control.database.read() as conn:
        fleet = await Fleet.look(conn, control.links)
    found = next((agent for agent in fleet.agents() if agent.id == agent_id), None)
    if found is None:
        raise AgentNotFound(f"there is no agent {agent_id}", agent_id=agent_id)
    return Reply(found)
