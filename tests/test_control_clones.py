"""An agent whose key was copied to a second machine: seen, quarantined, told, and lifted."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aegis_control.link.clones import Arrival, flaps
from aegis_control.store import agent_links
from aegis_control.store.tables import agents
from aegis_protocol.actions import Role
from aegis_protocol.control_link import JobOffer
from control_fixtures import Bench, FakeAgent, bench
from control_runs import call
from databases import database_kind, database_url, postgres
from sqlalchemy import update
from stand import Stand, a_stand
from structlog.testing import capture_logs
from waiting import until

__all__ = ["database_kind", "database_url", "postgres"]

pytestmark = pytest.mark.both_stores

HEADERS = {"X-Forwarded-For": "192.0.2.9"}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with capture_logs():
        yield


@pytest.mark.parametrize(
    ("instances", "cloned"),
    [
        ("A", False),
        ("AAAAAAAAAA", False),  # its network flaps
        ("ABCDEFGH", False),  # it is started again and again
        ("AABBCC", False),
        ("ABAB", False),  # three changes
        ("ABABA", True),
        ("ABCABC", True),
        ("AABBAABBAA", True),
        ("ABCDA", True),  # A lived while B, C and D were there
    ],
)
def test_who_comes_back_after_another_was_alive_all_the_while(instances: str, cloned: bool) -> None:
    assert flaps([Arrival(0.0, instance, "192.0.2.1") for instance in instances]) is cloned


@asynccontextmanager
async def two_of_a_kind(b: Bench) -> AsyncIterator[tuple[FakeAgent, FakeAgent]]:
    """An agent and its copy, which comes from another address by way of a trusted proxy."""
    async with aiohttp.ClientSession(headers=HEADERS) as elsewhere:
        agent = await b.agent()
        twin = FakeAgent(elsewhere, b.base_url, name=agent.name)
        twin.key, twin.id = agent.key, agent.id
        yield agent, twin


async def flap(agent: FakeAgent, twin: FakeAgent) -> None:
    """Have both take the link three times from each other; `twin` has it then."""
    for _ in range(3):
        last, now = agent, twin
        await now.link()
        assert await last.refusal() == "link.superseded"
        agent, twin = twin, agent


async def test_two_processes_with_one_key_are_quarantined_and_list_agents_says_why(
    tmp: Path,
) -> None:
    async with (
        bench(tmp / "s", trusted_proxies="127.0.0.0/8") as b,
        two_of_a_kind(b) as (agent, twin),
    ):
        client = b.client()
        await flap(agent, twin)  # twin, agent, twin
        await agent.send_hello()
        assert await agent.refusal() == "agent.key_cloned"

        (row,) = (await client.ask("GET", "/agents")).body["agents"]
        assert row["state"] == "quarantined"
        for word in ("127.0.0.1", "192.0.2.9", "this agent's key", "reset-agent"):
            assert word in row["reason"]
        assert "192.0.2.9" in (await call(tmp, "list-agents")).out
        waits = await client.request()
        assert waits.status == 202
        assert [reason["code"] for reason in waits.body["reasons"]] == ["agent.quarantined"]

        for _ in range(3):  # whoever has the link keeps it
            await agent.send_hello()
            assert await agent.refusal() == "agent.key_cloned"
        assert b.served.control.links.find(agent.id) is not None

        operator = await b.client_of(Role.OPERATOR)
        reset = await operator.ask("POST", f"/services/agents/{agent.id}/reset")
        assert reset.body["state"] == "online"
        await twin.link()
        granted = await client.granted(job_id=waits.body["job_id"])
        await client.offer(granted)
        await twin.next(JobOffer)


async def test_the_other_is_refused_while_the_link_is_up_and_for_a_while_after_it(
    tmp: Path,
) -> None:
    async with bench(tmp / "s") as b, two_of_a_kind(b) as (agent, twin):
        await flap(agent, twin)
        await agent.send_hello()
        assert await agent.refusal() == "agent.key_cloned"
        await last_seen(b, agent.id, time.time() - 60)  # that is written down now and then only
        await agent.send_hello()
        assert await agent.refusal() == "agent.key_cloned"

        await twin.leave()
        await until(lambda: b.served.control.links.find_own(agent.id) is None)
        assert await ended(b, agent.id)
        await agent.send_hello()
        assert await agent.refusal() == "agent.key_cloned"
        await last_seen(b, agent.id, time.time() - 60)
        await agent.link()


async def last_seen(b: Bench, agent_id: str, at: float) -> None:
    """Have the store say that the agent was last heard then."""
    async with b.served.control.database.write() as conn:
        await conn.execute(update(agents).where(agents.c.id == agent_id).values(last_seen=at))


async def ended(b: Bench, agent_id: str) -> bool:
    """Wait until the store knows that the agent's link is over."""
    for _ in range(500):
        async with b.served.control.database.read() as conn:
            if not await agent_links.is_up(conn, agent_id):
                return True
        await asyncio.sleep(0.01)
    return False


async def test_a_reset_while_both_still_run_does_not_hold(tmp: Path) -> None:
    async with bench(tmp / "s") as b, two_of_a_kind(b) as (agent, twin):
        await flap(agent, twin)
        await agent.send_hello()
        assert await agent.refusal() == "agent.key_cloned"
        operator = await b.client_of(Role.OPERATOR)
        await operator.ask("POST", f"/services/agents/{agent.id}/reset")
        for _ in range(2):
            await agent.link()
            await twin.link()
        await agent.send_hello()
        assert await agent.refusal() == "agent.key_cloned"


async def test_an_agent_that_starts_often_or_whose_network_flaps_is_not_taken_for_two(
    tmp: Path,
) -> None:
    async with bench(tmp / "s") as b:
        agent = await b.agent()
        for _ in range(8):
            await agent.link()  # the old socket is still open
        for _ in range(8):
            agent = b.copy(agent)
            await agent.link()
        (row,) = (await b.client().ask("GET", "/agents")).body["agents"]
        assert row["state"] == "online"


async def test_two_that_meet_different_replicas_are_seen_too(tmp: Path, database_url: str) -> None:
    shared = {"database_url": database_url, "seal_key": "what replicas share lies sealed with this"}
    async with (
        bench(tmp / "one", **shared) as one,
        bench(tmp / "two", **shared) as two,
    ):
        agent = await one.agent()
        twin = two.machine(agent.name)
        twin.key, twin.id = agent.key, agent.id
        await twin.link()
        await agent.link()
        await twin.link()
        await agent.send_hello()
        assert await agent.refusal() == "agent.key_cloned"
        for b in (one, two):
            (row,) = (await b.client().ask("GET", "/agents")).body["agents"]
            assert row["state"] == "quarantined"


async def test_what_was_given_to_it_and_not_begun_goes_elsewhere(tmp: Path) -> None:
    async with bench(tmp / "s") as b, two_of_a_kind(b) as (agent, twin):
        client = b.client()
        job_id = (await client.granted()).job_id
        await flap(agent, twin)
        await agent.send_hello()
        assert await agent.refusal() == "agent.key_cloned"
        assert (await client.job(job_id))["state"] == "pending"
        await b.agent("other")
        job = await client.until_state(job_id, "assigned")
        assert job["agent_name"] == "other"


@pytest.mark.long
def test_a_copied_state_directory_is_seen_when_both_agents_run(tmp: Path) -> None:
    with a_stand(tmp) as stand:
        _run_both(stand)


def _run_both(stand: Stand) -> None:
    stand.agent("lab")
    shutil.copytree(stand.folder / "lab", stand.folder / "copy")
    stand.start(
        "copy",
        *("aegis-agent", "run"),
        AEGIS_STATE_DIR=str(stand.folder / "copy"),
        AEGIS_AGENT_NAME="lab",
    )
    stand.until(lambda: stand.agent_row("lab")["state"] == "quarantined", "the quarantine")
    row = stand.agent_row("lab")
    assert "two processes use this agent's key" in row["reason"]
    assert "127.0.0.1" in row["reason"]
    lab, copy = (program for program in stand.programs if program.name in ("lab", "copy"))
    stand.until(
        lambda: "agent.key_cloned" in lab.output() + copy.output(), "the refusal", lab, copy
    )
    assert lab.process.poll() is None and copy.process.poll() is None, "neither may end the other"

    refused = lab if "agent.key_cloned" in lab.output() else copy
    refused.stop()
    stand.admin("reset-agent", "lab").expect()
    stand.until(lambda: stand.agent_row("lab")["state"] == "online", "the agent")
