"""What operators order of agents: it is kept, shown, obeyed, and told again after a reconnect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aegis_control.store import agents
from aegis_control.store.database import Database
from aegis_protocol.actions import Role
from aegis_protocol.states import Order
from control_fixtures import Bench, Client, bench


async def order(b: Bench, agent_id: str, ordered: Order, reason: str) -> None:
    async with b.served.control.database.write() as conn:
        assert await agents.set_ordered(conn, agent_id, ordered, reason) is not None


async def shown(client: Client, name: str = "bench") -> dict[str, Any]:
    found = (await client.ask("GET", "/agents")).body["agents"]
    return next(agent for agent in found if agent["name"] == name)


@pytest.mark.parametrize(
    ("ordered", "state"),
    [
        (Order.PAUSED, "paused"),
        (Order.DRAINING, "draining"),
        (Order.QUARANTINED, "quarantined"),
    ],
)
async def test_what_is_ordered_of_an_agent_is_its_state_and_why_a_job_waits(
    tmp: Path, ordered: Order, state: str
) -> None:
    async with bench(tmp) as b:
        client, agent = await b.client_of(Role.BUILDER), await b.agent()
        await order(b, agent.id, ordered, "the lab moves")
        view = await shown(client)
        assert (view["state"], view["reason"]) == (state, "the lab moves")
        answer = await client.request(target="esp32")
        assert answer.status == 202
        assert answer.body["reasons"] == [
            {"code": f"agent.{state}", "detail": "the lab moves", "agents": ["bench"]}
        ]


async def test_an_order_outlives_the_link_and_the_control(tmp: Path) -> None:
    async with bench(tmp) as b:
        agent = await b.agent()
        await order(b, agent.id, Order.QUARANTINED, "two machines have this key")
        await agent.leave()
    async with bench(tmp) as b:
        view = await shown(await b.client_of(Role.VIEWER))
        assert (view["state"], view["reason"]) == ("quarantined", "two machines have this key")


async def test_an_agent_that_is_not_linked_is_disconnected_whatever_else_is_ordered(
    tmp: Path,
) -> None:
    async with bench(tmp) as b:
        agent = b.machine()
        await agent.enroll()
        await agent.link()
        await order(b, agent.id, Order.PAUSED, "the lab moves")
        await agent.leave()
        client = await b.client_of(Role.VIEWER)
        while (view := await shown(client))["state"] != "disconnected":
            pass
        assert view["reason"] == "the lab moves"


async def test_a_reset_takes_back_every_order_and_is_counted(tmp: Path) -> None:
    async with Database.open(f"sqlite+aiosqlite:///{tmp / 'c.db'}") as db, db.write() as conn:
        await agents.enroll(conn, "a", "bench", b"k", now_s=1)
        held = await agents.set_ordered(conn, "a", Order.DRAINING, "x" * 900, until_s=7)
        assert held is not None and held.ordered_until == 7 and len(held.ordered_reason) == 200
        free = await agents.reset(conn, "a")
        assert free == await agents.get(conn, "a")
        assert free is not None
        assert (free.ordered, free.ordered_reason, free.ordered_until) == (Order.NONE, "", None)
        assert free.resets == 1
        assert await agents.set_ordered(conn, "nobody", Order.PAUSED, "") is None
        assert await agents.reset(conn, "nobody") is None
