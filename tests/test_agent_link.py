"""The agent's end of the link to control, against a control that behaves, fails, and lies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aegis_agent import control_link
from aegis_agent.enroll import enroll
from aegis_agent.identity import Enrollment, Identity, NotEnrolled
from aegis_protocol import PROTOCOL_VERSION
from aegis_protocol.control_link import (
    Challenge,
    JobAccepted,
    JobMoved,
    JobRejected,
    JobRevoke,
    KeyRevoke,
    Pause,
    Pong,
    Refused,
    Resume,
    Revocations,
    Revoked,
    Status,
)
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.agent import VersionMismatch
from aegis_protocol.failures.http import (
    ControlAnswerInvalid,
    ControlUnreachable,
    EnrollRefused,
    LinkRefused,
    LinkSuperseded,
    Unavailable,
)
from aegis_protocol.http_api.enrollment import EnrollReply
from aegis_protocol.http_api.issuer import IssuerKey
from aegis_protocol.ids import new_id
from aegis_protocol.states import JobState
from agent_control import TOKEN, ControlPlane, issuer_key, json_response
from agent_stand import agent_config, an_agent, an_offer, rejection, unlinked_agent
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from waiting import until


@pytest.fixture
async def control() -> AsyncIterator[ControlPlane]:
    async with ControlPlane.running() as made:
        yield made


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the pauses between two tries."""
    monkeypatch.setattr(control_link, "_FIRST_PAUSE_S", 0.05)


# Enrolling.


async def test_a_token_enrols_the_agents_key_and_brings_the_issuers(
    control: ControlPlane, tmp: Path
) -> None:
    identity = Identity.open(tmp / "agent")
    enrollment = await enroll(agent_config(control, tmp), identity, TOKEN)
    assert enrollment == Enrollment.open(tmp / "agent")
    assert enrollment.agent_id == identity.agent_id
    assert list(enrollment.keys()) == [control.kid]
    assert (tmp / "agent/agent.key").stat().st_mode & 0o777 == 0o600
    assert (tmp / "agent/enrollment.json").stat().st_mode & 0o777 == 0o600
    assert (tmp / "agent").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("token", ["", "x" * 257, "ä", "a\nb"])
async def test_what_can_be_no_token_is_refused_without_being_shown(
    control: ControlPlane, tmp: Path, token: str
) -> None:
    with pytest.raises(AegisError) as wrong:
        await enroll(agent_config(control, tmp), Identity.open(tmp / "agent"), token)
    assert wrong.value.code == "config.invalid"
    assert not token or token not in wrong.value.message
    assert control.enrollments == []


async def test_a_wrong_token_is_controls_own_refusal(control: ControlPlane, tmp: Path) -> None:
    with pytest.raises(EnrollRefused):
        await enroll(agent_config(control, tmp), Identity.open(tmp / "agent"), "wrong")
    assert Enrollment.open(tmp / "agent") is None


@pytest.mark.parametrize(
    "answer",
    [
        web.Response(text="<html>"),
        web.Response(status=500, text="oops"),
        web.Response(status=307, headers={"Location": "http://127.0.0.1:9/elsewhere"}),
        web.Response(body=b"\xff\xfe"),
        web.Response(body=b"[" * 200_000),
        json_response(EnrollReply(agent_id="ag-other", issuer_keys=(), server_time=0)),
    ],
    ids=["html", "error", "redirect", "bytes", "endless", "another"],
)
async def test_an_answer_that_is_none_leaves_no_enrolment(
    control: ControlPlane, tmp: Path, answer: web.Response
) -> None:
    control.enroll_answer = answer
    with pytest.raises(ControlAnswerInvalid):
        await enroll(agent_config(control, tmp), Identity.open(tmp / "agent"), TOKEN)
    assert Enrollment.open(tmp / "agent") is None


async def test_an_issuer_key_that_is_no_key_is_no_enrolment(
    control: ControlPlane, tmp: Path
) -> None:
    control.issuer_keys = (IssuerKey(kid="k", x="AAAA"), IssuerKey(kid="l", x="!"))
    with pytest.raises(ControlAnswerInvalid):
        await enroll(agent_config(control, tmp), Identity.open(tmp / "agent"), TOKEN)


async def test_a_control_that_is_not_there_is_named(control: ControlPlane, tmp: Path) -> None:
    await control.stop()
    with pytest.raises(ControlUnreachable) as away:
        await enroll(agent_config(control, tmp), Identity.open(tmp / "agent"), TOKEN)
    assert control.url in away.value.message


async def test_the_secret_enrols_once_and_the_enrolment_is_kept(
    control: ControlPlane, tmp: Path
) -> None:
    async with an_agent(control, tmp):
        pass
    async with an_agent(control, tmp, agent_auth_secret=None):
        pass
    assert [wish.token for wish in control.enrollments] == [TOKEN]


async def test_an_enrolment_elsewhere_or_of_another_key_is_none(
    control: ControlPlane, tmp: Path
) -> None:
    async with an_agent(control, tmp):
        pass
    path = tmp / "agent/enrollment.json"
    kept = json.loads(path.read_text())
    for changed in ({"base_url": "http://127.0.0.1:1"}, {"agent_id": "ag-other"}):
        path.write_text(json.dumps(kept | changed))
        async with unlinked_agent(control, tmp, agent_auth_secret=None) as agent:
            with pytest.raises(NotEnrolled):
                await agent.task


async def test_an_agent_with_a_secret_waits_for_a_control_that_is_away(
    control: ControlPlane, tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aegis_agent.daemon._ENROLL_AGAIN_S", 0.05)
    await control.stop()
    async with unlinked_agent(control, tmp):
        await control.start()
        await control.linked()


# The link.


async def test_hello_says_what_the_agent_has(control: ControlPlane, tmp: Path) -> None:
    async with an_agent(control, tmp, slots=3, labels="site=lab1") as agent:
        hello = await control.linked()
    assert (hello.protocol, hello.agent_id, hello.name) == (PROTOCOL_VERSION, agent.id, "bench")
    assert (hello.slots, hello.labels, hello.paused, hello.jobs) == (3, {"site": "lab1"}, None, ())
    assert hello.targets == ("esp32", "esp32p4")
    assert [toolchain.kind for toolchain in hello.toolchains] == ["shell"]


async def test_a_ping_is_answered(control: ControlPlane, tmp: Path) -> None:
    async with an_agent(control, tmp):
        await control.pinged()
        assert control.all(Pong)


async def test_a_link_that_is_cut_comes_back_by_itself(control: ControlPlane, tmp: Path) -> None:
    async with an_agent(control, tmp):
        control.cut()
        await control.linked(again=True)
        await control.stop()
        await control.start()
        await control.linked(again=True)
        await control.pinged()


async def test_the_pauses_between_tries_grow(
    control: ControlPlane, tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def noted(delay_s: float) -> None:
        if delay_s:
            pauses.append(delay_s)
        await sleep(0)

    monkeypatch.setattr(control_link, "_FIRST_PAUSE_S", 0.5)

    async def leave(control: ControlPlane, socket: web.WebSocketResponse) -> None:
        if control.connections == 1:
            monkeypatch.setattr(asyncio, "sleep", noted)
        if control.connections == 12:
            monkeypatch.setattr(asyncio, "sleep", sleep)

    control.greet = leave
    async with unlinked_agent(control, tmp):
        await until(lambda: control.connections >= 12, within_s=10)
    # Neither the daemon's own round nor this test's waiting.
    links = [pause for pause in pauses if pause != 2.0 and pause > 0.1]
    for pause, mean in zip(links, (0.5, 1, 2, 4, 8, 16, 30, 30, 30), strict=False):
        assert 0.69 * mean <= pause <= 1.31 * mean


async def test_a_control_of_another_name_gets_no_hello(control: ControlPlane, tmp: Path) -> None:
    control.base_url = "https://somebody.example.org"
    async with unlinked_agent(control, tmp) as agent:
        await until(lambda: control.connections >= 2)
        assert control.hellos == []
        link = agent.daemon._link
        assert link is not None
        trouble = await until(lambda: link.trouble)
        assert trouble.code == "control.answer_invalid"
        assert "CONTROL_PUBLIC_BASE_URL" in trouble.remedy
        control.base_url = None
        await control.linked()


async def test_a_frame_of_an_unknown_type_is_passed_over(control: ControlPlane, tmp: Path) -> None:
    async with an_agent(control, tmp):
        control.send_text('{"type": "job.dance", "job_id": "x"}')
        await control.pinged()
        assert control.connections == 1


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "7", '{"no": "type"}', '{"type": "job.offer"}', "[" * 100_000,
     '{"type": "challenge", "nonce": "0123456789abcdef", "base_url": "x"}', "x" * 300_000],
)  # fmt: skip
async def test_garbage_begins_the_link_anew(control: ControlPlane, tmp: Path, text: str) -> None:
    async with an_agent(control, tmp):
        control.send_text(text)
        await control.linked(again=True)
        await control.pinged()


async def test_a_binary_frame_begins_the_link_anew(control: ControlPlane, tmp: Path) -> None:
    async with an_agent(control, tmp):
        await control.sockets[-1].send_bytes(b"{}")
        await control.linked(again=True)


@pytest.mark.parametrize("first", ["silent", "welcome", "nothing"])
async def test_a_greeting_that_is_none_is_tried_again(
    control: ControlPlane, tmp: Path, first: str
) -> None:
    async def odd(control: ControlPlane, socket: web.WebSocketResponse) -> None:
        if control.connections > 1:
            await ControlPlane.welcome(control, socket)
        elif first == "silent":
            await socket.receive()
        elif first == "welcome":
            await socket.send_str('{"type": "welcome", "protocol": 1}')
            await socket.receive()

    control.greet = odd
    async with unlinked_agent(control, tmp, connect_timeout_s=0.3):
        await control.linked()


async def test_a_control_that_falls_silent_is_left(control: ControlPlane, tmp: Path) -> None:
    control.silence_secs = 1.0
    async with an_agent(control, tmp):
        await control.linked(again=True)


async def test_a_control_that_asks_for_endless_patience_gets_some(
    control: ControlPlane, tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_link, "_SILENCE_S", (0.1, 0.5))
    control.silence_secs = 1e300
    async with an_agent(control, tmp):
        await control.linked(again=True)


@pytest.mark.parametrize(
    "refusal",
    [
        LinkRefused("this agent is not enrolled here"),
        VersionMismatch("the agent speaks version 1, control 2"),
    ],
    ids=lambda refusal: refusal.code,
)
async def test_a_refusal_is_final(control: ControlPlane, tmp: Path, refusal: AegisError) -> None:
    control.refusal = refusal
    async with unlinked_agent(control, tmp) as agent:
        with pytest.raises(type(refusal)):
            async with asyncio.timeout(10):
                await agent.task
    assert control.connections == 1


async def test_an_agent_whose_link_was_taken_comes_back_and_what_runs_goes_on(
    control: ControlPlane, tmp: Path
) -> None:
    """Were it final, whoever copied its key could end it; control tells the two apart."""
    async with an_agent(control, tmp) as agent, agent.peer() as peer:
        await peer.hello()
        control.send(Refused(error=LinkSuperseded("another has the key").body()))
        await until(lambda: len(control.hellos) >= 2)
        first, second = control.hellos
        assert first.instance is not None
        assert second.instance == first.instance
        await peer.hello()


async def test_a_control_that_is_stopping_is_tried_again(control: ControlPlane, tmp: Path) -> None:
    control.refusal = Unavailable("control is stopping")
    async with unlinked_agent(control, tmp):
        await until(lambda: control.connections >= 2)
        control.refusal = None
        await control.linked()


# The issuer's keys.


async def test_a_new_issuer_key_is_believed_when_a_trusted_one_signed_it(
    control: ControlPlane, tmp: Path
) -> None:
    old = (control.key, control.kid)
    second, third = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    async with an_agent(control, tmp) as agent:
        control.issuer_keys = (
            issuer_key(third, "kid-3", signed_by=(second, "kid-2")),
            issuer_key(second, "kid-2", signed_by=old),
        )
        control.cut()
        await control.linked(again=True)
        control.key, control.kid = third, "kid-3"
        async with agent.peer() as peer:
            await peer.hello()
    kept = Enrollment.open(tmp / "agent")
    assert kept is not None
    assert list(kept.keys()) == ["kid-2", "kid-3"]


@pytest.mark.parametrize("how", ["unsigned", "self-signed", "wrong-signature", "same-kid", "odd"])
async def test_an_issuer_key_that_nobody_trusted_introduced_is_not(
    control: ControlPlane, tmp: Path, how: str
) -> None:
    forged = Ed25519PrivateKey.generate()
    good = issuer_key(forged, "kid-2", signed_by=(control.key, control.kid))
    keys = {
        "unsigned": issuer_key(forged, "kid-2"),
        "self-signed": issuer_key(forged, "kid-2", signed_by=(forged, "kid-2")),
        "wrong-signature": issuer_key(forged, "kid-2", signed_by=(forged, control.kid)),
        "same-kid": issuer_key(forged, "kid-1", signed_by=(control.key, control.kid)),
        "odd": good.model_copy(update={"x": "%%%", "sig": "A"}),
    }
    async with an_agent(control, tmp) as agent:
        control.issuer_keys = (keys[how],)
        control.cut()
        await control.linked(again=True)
        offered = await an_offer()
        control.key, control.kid = forged, "kid-1" if how == "same-kid" else "kid-2"
        control.offer(control.claims(agent.id, offered.fingerprint), offered.sdp)
        refused = await control.heard(JobRejected)
    wanted = "grant.invalid" if how == "same-kid" else "grant.unknown_issuer"
    assert refused.error.code == wanted
    kept = Enrollment.open(tmp / "agent")
    assert kept is not None
    assert list(kept.keys()) == ["kid-1"]


async def test_a_chain_of_keys_is_bounded(tmp: Path) -> None:
    keys = [Ed25519PrivateKey.generate() for _ in range(40)]
    chain = [
        issuer_key(key, f"kid-{n}", signed_by=(keys[n - 1], f"kid-{n - 1}"))
        for n, key in enumerate(keys)
        if n
    ]
    first = Enrollment(
        base_url="http://127.0.0.1:1", agent_id="ag", issuer_keys=(issuer_key(keys[0], "kid-0"),)
    )
    kept = first.with_keys(chain).issuer_keys
    assert [key.kid for key in kept] == ["kid-38", "kid-39"]


# What both sides believe of jobs.


async def test_a_job_outlives_the_link_and_is_named_by_the_next_hello(
    control: ControlPlane, tmp: Path
) -> None:
    async with an_agent(control, tmp) as agent, agent.peer(attempt=3) as peer:
        hello = await peer.hello()
        control.cut()
        again = await control.linked(again=True)
        await peer.hello()
        (held,) = again.jobs
        assert (held.job_id, held.state, held.attempt) == (peer.job_id, JobState.RUNNING, 3)
        told = await control.heard(JobMoved, lambda m: m.state is JobState.RUNNING)
        assert told.ends_at == pytest.approx(hello.ends_at)


async def test_a_job_that_control_knows_to_be_over_is_ended(
    control: ControlPlane, tmp: Path
) -> None:
    async with an_agent(control, tmp) as agent, agent.peer() as peer:
        await peer.hello()
        control.over_jobs = (peer.job_id, "never-heard-of")
        control.cut()
        why = await peer.closing()
        assert why is not None
        assert why.code == "job.canceled"
        assert (await agent.moved(peer.job_id)).state is JobState.CANCELED


async def test_an_end_that_control_missed_is_told_again(control: ControlPlane, tmp: Path) -> None:
    async with an_agent(control, tmp) as agent, agent.peer(attempt=2) as peer:
        await peer.hello()
        started = await peer.build({"build.sh": b"exit 1\n"})
        await peer.ended(started.task_id)
        await control.stop()
        await peer.ask("job.end")
        await peer.closing()
        await control.start()
        hello = await control.linked(again=True)
        (held,) = hello.jobs
        assert (held.job_id, held.state, held.attempt) == (peer.job_id, JobState.FAILED, 2)
        moved = await agent.moved(peer.job_id)
        assert moved.state is JobState.FAILED
        assert moved.project_key == "project-1"
        # Whether that frame arrived nobody said: the next hello names it once more.
        control.cut()
        assert (await control.linked(again=True)).jobs[0].job_id == peer.job_id


async def test_a_later_attempt_of_a_job_ends_the_one_that_is_here(
    control: ControlPlane, tmp: Path
) -> None:
    async with an_agent(control, tmp) as agent, agent.peer() as peer:
        await peer.hello()
        offered = await an_offer()
        again = control.claims(agent.id, offered.fingerprint, job_id=peer.job_id, attempt=2)
        control.offer(again, offered.sdp)
        refused = await control.heard(JobRejected)
        assert refused.error.retryable
        assert (await agent.moved(peer.job_id)).state is JobState.CANCELED
        async with agent.peer(peer.job_id, attempt=2) as next_attempt:
            await next_attempt.hello()


async def test_a_grant_is_checked_by_the_agents_clock_with_the_skew_in_the_error(
    control: ControlPlane, tmp: Path
) -> None:
    control.clock_ahead_s = 100.0
    async with an_agent(control, tmp) as agent:
        offered = await an_offer()
        control.offer(control.claims(agent.id, offered.fingerprint), offered.sdp)
        refused = await control.heard(JobRejected)
    assert refused.error.code == "grant.not_yet_valid"
    assert refused.error.facts["skew_s"] == pytest.approx(-100, abs=5)


async def test_a_clock_that_is_twenty_seconds_off_does_not_matter(
    control: ControlPlane, tmp: Path
) -> None:
    control.clock_ahead_s = 20.0
    async with an_agent(control, tmp) as agent, agent.peer() as peer:
        await peer.hello()


async def test_a_job_whose_id_is_a_way_out_of_its_folder_stays_inside(
    control: ControlPlane, tmp: Path
) -> None:
    async with an_agent(control, tmp) as agent:
        async with agent.peer("..") as peer:
            await peer.hello()
            await peer.built()
            await peer.ask("job.end")
        await agent.moved("..")
        await until(lambda: not list((agent.state / "jobs").iterdir()))
        assert (agent.state / "agent.key").exists()


async def test_pause_and_resume_are_obeyed_and_told(control: ControlPlane, tmp: Path) -> None:
    async with an_agent(control, tmp) as agent, agent.peer() as peer:
        control.send(Pause(reason="disk 99 % says the operator"))
        status = await control.heard(Status)
        assert (status.paused, status.draining) == ("disk 99 % says the operator", False)
        offered = await an_offer()
        control.offer(control.claims(agent.id, offered.fingerprint), offered.sdp)
        refused = await control.heard(JobRejected)
        assert refused.error.code == "agent.busy"
        assert "disk 99 %" in refused.error.message
        await peer.hello()  # what runs, runs on
        control.cut()
        assert (await control.linked(again=True)).paused == "disk 99 % says the operator"
        control.send(Resume())
        await control.heard(Status, lambda s: s.paused is None)
        async with agent.peer() as another:
            await another.hello()


async def test_control_may_begin_with_a_refusal(control: ControlPlane, tmp: Path) -> None:
    async def refuse(control: ControlPlane, socket: web.WebSocketResponse) -> None:
        refusal = LinkRefused("this control takes no agents")
        await socket.send_str(Refused(error=refusal.body()).model_dump_json())
        await socket.receive()

    control.greet = refuse
    async with unlinked_agent(control, tmp) as agent:
        with pytest.raises(LinkRefused):
            async with asyncio.timeout(10):
                await agent.task


async def test_a_nonce_is_signed_for_the_configured_control_alone(
    control: ControlPlane, tmp: Path
) -> None:
    """A control in the middle that passes another's challenge on gets no use of the signature."""
    challenge = Challenge(nonce=new_id(), base_url="https://victim.example.org")
    heard: list[object] = []

    async def relay(control: ControlPlane, socket: web.WebSocketResponse) -> None:
        await socket.send_str(challenge.model_dump_json())
        heard.append((await socket.receive()).type)

    control.greet = relay
    async with unlinked_agent(control, tmp):
        await until(lambda: heard)
    assert heard[0] is not web.WSMsgType.TEXT


async def test_the_accepted_job_is_told_before_anything_else_of_it(
    control: ControlPlane, tmp: Path
) -> None:
    async with an_agent(control, tmp) as agent, agent.peer() as peer:
        await peer.hello()
        kinds = [type(frame) for frame in control.frames]
        assert kinds.index(JobAccepted) == 1  # after the answer


async def test_the_welcome_s_revocations_are_carried_out_before_anything_else(
    control: ControlPlane, tmp: Path
) -> None:
    async with an_agent(control, tmp) as agent, agent.peer() as peer:
        await peer.hello()
        one = JobRevoke(job_id=peer.job_id, reason="meanwhile")
        control.revocations, control.revoked_through = (one,), 3
        control.over_jobs = (peer.job_id,)  # ends the job too, and says so: but only afterwards
        control.cut()
        why = await peer.closing()
        assert (why.code if why else None) == "session.revoked"
        assert (await control.heard(Revoked)).through == 3
        control.cut()
        assert (await control.linked(again=True)).revoked_through == 3


async def test_how_far_what_was_revoked_is_done_outlives_the_agent(
    control: ControlPlane, tmp: Path
) -> None:
    gone = KeyRevoke(identity="key-9")
    async with an_agent(control, tmp):
        control.send(Revocations(revocations=(gone,), through=5))
        assert (await control.heard(Revoked)).through == 5
    async with an_agent(control, tmp) as agent:
        assert control.hellos[-1].revoked_through == 5
        refused = await rejection(agent, sub="key-9")
        assert refused.error.code == "grant.revoked"
