"""A job whose agent came back without it: placed again while it is wanted and safe, else failed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aegis_control import deadlines
from aegis_control.link.lacking import MOST_ATTEMPTS
from aegis_control.store import agent_links
from aegis_protocol.control_link import HeldJob, JobOffer
from aegis_protocol.events import Assigned, State
from aegis_protocol.http_api.grants import GrantReply
from aegis_protocol.states import JobState
from control_fixtures import WITHIN_S, Bench, Client, FakeAgent, bench, board
from databases import database_kind, database_url, postgres, postgres_url
from test_control_replicas import replicas_of, sees

__all__ = ["database_kind", "database_url", "postgres", "postgres_url"]


async def restarted(b: Bench, agent: FakeAgent, *held: HeldJob) -> None:
    """The agent's process ends, control hears of it, and a new one comes."""
    await agent.leave()
    database = b.served.control.database
    async with asyncio.timeout(WITHIN_S):
        over = False
        while not over:
            async with database.read() as conn:
                over = await agent_links.is_over(conn, agent.id)
    await agent.link(*held)


async def offered(b: Bench, agent: FakeAgent, client: Client, job_id: str) -> GrantReply:
    """Ask for a grant of the job that was placed again, and connect."""
    await client.until_state(job_id, "assigned")
    grant = await client.granted(job_id=job_id)
    assert (await client.offer(grant)).status == 202
    await agent.accept(await agent.next(JobOffer))
    await client.until_state(job_id, "running")
    return grant


async def test_a_job_that_its_client_waits_for_is_placed_again(
    tmp: Path, database_url: str
) -> None:
    async with bench(tmp / "s", database_url=database_url) as b:
        agent, client = await b.agent(), b.client()
        first = await b.running(client, agent)
        ledger = b.served.control.ledger
        assert (await ledger.get(first.job_id)).ends_at is not None
        async with client.events(first.job_id) as events:
            await restarted(b, agent)
            await events.until(State, lambda state: state.state is JobState.LOST)
            assert (await events.until(State)).state is JobState.PENDING
            await events.until(Assigned)
            job = await client.job(first.job_id)
            assert (job["state"], job["attempt"], job["error"]) == ("assigned", 2, None)
            assert (await ledger.get(first.job_id)).ends_at is None
            late = await client.offer(first)
            assert (late.status, late.error.code) == (409, "grant.stale")
            second = await offered(b, agent, client, first.job_id)
        assert b.served.control.issuer.verify(second.grant).attempt == 2
        operator = b.client((tmp / "s/operator.key").read_text().strip())
        sessions = (await operator.ask("GET", f"/services/sessions?job={first.job_id}")).body
        assert [row["jti"] for row in sessions["sessions"]] == [
            b.served.control.issuer.verify(second.grant).jti
        ]


async def test_a_job_that_nobody_waits_for_has_failed_when_that_is_certain(
    tmp: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "_ASK_AROUND_S", 0.5)
    monkeypatch.setattr("aegis_control.presence._WAITS_S", 0.0)
    async with bench(tmp / "s", database_url=database_url) as b:
        agent, client = await b.agent(), b.client()
        grant = await b.running(client, agent)
        await restarted(b, agent)
        job = await client.job(grant.job_id)
        assert (job["state"], job["error"]["code"]) == ("lost", "agent.gone")
        job = await client.until_state(grant.job_id, "failed")
        assert (job["error"]["code"], job["attempt"]) == ("agent.gone", 1)


@pytest.mark.parametrize(
    ("actions", "state", "code"),
    [
        (None, "failed", "board.in_doubt"),
        (["console.read", "console.write"], "failed", "board.in_doubt"),
        (["board.read", "console.read"], "assigned", None),
    ],
)
async def test_a_job_that_may_have_written_to_its_board_is_not_repeated(
    tmp: Path, actions: list[str] | None, state: str, code: str | None
) -> None:
    wish: dict[str, Any] = {"boards": [{"id": "p4-1"}]}
    if actions is not None:
        wish["actions"] = actions
    async with bench(tmp / "s") as b:
        agent, client = await b.agent(boards=(board("p4-1"),)), b.client()
        grant = await b.running(client, agent, **wish)
        async with client.events(grant.job_id):
            await restarted(b, agent)
            job = await client.until_state(grant.job_id, state)
            assert (job["error"] or {}).get("code") == code
            if code is not None:
                assert "p4-1" in job["error"]["message"]
                return
            claims = b.served.control.issuer.verify(
                (await client.granted(job_id=grant.job_id)).grant
            )
            assert (claims.attempt, claims.execution.boards) == (2, {"p4-1": 2})


async def test_a_job_with_a_board_that_nobody_connected_to_since_is_safe(tmp: Path) -> None:
    async with bench(tmp / "s", lost_after_s=0.1) as b:
        agent, client = await b.agent(boards=(board("p4-1"),)), b.client()
        grant = await client.granted(boards=[{"id": "p4-1"}])
        async with client.events(grant.job_id):
            await agent.leave()
            await client.until_state(grant.job_id, "lost")
            await agent.link()
            job = await client.until_state(grant.job_id, "assigned")
            assert job["attempt"] == 2


async def test_a_job_that_its_agents_lose_again_and_again_has_failed(
    tmp: Path, database_url: str
) -> None:
    async with bench(tmp / "s", database_url=database_url) as b:
        agent, client = await b.agent(), b.client()
        grant = await b.running(client, agent)
        async with client.events(grant.job_id):
            for attempt in range(2, MOST_ATTEMPTS + 1):
                await restarted(b, agent)
                grant = await offered(b, agent, client, grant.job_id)
                assert b.served.control.issuer.verify(grant.grant).attempt == attempt
            await restarted(b, agent)
            job = await client.until_state(grant.job_id, "failed")
        assert job["error"]["code"] == "agent.gone"
        assert job["error"]["facts"]["attempts"] == MOST_ATTEMPTS


async def test_a_process_that_still_lives_gets_its_job_back_from_one_that_lacks_it(
    tmp: Path, database_url: str
) -> None:
    async with bench(tmp / "s", database_url=database_url) as b:
        agent, client = await b.agent(), b.client()
        grant = await b.running(client, agent)
        twin = b.copy(agent)
        async with client.events(grant.job_id):
            await twin.link()  # while the link of the other is up
            job = await client.job(grant.job_id)
            assert (job["state"], job["attempt"]) == ("lost", 1)
            await agent.link(HeldJob(job_id=grant.job_id, state=JobState.RUNNING))
            job = await client.until_state(grant.job_id, "running")
            assert (job["attempt"], job["error"]) == (1, None)


async def test_a_client_that_listens_at_another_replica_waits_too(
    tmp: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "_ASK_AROUND_S", 3.0)
    monkeypatch.setattr("aegis_control.presence._WAITS_S", 2.5)
    async with replicas_of(tmp, postgres_url, absent_after_s=2.0) as (a, b):
        agent = await b.agent()
        await sees(a, agent)
        waits, left = a.client(), a.client()
        kept = await b.running(waits, agent)
        dropped = await b.running(left, agent)
        async with waits.events(kept.job_id):
            await restarted(b, agent)
            assert (await waits.job(kept.job_id))["state"] == "lost"
            job = await waits.until_state(kept.job_id, "assigned", within_s=15)
            assert job["attempt"] == 2
            await left.until_state(dropped.job_id, "failed", within_s=15)
