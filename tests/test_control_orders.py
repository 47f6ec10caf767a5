"""What operators order of agents: it is kept, shown, obeyed, and told again after a reconnect."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aegis_control.store import agents
from aegis_control.store.database import Database
from aegis_control.store.tables import audit
from aegis_protocol.actions import Role
from aegis_protocol.control_link import Drain, JobCancel, Pause, Reset, Resume, Status
from aegis_protocol.states import Order
from control_fixtures import Bench, Client, FakeAgent, bench, link_of
from control_runs import call
from databases import database_kind, database_url, postgres
from sqlalchemy import select
from structlog.testing import capture_logs
from waiting import until

__all__ = ["database_kind", "database_url", "postgres"]

pytestmark = pytest.mark.both_stores


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
            {"code": f"agent.{state}", "detail": "the lab moves", "agents": ["bench"], "more": 0}
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


async def test_a_reset_takes_back_every_order_and_is_counted(database_url: str) -> None:
    async with Database.open(database_url) as db, db.write() as conn:
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


async def ordered(b: Bench, what: str, body: Any = None, *, agent: str = "bench") -> Any:
    """Give an order as an operator."""
    operator = await b.client_of(Role.OPERATOR)
    return await operator.ask("POST", f"/services/agents/{agent}/{what}", body)


async def test_a_pause_is_sent_shown_and_taken_back(tmp: Path) -> None:
    async with bench(tmp) as b:
        client, agent = await b.client_of(Role.BUILDER), await b.agent()
        answer = await ordered(b, "pause", {"reason": "the lab moves"})
        assert (answer.status, answer.body["state"]) == (200, "paused")
        assert (await agent.next(Pause)).reason == "the lab moves"
        assert (await client.request(target="esp32")).status == 202
        answer = await ordered(b, "resume", agent=agent.id)
        assert (answer.body["state"], answer.body["reason"]) == ("online", "")
        await agent.next(Resume)
        await client.granted(target="esp32")


async def test_an_order_is_told_to_an_agent_when_its_link_is_back(tmp: Path) -> None:
    async with bench(tmp) as b:
        agent = b.machine()
        await agent.enroll()
        answer = await ordered(b, "drain", {"deadline_secs": 600, "reason": "new disk"})
        assert (answer.status, answer.body["state"]) == (200, "disconnected")
    async with bench(tmp) as b:
        agent.base_url, agent._session = b.base_url, b.session
        standing = (await agent.link()).standing
        assert (standing.ordered, standing.reason) == (Order.DRAINING, "new disk")
        assert standing.deadline_secs is not None and 500 < standing.deadline_secs <= 600


async def test_a_job_that_nobody_connected_to_yet_goes_elsewhere_when_its_agent_is_paused(
    tmp: Path,
) -> None:
    async with bench(tmp) as b:
        client, first = await b.client_of(Role.BUILDER), await b.agent("first")
        waits = await client.granted(target="esp32")
        runs = await b.running(client, first, target="esp32")
        second = await b.agent("second")
        await ordered(b, "pause", {}, agent="first")
        await first.next(Pause)
        assert (await first.next(JobCancel)).job_id == waits.job_id
        job = await client.until_state(waits.job_id, "assigned")
        assert (job["agent_id"], job["attempt"]) == (second.id, 2)
        job = await client.job(runs.job_id)
        assert (job["state"], job["agent_id"]) == ("running", first.id)


async def test_a_drain_tells_the_agent_its_deadline_and_force_is_at_once(tmp: Path) -> None:
    async with bench(tmp) as b:
        agent = await b.agent()
        await ordered(b, "drain", {})
        assert (await agent.next(Drain)).deadline_secs is None
        assert (await shown(await b.client_of(Role.VIEWER)))["state"] == "draining"
        await ordered(b, "drain", {"deadline_secs": 0})
        assert (await agent.next(Drain)).deadline_secs == 0


async def told_quarantined(b: Bench, agent: FakeAgent, reason: str, *, resets: int) -> None:
    await agent.send(Status(paused=reason, quarantined=reason, resets=resets))
    link = link_of(b.served, agent.id)
    await until(lambda: link.paused == reason)


async def until_shown(client: Client, state: str) -> dict[str, Any]:
    """The agent once it is shown so: what it says is kept a moment after it was heard."""
    async with asyncio.timeout(10):
        while (view := await shown(client))["state"] != state:
            await asyncio.sleep(0.02)
    return view


async def test_an_agent_that_quarantines_itself_stays_so_until_it_is_reset(tmp: Path) -> None:
    async with bench(tmp) as b:
        client, agent = await b.client_of(Role.BUILDER), await b.agent()
        await told_quarantined(b, agent, "3 builds failed", resets=0)
        assert (await until_shown(client, "quarantined"))["reason"] == "3 builds failed"
        for order in ("pause", "resume", "drain"):
            refused = await ordered(b, order, None if order == "resume" else {})
            assert (refused.status, refused.error.code) == (409, "agent.quarantined")
            assert "reset-agent" in refused.error.remedy
        await agent.link(quarantined="3 builds failed", paused="3 builds failed")
        assert (await shown(client))["state"] == "quarantined"
        assert (await ordered(b, "reset")).status == 200
        assert (await agent.next(Reset)).resets == 1
        await told_quarantined(b, agent, "3 builds failed", resets=0)  # it had not heard of it yet
        await agent.send(Status(resets=1))
        await until(lambda: link_of(b.served, agent.id).paused is None)
        assert (await shown(client))["state"] == "online"


async def test_a_quarantine_from_before_a_reset_is_void_when_the_agent_comes_back(
    tmp: Path,
) -> None:
    async with bench(tmp) as b:
        agent = b.machine()
        await agent.enroll()
        await agent.link(quarantined="3 builds failed")
        assert agent.welcome is not None
        assert agent.welcome.standing.ordered is Order.QUARANTINED
        await agent.leave()
        await ordered(b, "reset")
        standing = (await agent.link(quarantined="3 builds failed", resets=0)).standing
        assert (standing.ordered, standing.resets) == (Order.NONE, 1)
        standing = (await agent.link(quarantined="3 more failed", resets=1)).standing
        assert (standing.ordered, standing.reason) == (Order.QUARANTINED, "3 more failed")


@pytest.mark.parametrize("order", ["pause", "resume", "drain", "reset"])
async def test_only_operators_order_and_only_of_agents_that_are_there(
    tmp: Path, order: str
) -> None:
    async with bench(tmp) as b:
        await b.agent()
        flasher = await b.client_of(Role.FLASHER)
        path = f"/services/agents/bench/{order}"
        refused = await flasher.ask("POST", path, {})
        assert (refused.status, refused.error.code) == (403, "role.insufficient")
        body: dict[str, Any] | None = {} if order in ("pause", "drain") else None
        missing = await ordered(b, order, body, agent="nobody")
        assert (missing.status, missing.error.code) == (404, "agent.not_found")


async def test_orders_stand_in_the_audit_with_who_gave_them(tmp: Path) -> None:
    async with bench(tmp) as b:
        agent = await b.agent()
        await ordered(b, "pause", {"reason": "the lab moves"})
        await ordered(b, "reset")
        async with b.served.control.database.read() as conn:
            rows = (await conn.execute(select(audit).order_by(audit.c.id))).all()
        acts = [row for row in rows if row.what in ("agent.paused", "agent.reset")]
        assert [row.what for row in acts] == ["agent.paused", "agent.reset"]
        assert all(row.agent_id == agent.id and row.source == "127.0.0.1" for row in acts)
        assert acts[0].facts["reason"] == "the lab moves"


async def test_the_commands_order_and_show_the_agent(tmp: Path) -> None:
    with capture_logs():  # what a command prints is not to be mixed with control's log
        await commands(tmp)


async def commands(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent = await b.agent()
        paused = await call(tmp, "pause-agent", "bench", "--reason", "the lab moves")
        assert (paused.code, paused.err) == (0, "")
        assert "paused: the lab moves" in paused.out
        await agent.next(Pause)
        drained = await call(tmp, "drain-agent", agent.id, "--deadline", "30m", "--json")
        assert drained.data["state"] == "draining"
        assert (await agent.next(Drain)).deadline_secs == pytest.approx(1800, abs=60)
        forced = await call(tmp, "drain-agent", "bench", "--force")
        assert (forced.code, (await agent.next(Drain)).deadline_secs) == (0, 0)
        assert "online" in (await call(tmp, "resume-agent", "bench")).out
        assert "online" in (await call(tmp, "reset-agent", "bench")).out
        for words, code in ((("--deadline", "soon"), 9), (("--force", "--deadline", "1m"), 2)):
            wrong = await call(tmp, "drain-agent", "bench", *words)
            assert wrong.code == code and "Traceback" not in wrong.err
        missing = await call(tmp, "reset-agent", "nobody", "--json")
        assert missing.code == 8
