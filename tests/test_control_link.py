"""The agents' WebSocket: who may link up, how a link ends, and what both sides still have."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import aiohttp
import pytest
from aegis_control.link.reconcile import reconcile
from aegis_control.store.jobs import JobRecord
from aegis_protocol.actions import Role
from aegis_protocol.control_link import (
    BoardsChanged,
    Challenge,
    HeldJob,
    JobCancel,
    JobMoved,
    JobOffer,
    Status,
)
from aegis_protocol.errors import ErrorBody
from aegis_protocol.http_api.grants import GrantRequest
from aegis_protocol.signing import b64, link_statement, public_bytes
from aegis_protocol.states import JobState
from control_fixtures import FINGERPRINT, Bench, bench, board, link_of
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from structlog.testing import capture_logs
from waiting import until

pytestmark = pytest.mark.both_stores


async def test_an_enrolled_agent_is_welcomed_with_the_issuers_key(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent = b.machine()
        enrolled = await agent.enroll()
        welcome = await agent.link()
        assert enrolled.agent_id == agent.id
        assert welcome.issuer_keys == enrolled.issuer_keys
        assert welcome.silence_secs == 15
        assert welcome.ping_secs < welcome.silence_secs / 2
        (shown,) = (await b.client().ask("GET", "/agents")).body["agents"]
        assert (shown["id"], shown["state"], shown["slots_free"]) == (agent.id, "online", 2)


async def test_a_machine_that_is_not_enrolled_is_refused(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent = b.machine()
        await agent.send_hello()
        assert await agent.refusal() == "link.refused"


async def test_a_hello_with_a_foreign_key_or_signature_is_refused(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent, thief = b.machine(), b.machine()
        await agent.enroll()
        forged = Ed25519PrivateKey.generate()
        for change in (
            {"signature": "AAAA"},
            {"signature": "not base64!"},
            {"public_key": b64(public_bytes(forged))},
        ):
            await agent.send_hello(**change)
            assert await agent.refusal() == "link.refused"
        thief.id = agent.id
        await thief.send_hello()
        assert await thief.refusal() == "link.refused"
        thief.key, genuine = agent.key, thief.key
        challenge = await thief.open()
        signature = genuine.sign(link_statement(challenge.nonce, challenge.base_url))
        await thief.send(thief.hello(challenge, signature=b64(signature)))
        assert await thief.refusal() == "link.refused"


async def test_a_recorded_hello_is_worth_nothing_on_another_link(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent = await b.agent()
        recorded = agent.hello(Challenge(nonce="n" * 32, base_url=b.base_url))
        challenge = await agent.open()
        good = agent.hello(challenge)
        await agent.open()
        await agent.send(good)
        assert await agent.refusal() == "link.refused"
        await agent.open()
        await agent.send(recorded)
        assert await agent.refusal() == "link.refused"


async def test_another_protocol_version_is_refused_with_both_numbers(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent = b.machine()
        await agent.enroll()
        await agent.send_hello(protocol=99)
        assert await agent.refusal() == "protocol.version_mismatch"


async def test_a_browser_may_not_link_up(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        for origin in (b.base_url, "https://evil.example.org"):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await b.session.ws_connect(f"{b.base_url}/agents/link", origin=origin)
            assert refused.value.status == 403


async def test_what_is_no_hello_is_refused(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent = b.machine()
        for text in ("{", "[]", '{"type": "hello"}', '{"type": "pong", "time": 1}'):
            await agent.open()
            assert agent.socket is not None
            await agent.socket.send_str(text)
            assert await agent.refusal() == "request.invalid"
        await agent.open()
        assert agent.socket is not None
        await agent.socket.send_bytes(b"\0\1")
        assert await agent.refusal() == "request.invalid"


async def test_who_says_nothing_is_not_waited_for(tmp: Path) -> None:
    async with bench(tmp / "s", connect_timeout_s=0.1) as b:
        agent = b.machine()
        await agent.open()
        assert await agent.refusal() == "request.invalid"


async def test_a_frame_that_is_too_large_ends_the_link(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent = await b.agent()
        assert agent.socket is not None
        await agent.socket.send_str(" " * 300_000)
        assert await agent.receive() is None
        await until(lambda: not b.served.control.links.all())


async def test_a_frame_of_a_newer_version_is_passed_over(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent = await b.agent()
        assert agent.socket is not None
        await agent.socket.send_str(json.dumps({"type": "moon.phase", "phase": 3}))
        await agent.send(Status(paused="still understood"))
        link = link_of(b.served, agent.id)
        await until(lambda: link.paused)


async def test_a_silent_link_is_down_and_a_pong_keeps_one_up(tmp: Path) -> None:
    async with bench(tmp / "s", link_timeout_s=0.4) as b:
        alive, mute = await b.agent("alive"), await b.agent("mute")
        links = b.served.control.links

        async def answer_pings() -> None:
            while await alive.receive() is not None:
                pass

        pinged = asyncio.create_task(answer_pings())
        began = time.monotonic()
        await until(lambda: links.find(mute.id) is None)
        assert time.monotonic() - began >= 0.3
        await asyncio.wait([pinged], timeout=0.6)  # longer than silence may last
        assert links.find(alive.id) is not None
        states = (await b.client().ask("GET", "/agents")).body["agents"]
        assert {a["name"]: a["state"] for a in states} == {
            "alive": "online",
            "mute": "disconnected",
        }
        pinged.cancel()


async def test_a_newer_hello_supersedes_the_older_link(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent, client = await b.agent(), b.client()
        grant = await b.running(client, agent)
        old = agent.socket
        twin = b.machine()
        twin.key, twin.id = agent.key, agent.id
        async with client.events(grant.job_id) as events:
            await twin.link(HeldJob(job_id=grant.job_id, state=JobState.RUNNING))
            assert await agent.refusal() == "link.superseded"
            assert old is not None and old.closed
            again = await client.granted(job_id=grant.job_id)
            await client.offer(again)
            offer = await twin.next(JobOffer)
            await twin.answer(offer)
            kinds = []
            while (event := await events.next()) is not None and event.type != "answer":
                kinds.append(event.type)
        assert "closed" not in kinds  # the agent was never gone
        assert link_of(b.served, agent.id).epoch == 2


async def test_what_an_agent_says_of_itself_changes_who_fits(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent, client = await b.agent(), b.client()
        await agent.send(Status(paused="disk 96 %"))
        link = link_of(b.served, agent.id)
        await until(lambda: link.paused)
        waits = await client.request(boards=[{"id": "p4-1"}])
        (reason,) = waits.body["reasons"]
        assert (reason["code"], reason["detail"]) == ("agent.paused", "disk 96 %")
        (shown,) = (await client.ask("GET", "/agents")).body["agents"]
        assert (shown["state"], shown["reason"]) == ("paused", "disk 96 %")
        await agent.send(BoardsChanged(boards=(board("p4-1"),)))
        await agent.send(Status())
        await client.until_state(waits.body["job_id"], "assigned")
        await agent.send(Status(draining=True))
        await until(lambda: link.draining)
        (reason,) = (await client.request()).body["reasons"]
        assert reason["code"] == "agent.draining"


async def test_the_end_that_an_agent_tells_is_the_jobs_end(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent, client = await b.agent(boards=(board("p4-1"),)), b.client()
        grant = await b.running(client, agent, boards=[{"id": "p4-1"}])
        error = ErrorBody(code="build.failed", message="two errors")
        await agent.send(JobMoved(job_id=grant.job_id, state=JobState.FAILED, error=error))
        job = await client.until_state(grant.job_id, "failed")
        assert job["error"]["code"] == "build.failed"
        assert (await client.granted(boards=[{"id": "p4-1"}])).agent_id == agent.id
        await agent.send(JobMoved(job_id=grant.job_id, state=JobState.SUCCEEDED))
        await _settled(b, agent.id)
        assert (await client.job(grant.job_id))["state"] == "failed"  # an end never moves


async def test_a_warm_project_draws_the_next_job_of_it(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        first, second = await b.agent("a"), await b.agent("b")
        client = b.client()
        grant = await b.running(client, second, agent_id="b")
        moved = JobMoved(job_id=grant.job_id, state=JobState.SUCCEEDED, project_key="blinky")
        await second.send(moved)
        await client.until_state(grant.job_id, "succeeded")
        assert (await client.granted(project_key="blinky")).agent_id == second.id
        assert (await client.granted(project_key="another")).agent_id == first.id


async def test_an_agent_that_came_back_with_one_of_two_jobs_has_lost_the_other(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent, client = await b.agent(), b.client()
        kept, lost = await b.running(client, agent), await b.running(client, agent)
        await agent.leave()
        welcome = await agent.link(
            HeldJob(job_id=kept.job_id, state=JobState.RUNNING),
            HeldJob(job_id="never-heard-of", state=JobState.RUNNING),
        )
        assert welcome.over_jobs == ("never-heard-of",)
        job = await client.until_state(lost.job_id, "assigned")
        assert job["attempt"] == 2
        assert (await client.job(kept.job_id))["state"] == "running"


async def test_a_job_that_was_canceled_while_its_agent_was_away_is_over_when_it_returns(
    tmp: Path,
) -> None:
    async with bench(tmp / "s") as b:
        agent, client = await b.agent(), b.client()
        grant = await b.running(client, agent)
        await agent.leave()
        await until(lambda: not b.served.control.links.all())
        canceled = await client.ask("DELETE", f"/jobs/{grant.job_id}")
        assert canceled.body["state"] == "canceled"
        welcome = await agent.link(HeldJob(job_id=grant.job_id, state=JobState.RUNNING))
        assert welcome.over_jobs == (grant.job_id,)


async def test_an_end_that_control_did_not_hear_of_is_told_in_the_next_hello(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent, client = await b.agent(), b.client()
        grant = await b.running(client, agent)
        await agent.leave()
        await agent.link(HeldJob(job_id=grant.job_id, state=JobState.SUCCEEDED))
        await client.until_state(grant.job_id, "succeeded")


async def test_canceling_asks_the_agent_and_takes_its_word(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent, client = await b.agent(), b.client()
        grant = await b.running(client, agent)
        asked = asyncio.create_task(client.ask("DELETE", f"/jobs/{grant.job_id}"))
        cancel = await agent.next(JobCancel)
        assert (await client.job(grant.job_id))["state"] == "running"
        await agent.send(JobMoved(job_id=cancel.job_id, state=JobState.CANCELED))
        answer = await asked
        assert (answer.status, answer.body["state"]) == (200, "canceled")
        again = await client.ask("DELETE", f"/jobs/{grant.job_id}")
        assert (again.status, again.body["state"]) == (200, "canceled")


async def test_an_operator_may_cancel_anybodys_job(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        client, operator = b.client(), await b.client_of(Role.OPERATOR)
        waits = (await client.request()).body["job_id"]
        answer = await operator.ask("DELETE", f"/jobs/{waits}")
        assert answer.body["state"] == "canceled"


async def test_a_removed_agent_is_out_at_once_and_its_name_is_free(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent, client = await b.agent(), b.client()
        operator = await b.client_of(Role.OPERATOR)
        grant = await b.running(client, agent)
        twin = b.machine()
        request = twin.enroll_request().model_dump(mode="json")
        taken = await client.ask("POST", "/agents/enroll", request)
        assert (taken.status, taken.error.code) == (409, "enroll.name_taken")
        assert (await operator.ask("DELETE", "/services/agents/bench")).status == 204
        assert await agent.refusal() == "link.refused"
        assert (await client.job(grant.job_id))["error"]["code"] == "agent.gone"
        await agent.send_hello()
        assert await agent.refusal() == "link.refused"
        await twin.enroll()
        await twin.link()
        missing = await operator.ask("DELETE", "/services/agents/nobody")
        assert (missing.status, missing.error.code) == (404, "agent.not_found")


async def test_a_link_is_not_compressed(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        socket = await b.session.ws_connect(f"{b.base_url}/agents/link", compress=15)
        assert socket.compress == 0
        await socket.close()


def test_reconciling_compares_attempts_states_and_agents() -> None:
    def job(job_id: str, state: JobState, *, agent: str = "a", attempt: int = 1) -> JobRecord:
        return JobRecord(
            id=job_id,
            identity="me",
            state=state,
            attempt=attempt,
            request=GrantRequest(peer_fingerprint=FINGERPRINT, required_channels=("espctl",)),
            limits={},
            agent_id=agent,
            boards={},
            candidates=(),
            reasons=(),
            error=None,
            returns=0,
            created_at=1,
            updated_at=1,
            assigned_at=1,
            ends_at=None,
        )

    known = [
        job("assigned-absent", JobState.ASSIGNED),
        job("running-absent", JobState.RUNNING),
        job("lost-absent", JobState.LOST),
        job("lost-there", JobState.LOST),
        job("assigned-runs", JobState.ASSIGNED),
        job("running-ended", JobState.RUNNING),
        job("moved-on", JobState.RUNNING, attempt=2),
        job("elsewhere", JobState.RUNNING, agent="b"),
    ]
    running = ("lost-there", "assigned-runs", "moved-on", "elsewhere", "unknown")
    held = [HeldJob(job_id=job_id, state=JobState.RUNNING) for job_id in running]
    why = ErrorBody(code="agent.gone", message="the daemon was restarted")
    held += [HeldJob(job_id="running-ended", state=JobState.FAILED, error=why)]
    held += [HeldJob(job_id="ended-unknown", state=JobState.SUCCEEDED)]
    found = reconcile("a", held, {record.id: record for record in known})
    assert found.over == ("moved-on", "elsewhere", "unknown")
    assert found.moves == (
        ("lost-there", JobState.RUNNING, None),
        ("assigned-runs", JobState.RUNNING, None),
        ("running-ended", JobState.FAILED, why),
    )
    assert found.gone == ("running-absent", "lost-absent")


async def _settled(b: Bench, agent_id: str) -> None:
    """Wait until control has done all that the agent sent so far: frames keep their order."""
    agent = next(machine for machine in b.machines if machine.id == agent_id)
    link = link_of(b.served, agent_id)
    await agent.send(Status(paused="a mark"))
    await until(lambda: link.paused == "a mark")


async def test_an_agent_that_talks_nonsense_and_is_gone_is_no_crash_of_ours(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent = await b.agent()
        link = link_of(b.served, agent.id)
        assert agent.socket is not None
        await until(lambda: not link._busy)
        with capture_logs() as logs:
            async with b.served.control.database.write():  # control is at the first of the two
                await agent.send(Status(paused="busy"))
                await agent.socket.send_str('{"type":"status","paused":7}')
                await until(lambda: link.paused == "busy")
                connection = agent.socket._conn
                assert connection is not None and connection.transport is not None
                connection.transport.abort()
                await until(link._transport.is_closing)
            await until(lambda: b.served.control.links.find_own(agent.id) is None)
            await until(lambda: "agent.disconnected" in {entry["event"] for entry in logs})
        assert "request.crashed" not in {entry["event"] for entry in logs}
