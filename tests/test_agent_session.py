"""A peer's connection to a whole agent: how it begins, what it may ask, how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aegis_links.certificate import Certificate
from aegis_links.peer_link import PeerLink
from aegis_protocol.actions import Action
from aegis_protocol.channels import ChannelName
from aegis_protocol.control_link import (
    JobAccepted,
    JobCancel,
    JobMoved,
    JobRejected,
    JobRevoke,
    Revocations,
    SignalAnswer,
    SignalCandidate,
)
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.agent import SessionOver, SessionRevoked
from aegis_protocol.failures.grant import ActionNotGranted
from aegis_protocol.failures.http import JobCanceled
from aegis_protocol.grant import Execution
from aegis_protocol.ids import new_id
from aegis_protocol.states import JobState
from agent_control import ControlPlane
from agent_stand import RunningAgent, an_agent, an_offer, rejection
from waiting import until


@pytest.fixture
async def control() -> AsyncIterator[ControlPlane]:
    async with ControlPlane.running() as made:
        yield made


@pytest.fixture
async def agent(control: ControlPlane, tmp: Path) -> AsyncIterator[RunningAgent]:
    async with an_agent(control, tmp, linger_secs=0.5) as made:
        yield made


async def test_a_peer_is_greeted_and_control_hears_that_the_job_runs(agent: RunningAgent) -> None:
    async with agent.peer() as peer:
        hello = await peer.hello()
        accepted = await agent.control.heard(JobAccepted)
        await peer.ask("job.end")
        assert await peer.closing() is None
    assert (hello.agent_id, hello.job_id) == (agent.id, peer.job_id)
    assert hello.ends_at == pytest.approx(accepted.ends_at)
    assert set(hello.channels) == set(ChannelName)
    assert (accepted.job_id, accepted.jti) == (peer.job_id, peer.claims.jti)
    assert (await agent.moved(peer.job_id)).state is JobState.SUCCEEDED


async def test_nothing_is_answered_before_hello(agent: RunningAgent) -> None:
    async with agent.peer() as peer:
        with pytest.raises(AegisError) as early:
            await peer.ask("boards.list")
        with pytest.raises(AegisError) as other:
            await peer.ask("session.hello", protocol=99, client="test/1")
        with pytest.raises(AegisError) as still:
            await peer.ask("boards.list")
    assert early.value.code == still.value.code == "session.hello_missing"
    assert other.value.code == "protocol.version_mismatch"


async def test_parameters_that_are_wrong_are_named(agent: RunningAgent) -> None:
    async with agent.peer() as peer:
        await peer.hello()
        with pytest.raises(AegisError) as wrong:
            await peer.ask("build.start", plan_id="x", target="ESP 32", terminal={"cols": 0})
    assert wrong.value.code == "rpc.params_invalid"
    assert "target" in wrong.value.message
    assert "terminal.cols" in wrong.value.message


async def test_each_method_is_checked_against_the_grants_actions(agent: RunningAgent) -> None:
    async with agent.peer(actions=(Action.BUILD_READ,)) as peer:
        await peer.hello()
        for method in ("source.plan", "build.start", "flash.start", "monitor.open", "board.reset"):
            with pytest.raises(ActionNotGranted):
                await peer.ask(method)
        with pytest.raises(AegisError) as absent:
            await peer.ask("build.status", task_id="none")
    assert absent.value.code == "task.not_found"


async def test_a_second_peer_shares_the_job_and_another_identity_does_not(
    agent: RunningAgent,
) -> None:
    async with agent.peer() as first:
        await first.hello()
        async with agent.peer(first.job_id) as second:
            hello = await second.hello()
            assert hello.job_id == first.job_id
            assert len(agent.daemon.jobs.jobs) == 1
        refused = await rejection(agent, job_id=first.job_id, sub="key-2")
        assert refused.error.code == "grant.invalid"
        await first.ask("session.hello", protocol=1, client="test/1")


async def test_slots_that_are_taken_are_said(agent: RunningAgent) -> None:
    async with agent.peer(), agent.peer():
        refused = await rejection(agent)
        assert refused.error.code == "agent.busy"
        assert refused.error.retryable


async def test_a_job_has_a_bounded_number_of_connections(agent: RunningAgent) -> None:
    job_id = new_id()
    sdp = await an_offer()
    for _ in range(8):
        agent.control.offer(agent.control.claims(agent.id, sdp.fingerprint, job_id=job_id), sdp.sdp)
    await until(lambda: len(agent.control.all(SignalAnswer)) == 8, within_s=15)
    refused = await rejection(agent, job_id=job_id)
    assert refused.error.code == "agent.busy"


async def test_an_offer_that_is_repeated_gets_the_same_answer_and_no_rejection(
    agent: RunningAgent,
) -> None:
    offered = await an_offer()
    claims = agent.control.claims(agent.id, offered.fingerprint)
    frame = agent.control.offer(claims, offered.sdp)
    agent.control.send(frame)
    await agent.control.heard(SignalAnswer)
    agent.control.send(frame)
    answers = await until(lambda: (a := agent.control.all(SignalAnswer))[1:] and a)
    assert answers[0] == answers[1]
    assert not agent.control.all(JobRejected)


async def test_a_job_to_which_nobody_comes_is_given_back_and_not_said_to_have_ended(
    control: ControlPlane, tmp: Path
) -> None:
    async with an_agent(control, tmp, linger_secs=0.2, connect_timeout_s=0.5) as agent:
        offered = await an_offer()
        claims = control.claims(agent.id, offered.fingerprint)
        control.offer(claims, offered.sdp)
        refused = await control.heard(JobRejected)
        assert refused.error.code == "link.not_opened"
        await until(agent.daemon.jobs.idle)
        await control.pinged()
        assert not control.all(JobMoved)
        async with agent.peer(claims.job_id) as peer:  # and it may still be tried
            await peer.hello()


async def test_a_candidate_that_comes_before_the_link_is_made_is_kept(agent: RunningAgent) -> None:
    certificate = Certificate.generate()
    async with PeerLink.offering(certificate, channels=[ChannelName.ESPCTL]) as link:
        lines = link.offer_sdp.splitlines(keepends=True)
        candidates = [line for line in lines if line.startswith("a=candidate:")]
        bare = "".join(line for line in lines if line not in candidates)
        claims = agent.control.claims(agent.id, str(certificate.fingerprint))
        agent.control.offer(claims, bare)
        for line in candidates:
            agent.control.send(
                SignalCandidate(job_id=claims.job_id, jti=claims.jti, candidate=line[2:].strip())
            )
        await agent.answered(claims, link, certificate)


async def test_a_cancel_ends_the_job_and_tells_the_peer_why(agent: RunningAgent) -> None:
    async with agent.peer() as peer:
        await peer.hello()
        agent.control.send(JobCancel(job_id=peer.job_id, reason="canceled at control"))
        assert isinstance(await peer.closing(), JobCanceled)
        moved = await agent.moved(peer.job_id)
    assert moved.state is JobState.CANCELED
    assert moved.error is not None
    assert moved.error.code == "job.canceled"
    assert moved.error.message == "canceled at control"


async def test_a_grant_for_a_job_that_has_ended_opens_nothing(agent: RunningAgent) -> None:
    async with agent.peer() as peer:
        await peer.hello()
        await peer.ask("job.end")
        await agent.moved(peer.job_id)
    refused = await rejection(agent, job_id=peer.job_id)
    assert refused.error.code == "job.over"
    assert agent.daemon.jobs.idle()


async def test_a_peer_that_joins_while_the_job_ends_is_refused_and_left_nowhere(
    agent: RunningAgent,
) -> None:
    async with agent.peer() as first:
        offered = await an_offer()
        claims = agent.control.claims(agent.id, offered.fingerprint, job_id=first.job_id)
        agent.control.offer(claims, offered.sdp)
        agent.control.send(JobCancel(job_id=first.job_id))
        refused = await agent.control.heard(JobRejected, lambda r: r.jti == claims.jti)
        await agent.moved(first.job_id)
    assert refused.error.code in ("job.canceled", "job.over")
    await until(lambda: not tasks_named("session-"))


async def test_a_revoked_grant_closes_its_connection_alone(agent: RunningAgent) -> None:
    async with agent.peer() as first, agent.peer(first.job_id) as second:
        await second.hello()
        one = JobRevoke(job_id=first.job_id, jti=second.claims.jti, reason="key gone")
        agent.control.send(Revocations(revocations=(one,), through=1))
        async with asyncio.timeout(1):
            why = await second.closing()
        assert isinstance(why, SessionRevoked)
        assert why.message == "key gone"
        await first.hello()
        all_of_it = JobRevoke(job_id=first.job_id)
        agent.control.send(Revocations(revocations=(all_of_it,), through=2))
        assert isinstance(await first.closing(), SessionRevoked)
    # Revoking is not canceling: without a peer the job ends as any other does.
    assert (await agent.moved(first.job_id)).state is JobState.SUCCEEDED


async def test_a_connection_that_is_still_being_made_is_revoked_at_once(
    agent: RunningAgent,
) -> None:
    offered = await an_offer()
    claims = agent.control.claims(agent.id, offered.fingerprint)
    agent.control.offer(claims, offered.sdp)
    await agent.control.heard(SignalAnswer)
    one = JobRevoke(job_id=claims.job_id, jti=claims.jti)
    agent.control.send(Revocations(revocations=(one,), through=1))
    refused = await agent.control.heard(JobRejected, within_s=2)
    assert refused.error.code == "session.revoked"


async def test_a_jobs_time_ends_it(agent: RunningAgent) -> None:
    async with agent.peer(execution=Execution(target="esp32p4", timeout_secs=1)) as peer:
        assert isinstance(await peer.closing(), SessionOver)
        moved = await agent.moved(peer.job_id)
    assert moved.state is JobState.EXPIRED


async def test_a_job_that_is_extended_lives_on_and_control_is_told_until_when(
    agent: RunningAgent,
) -> None:
    async with agent.peer(execution=Execution(target="esp32p4", timeout_secs=5)) as peer:
        hello = await peer.hello()
        ends_at = (await peer.ask("job.extend", timeout_secs=60))["ends_at"]
        told = await agent.control.heard(JobMoved, lambda m: m.state is JobState.RUNNING)
        shorter = (await peer.ask("job.extend", timeout_secs=1))["ends_at"]
        most = (await peer.ask("job.extend", timeout_secs=86_400))["ends_at"]
    assert ends_at == pytest.approx(hello.ends_at + 55, abs=2)
    assert told.ends_at == pytest.approx(ends_at)
    assert shorter == ends_at
    assert most <= hello.ends_at - 5 + agent.config.max_job_secs + 1


async def test_a_job_without_a_peer_is_kept_a_while_and_then_ends(agent: RunningAgent) -> None:
    async with agent.peer() as peer:
        await peer.hello()
    assert (await agent.moved(peer.job_id)).state is JobState.SUCCEEDED
    assert agent.daemon.jobs.idle()
    await until(lambda: not list((agent.state / "jobs").iterdir()))


async def test_a_job_with_a_peer_again_in_time_goes_on(control: ControlPlane, tmp: Path) -> None:
    async with an_agent(control, tmp, linger_secs=5) as agent:
        async with agent.peer() as peer:
            pass
        async with agent.peer(peer.job_id) as again:
            await again.hello()
            await control.pinged()
            ends = [m for m in control.all(JobMoved) if m.state is not JobState.RUNNING]
            assert not ends


async def test_a_peer_that_sees_no_builds_is_told_of_none(agent: RunningAgent) -> None:
    async with (
        agent.peer() as builder,
        agent.peer(builder.job_id, actions=(Action.CONSOLE_READ,)) as reader,
    ):
        await builder.hello()
        started = await builder.build({"build.sh": b"exit 1\n"})
        await builder.ended(started.task_id)
        hello = await reader.hello()
    assert hello.tasks == ()
    assert reader.changes(started.task_id) == []


def tasks_named(prefix: str) -> list[str]:
    names = [task.get_name() for task in asyncio.all_tasks()]
    return [name for name in names if name.startswith(prefix)]
