"""
What an operator orders of an agent: pause, resume, drain, reset.

An order is kept first and then told. An agent whose link is down, or goes down before it has read
the frame, is told in its next `welcome`. A job that nobody has connected to yet is taken back from
an agent that takes none: it goes where there is room.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from aegis_protocol.control_link import JobCancel
from aegis_protocol.failures.http import AgentNotFound, AgentOffline, AgentQuarantined
from aegis_protocol.states import JobState, Order

from aegis_control.bus import tell
from aegis_control.fleet_news import tell_agents
from aegis_control.jobs import Change, Jobs
from aegis_control.link.orders import Orders
from aegis_control.log import get_logger
from aegis_control.standing import order_frame
from aegis_control.store import agents, audit, jobs
from aegis_control.store.agents import AgentRecord
from aegis_control.store.audit import Act

log = get_logger("orders")

_Ordered = Callable[[Change, AgentRecord], Awaitable[AgentRecord | None]]

_ACTS: Final = {
    Order.NONE: "agent.resumed",
    Order.PAUSED: "agent.paused",
    Order.DRAINING: "agent.drained",
}


class Ordering:
    """Each order raises AgentNotFound, and all but `reset` AgentQuarantined."""

    def __init__(self, ledger: Jobs, orders: Orders) -> None:
        self._ledger = ledger
        self._orders = orders

    async def pause(self, agent: str, *, reason: str) -> AgentRecord:
        """No new jobs; what runs goes on. agent: an id or a name, here and below."""
        return await self._order(agent, Order.PAUSED, reason or "paused by an operator")

    async def resume(self, agent: str) -> AgentRecord:
        """Take back a pause or a drain."""
        return await self._order(agent, Order.NONE, "")

    async def drain(self, agent: str, *, reason: str, deadline_s: float | None) -> AgentRecord:
        """No new jobs; what runs may finish, or is canceled after `deadline_s` (0: at once)."""
        return await self._order(
            agent, Order.DRAINING, reason or "drained by an operator", deadline_s
        )

    async def reset(self, agent: str) -> AgentRecord:
        """Take back every order and every quarantine."""

        async def ordered(change: Change, record: AgentRecord) -> AgentRecord | None:
            return await agents.reset(change.conn, record.id)

        return await self._carried_out(agent, "agent.reset", ordered)

    async def _order(
        self, agent: str, order: Order, reason: str, deadline_s: float | None = None
    ) -> AgentRecord:
        async def ordered(change: Change, record: AgentRecord) -> AgentRecord | None:
            if record.ordered is Order.QUARANTINED:
                raise AgentQuarantined(
                    f"{record.name} is quarantined: {record.ordered_reason}", agent_id=record.id
                )
            until_s = None if deadline_s is None else change.now_s + deadline_s
            return await agents.set_ordered(change.conn, record.id, order, reason, until_s=until_s)

        return await self._carried_out(agent, _ACTS[order], ordered)

    async def _carried_out(self, agent: str, what: str, ordered: _Ordered) -> AgentRecord:
        async with self._ledger.change() as change:
            before = await agents.get(change.conn, agent) or await agents.named(change.conn, agent)
            after = None if before is None else await ordered(change, before)
            if after is None:
                raise AgentNotFound(f"there is no agent {agent}", agent_id=agent)
            taken_back = await take_back(change, after) if after.ordered is not Order.NONE else ()
            facts = {"reason": after.ordered_reason, "until": after.ordered_until}
            act = Act(what=what, agent_id=after.id, facts=facts)
            await audit.record(change.conn, act, now_s=change.now_s)
            await tell(change.conn, "agent", after.id)
            await tell_agents(change.conn, [after.id], now_s=change.now_s)
        told = await self._tell(after, taken_back, now_s=change.now_s)
        log.info(what, agent_id=after.id, name=after.name, reason=after.ordered_reason, told=told)
        return after

    async def _tell(
        self, record: AgentRecord, taken_back: tuple[str, ...], *, now_s: float
    ) -> bool:
        try:
            await self._orders.send(record.id, order_frame(record, now_s=now_s))
            for job_id in taken_back:  # an offer may have reached it in this moment
                cancel = JobCancel(job_id=job_id, reason="the agent takes no new jobs")
                await self._orders.send(record.id, cancel)
        except AgentOffline:
            return False
        return True


async def take_back(change: Change, record: AgentRecord) -> tuple[str, ...]:
    """Have the jobs wait again that were given to the agent and that nobody connected to yet."""
    given = await jobs.in_states(change.conn, (JobState.ASSIGNED,), agent_id=record.id)
    for job in given:
        await change.move(job.id, JobState.PENDING)
    return tuple(job.id for job in given)
