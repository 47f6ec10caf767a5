"""What time and restarts do to jobs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from aegis_control.deadlines import Due, Graces, due
from aegis_control.store import jobs
from aegis_control.store.jobs import JobRecord
from aegis_protocol.control_link import HeldJob, JobCancel, JobOffer
from aegis_protocol.events import Assigned, State
from aegis_protocol.http_api.grants import GrantRequest
from aegis_protocol.states import JobState
from control_fixtures import FINGERPRINT, Bench, Events, FakeAgent, bench, board, control
from waiting import until

pytestmark = pytest.mark.both_stores

GRACES = Graces(
    absent_after_s=60,
    max_wait_s=14_400,
    connect_grace_s=60,
    lost_after_s=120,
    failed_after_s=300,
)
JOB = JobRecord(
    id="j",
    identity="me",
    state=JobState.PENDING,
    attempt=1,
    request=GrantRequest(peer_fingerprint=FINGERPRINT, required_channels=("espctl",)),
    limits={},
    agent_id=None,
    boards={},
    candidates=(),
    reasons=(),
    error=None,
    returns=0,
    created_at=1000,
    updated_at=1000,
    assigned_at=None,
    ends_at=None,
)
LIVE = replace(JOB, agent_id="a", assigned_at=1000.0)
LACKED = replace(LIVE, state=JobState.LOST, error={"code": "agent.gone"})


@pytest.mark.parametrize(
    ("job", "absent_s", "down_s", "after_s", "to", "code"),
    [
        (JOB, 59, 0, 10_000, None, None),
        (JOB, 61, 0, 61, JobState.EXPIRED, "job.wait_expired"),
        (replace(LIVE, state=JobState.ASSIGNED), 999, 0, 59, None, None),
        (replace(LIVE, state=JobState.ASSIGNED), 0, 0, 61, JobState.PENDING, None),
        (
            replace(LIVE, state=JobState.ASSIGNED, returns=1),
            0,
            0,
            61,
            JobState.EXPIRED,
            "job.wait_expired",
        ),
        (
            replace(LIVE, state=JobState.PENDING),
            0,
            0,
            14_401,
            JobState.EXPIRED,
            "job.wait_expired",
        ),
        (replace(LIVE, state=JobState.RUNNING), 999, 119, 9999, None, None),
        (replace(LIVE, state=JobState.RUNNING), 0, 121, 121, JobState.LOST, None),
        (replace(LIVE, state=JobState.LOST), 0, 421, 299, None, None),
        (replace(LIVE, state=JobState.LOST), 0, 421, 301, JobState.FAILED, "agent.gone"),
        (LACKED, 0, 0, 11, None, None),
        (LACKED, 0, 0, 13, JobState.PENDING, None),
        (LACKED, 30, 0, 13, JobState.FAILED, "agent.gone"),
        (replace(LIVE, state=JobState.RUNNING, ends_at=1050.0), 0, 0, 109, None, None),
        (
            replace(LIVE, state=JobState.RUNNING, ends_at=1050.0),
            0,
            0,
            111,
            JobState.EXPIRED,
            "session.over",
        ),
    ],
)
def test_what_is_due_follows_the_clock(
    job: JobRecord,
    absent_s: float,
    down_s: float,
    after_s: float,
    to: JobState | None,
    code: str | None,
) -> None:
    found = due(
        job,
        GRACES,
        now_s=1000 + after_s,
        absent_s=absent_s,
        waits=absent_s < 20,
        agent_down_s=down_s,
    )
    if to is None:
        assert found is None
        return
    assert isinstance(found, Due)
    assert found.to is to
    assert (found.error.code if found.error else None) == code


@pytest.mark.parametrize(
    "job",
    [
        JOB,
        LACKED,
        *(replace(LIVE, state=s) for s in (JobState.ASSIGNED, JobState.RUNNING, JobState.LOST)),
    ],
)
def test_no_grace_runs_while_the_store_is_away(job: JobRecord) -> None:
    def look(store_up_s: float) -> Due | None:
        return due(
            job,
            GRACES,
            now_s=2000,
            absent_s=1000,
            waits=False,
            agent_down_s=1000,
            store_up_s=store_up_s,
        )

    assert look(10) is None
    assert look(1000) is not None


async def test_a_waiting_job_whose_client_left_is_dropped_and_one_that_listens_is_kept(
    tmp: Path,
) -> None:
    async with bench(tmp / "s", absent_after_s=0.3) as b:
        client = b.client()
        left = (await client.request()).body["job_id"]
        kept = (await client.request()).body["job_id"]
        async with client.events(kept):
            await _in_state(b, left, JobState.EXPIRED)
            assert (await client.job(left))["error"]["code"] == "job.wait_expired"
            assert (await client.job(kept))["state"] == "pending"


async def test_a_job_to_which_nobody_connects_is_placed_once_more_and_then_expires(
    tmp: Path,
) -> None:
    async with bench(tmp / "s", connect_grace_s=0.2) as b:
        agent, client = await b.agent(boards=(board("p4-1"),)), b.client()
        grant = await client.granted(boards=[{"id": "p4-1"}])
        async with client.events(grant.job_id) as events:
            await events.until(Assigned)
            assert (await events.until(State)).state is JobState.PENDING
            await events.until(Assigned)
            assert isinstance(await agent.receive(), JobCancel)
            again = await client.granted(job_id=grant.job_id)
            claims = b.served.control.issuer.verify(again.grant)
            assert (claims.attempt, claims.execution.boards) == (2, {"p4-1": 2})
            late = await client.offer(grant)
            assert (late.status, late.error.code) == (409, "grant.stale")
            states = [e.state async for e in _states(events)]
            assert states[-1] is JobState.EXPIRED


async def test_a_job_is_lost_with_its_agent_and_fails_when_it_stays_away(tmp: Path) -> None:
    async with bench(tmp / "s", lost_after_s=0.2, failed_after_s=2.0) as b:
        agent, client = await b.agent(boards=(board("p4-1"),)), b.client()
        grant = await b.running(client, agent, boards=[{"id": "p4-1"}])
        await agent.leave()
        await _in_state(b, grant.job_id, JobState.LOST)
        (row,) = (await client.ask("GET", "/boards")).body["boards"]
        assert row["holder"] == grant.job_id  # held until it has failed
        await _in_state(b, grant.job_id, JobState.FAILED)
        assert (await client.job(grant.job_id))["error"]["code"] == "agent.gone"
        (row,) = (await client.ask("GET", "/boards")).body["boards"]
        assert row["holder"] is None


async def test_a_lost_job_runs_again_when_its_agent_comes_back_with_it(tmp: Path) -> None:
    async with bench(tmp / "s", lost_after_s=0.1) as b:
        agent, client = await b.agent(), b.client()
        grant = await b.running(client, agent)
        await agent.leave()
        await _in_state(b, grant.job_id, JobState.LOST)
        await agent.link(HeldJob(job_id=grant.job_id, state=JobState.RUNNING))
        assert (await client.job(grant.job_id))["state"] == "running"


async def test_jobs_links_and_streams_go_on_after_control_restarts(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent, client = await b.agent(boards=(board("p4-1"),)), b.client()
        grant = await b.running(client, agent, boards=[{"id": "p4-1"}])
        waits = (await client.request(target="esp32c6")).body["job_id"]
        async with client.events(grant.job_id) as events:
            await events.until(Assigned)
            last = next(i for i in reversed(events.ids) if i is not None)
            port = b.base_url.rsplit(":", 1)[1]
    # The block has closed control and its sockets; the agent and its job live on.
    async with (
        control(tmp / "s", listen=f"127.0.0.1:{port}") as served,
        aiohttp.ClientSession() as session,
    ):
        b2 = Bench(served, session)
        client = b2.client()
        assert (await client.job(grant.job_id))["state"] == "running"
        assert (await client.job(waits))["state"] == "pending"
        back = FakeAgent(session, b2.base_url, boards=(board("p4-1"),))
        back.key, back.id = agent.key, agent.id
        async with client.events(grant.job_id, after=last) as events:
            held = HeldJob(job_id=grant.job_id, state=JobState.RUNNING, boards={"p4-1": 1})
            welcome = await back.link(held)
            assert welcome.over_jobs == ()
            assert (await events.until(State)).state is JobState.RUNNING
        again = await client.granted(job_id=grant.job_id)
        assert served.control.issuer.verify(again.grant).execution.boards == {"p4-1": 1}
        assert served.control.issuer.kid == b.served.control.issuer.kid
        await client.offer(again)
        assert isinstance(await back.receive(), JobOffer)


async def test_the_grace_of_an_agent_begins_afresh_when_control_restarts(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent, client = await b.agent(), b.client()
        grant = await b.running(client, agent)
    began = time.monotonic()
    async with bench(tmp / "s", lost_after_s=0.4) as b:
        await _in_state(b, grant.job_id, JobState.LOST)
        assert time.monotonic() - began >= 0.3


async def test_control_that_stops_ends_streams_and_links_and_says_it_drains(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent, client = await b.agent(), b.client()
        grant = await b.running(client, agent)
        async with client.events(grant.job_id) as events:
            await events.until(Assigned)
            b.served.control.stop()
            assert await agent.refusal() == "control.unavailable"
            kinds = [event.type for event in await events.rest()]
            assert "closed" not in kinds  # the agent is not gone, control is
        health = await client.ask("GET", "/health")
        assert (health.status, health.body["status"]) == (503, "draining")
        late = await client.request()
        assert (late.status, late.error.code) == (503, "control.unavailable")
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await agent.open()


async def test_what_is_old_is_forgotten(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        client = b.client()
        job_id = (await client.request()).body["job_id"]
        await client.ask("DELETE", f"/jobs/{job_id}")
        async with b.served.control.database.write() as conn:
            assert await jobs.forget_ended(conn, before_s=time.time() - 60) == 0
            assert await jobs.forget_ended(conn, before_s=time.time() + 60) == 1
        assert (await client.ask("GET", f"/jobs/{job_id}")).status == 404


async def _in_state(b: Bench, job_id: str, state: JobState) -> None:
    """Wait for a state without being the job's client (asking would count as being there)."""

    async with asyncio.timeout(10):
        while (await b.served.control.ledger.get(job_id)).state is not state:
            await asyncio.sleep(0.02)
            await b.served.control.deadlines.look()  # sooner than its loop does


async def _states(events: Events) -> AsyncIterator[State]:
    while (event := await events.next()) is not None:
        if isinstance(event, State):
            yield event


async def test_the_counts_of_health_follow_what_lives(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent, client = await b.agent(), b.client()
        grant = await b.running(client, agent)
        async with client.events(grant.job_id):
            sessions = (await client.ask("GET", "/health/sessions")).body
            assert sessions == {"jobs": 1, "links": 1, "event_streams": 1, "sessions": 1}
        await until(lambda: b.served.control.streams.count == 0)
        health = (await client.ask("GET", "/health")).body
        assert (health["status"], health["store"], health["agents_online"]) == ("ok", "ok", 1)
        assert abs(health["time"] - time.time()) < 5
