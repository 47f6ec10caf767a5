"""Offers, answers and candidates between a client and its agent, and the events in between."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from aegis_control.config import ControlConfig
from aegis_control.turn import Side, ice_servers
from aegis_protocol import grant as grants
from aegis_protocol.actions import Role
from aegis_protocol.control_link import (
    HeldJob,
    JobOffer,
    JobRejected,
    SignalAnswer,
    SignalCandidate,
)
from aegis_protocol.errors import ErrorBody
from aegis_protocol.events import (
    Answer,
    Assigned,
    Candidate,
    Closed,
    Connected,
    KeepAlive,
    Rejected,
    State,
)
from aegis_protocol.http_api.grants import GrantReply
from aegis_protocol.states import JobState
from control_fixtures import FINGERPRINT, Bench, FakeAgent, bench, sdp
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import SecretStr
from structlog.testing import capture_logs
from waiting import until

pytestmark = pytest.mark.both_stores

OTHER_FINGERPRINT = "sha-256:" + ":".join(["EE"] * 32)


async def test_an_offer_reaches_the_agent_and_its_answer_comes_as_an_event(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent, client = await b.agent(), b.client()
        grant = await client.granted()
        async with client.events(grant.job_id) as events:
            assert isinstance(await events.next(), Connected)
            assert await events.next() == State(job_id=grant.job_id, state=JobState.ASSIGNED)
            assert await events.next() == Assigned(
                job_id=grant.job_id, agent_id=agent.id, agent_name="bench"
            )
            sent = await client.offer(grant)
            offer = await agent.next(JobOffer)
            jti = b.served.control.issuer.verify(grant.grant).jti
            assert (sent.status, sent.body) == (202, {"job_id": grant.job_id, "jti": jti})
            assert (offer.jti, offer.grant, offer.sdp) == (jti, grant.grant, sdp())
            await agent.answer(offer)
            answer = await events.until(Answer)
            assert (answer.jti, answer.sdp, answer.signature) == (jti, "v=0 answer", "c2ln")
            await agent.accept(offer)
            assert (await events.until(State)).state is JobState.RUNNING


async def test_the_stream_has_the_headers_that_proxies_need(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        await b.agent()
        client = b.client()
        grant = await client.granted()
        async with client.events(grant.job_id) as events:
            headers = events.answer.headers
            assert headers["X-Accel-Buffering"] == "no"
            assert headers["Cache-Control"] == "no-store"
            assert headers["Content-Type"].startswith("text/event-stream")


async def test_a_quiet_stream_has_keepalives_without_an_id(tmp: Path) -> None:
    async with bench(tmp / "s", keepalive_s=0.05) as b:
        await b.agent()
        client = b.client()
        grant = await client.granted()
        async with client.events(grant.job_id) as events:
            first = await events.until(KeepAlive)
            assert abs(first.time - time.time()) < 5
            assert events.ids[-1] is None


async def test_a_stream_that_comes_back_misses_nothing_and_repeats_nothing(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent, client = await b.agent(), b.client()
        grant = await client.granted()
        async with client.events(grant.job_id) as events:
            await events.until(Assigned)
            await client.offer(grant)
            offer = await agent.next(JobOffer)
            await agent.answer(offer)
            await events.until(Answer)
            last = next(i for i in reversed(events.ids) if i is not None)
        for text in ("one", "two"):
            candidate = SignalCandidate(job_id=offer.job_id, jti=offer.jti, candidate=text)
            await agent.send(candidate)
        async with client.events(grant.job_id, after=last) as events:
            assert isinstance(await events.next(), Connected)
            seen = [await events.until(Candidate), await events.until(Candidate)]
            assert [event.candidate for event in seen] == ["one", "two"]
            assert [i for i in events.ids if i is not None] == sorted(
                {i for i in events.ids if i is not None}
            )


async def test_a_stream_that_is_opened_late_still_gets_the_answer(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent, client = await b.agent(), b.client()
        grant = await client.granted()
        await client.offer(grant)
        offer = await agent.next(JobOffer)
        await agent.answer(offer)
        await agent.accept(offer)
        await client.until_state(grant.job_id, "running")
        async with client.events(grant.job_id) as events:
            assert (await events.until(State)).state is JobState.RUNNING
            assert (await events.until(Answer)).jti == offer.jti


async def test_a_bad_last_event_id_is_named(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        await b.agent()
        client = b.client()
        grant = await client.granted()
        path = f"/signaling/{grant.job_id}/events"
        for bad in ("x", "-1", "9" * 30, "1.5"):
            answer = await client.ask("GET", path, headers={"Last-Event-ID": bad})
            assert (answer.status, answer.error.code) == (400, "request.invalid")
            assert answer.error.facts == {"field": "Last-Event-ID"}


async def test_what_the_agent_refuses_is_an_event_with_its_code(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent, client = await b.agent(), b.client()
        grant = await client.granted()
        async with client.events(grant.job_id) as events:
            await client.offer(grant)
            offer = await agent.next(JobOffer)
            error = ErrorBody(code="grant.used", message="once only", remedy="Ask again.")
            await agent.send(JobRejected(job_id=offer.job_id, jti=offer.jti, error=error))
            rejected = await events.until(Rejected)
            assert (rejected.jti, rejected.error) == (offer.jti, error)


async def test_an_sdp_that_is_not_the_grants_never_reaches_the_agent(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent, client = await b.agent(), b.client()
        grant = await client.granted()
        for text, code in (
            (sdp(FINGERPRINT, OTHER_FINGERPRINT), "sdp.fingerprint_ambiguous"),
            (sdp(OTHER_FINGERPRINT), "sdp.fingerprint_mismatch"),
            ("v=0\r\n", "sdp.invalid"),
            (sdp() + "m=audio 9 UDP/TLS/RTP/SAVPF 0\r\n", "sdp.invalid"),
            (sdp() + "a=x\u2028a=fingerprint:sha-256 00\r\n", "sdp.invalid"),
            ("x" * 16_385, "request.invalid"),
        ):
            with capture_logs() as logs:
                answer = await client.offer(grant, text)
            assert (answer.status, answer.error.code) == (400, code)
            assert [e["code"] for e in logs if e["event"] == "offer.refused"] == [code]
        await client.offer(grant)
        assert (await agent.next(JobOffer)).sdp == sdp()


async def test_a_grant_that_is_forged_expired_or_of_another_job_is_refused(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        await b.agent()
        client = b.client()
        grant, other = await client.granted(), await client.granted()
        issuer = b.served.control.issuer
        claims = issuer.verify(grant.grant)
        stranger = Ed25519PrivateKey.generate()
        old = claims.model_copy(update={"iat": 1e9, "nbf": 1e9, "exp": 1e9 + 30})
        head, body, signature = grant.grant.split(".")
        no_key: Any = None
        no_alg = jwt.encode(claims.model_dump(mode="json"), no_key, algorithm="none")
        for token, status, code in (
            (grants.sign(claims, stranger, issuer.kid), 401, "grant.invalid"),
            (grants.sign(claims, stranger, "nobody"), 401, "grant.unknown_issuer"),
            (f"{head}.{body[:-4]}AAAA.{signature}", 401, "grant.invalid"),
            (issuer.sign(old), 401, "grant.expired"),
            (other.grant, 401, "grant.invalid"),
            (no_alg, 401, "grant.unknown_issuer"),
            ("eyJ.x.y", 401, "grant.invalid"),
            ("no grant at all", 401, "auth.key_missing"),
        ):
            answer = await client.offer(grant.model_copy(update={"grant": token}))
            assert (answer.status, answer.error.code) == (status, code), token


async def test_a_grant_of_an_earlier_attempt_is_stale_and_one_of_an_ended_job_too(
    tmp: Path,
) -> None:
    async with bench(tmp / "s") as b:
        await b.agent()
        client = b.client()
        grant = await client.granted()
        claims = b.served.control.issuer.verify(grant.grant)
        newer = b.served.control.issuer.sign(claims.model_copy(update={"attempt": 2}))
        stale = await client.offer(grant.model_copy(update={"grant": newer}))
        assert (stale.status, stale.error.code) == (409, "grant.stale")
        await client.ask("DELETE", f"/jobs/{grant.job_id}")
        over = await client.offer(grant)
        assert (over.status, over.error.code) == (409, "job.over")
        again = await client.request(job_id=grant.job_id)
        assert (again.status, again.error.code) == (409, "job.over")


async def test_an_offer_while_the_agent_is_away_is_retryable(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent, client = await b.agent(), b.client()
        grant = await client.granted()
        await agent.leave()
        await until(lambda: not b.served.control.links.all())
        answer = await client.offer(grant)
        assert (answer.status, answer.error.code) == (503, "agent.offline")
        assert answer.error.retryable
        assert answer.headers["Retry-After"]
        await agent.link()
        assert (await client.offer(grant)).status == 202


async def test_candidates_go_both_ways_by_grant_and_by_key_and_no_more_than_32(
    tmp: Path,
) -> None:
    async with bench(tmp / "s") as b:
        agent, client = await b.agent(), b.client()
        grant = await client.granted()
        path = f"/signaling/{grant.job_id}/candidate"
        by_grant = {"Authorization": f"Bearer {grant.grant}"}
        body = {"candidate": "candidate:1 1 udp 1 192.0.2.1 9 typ host", "sdpMid": "0"}
        early = await client.ask("POST", path, body)
        assert (early.status, early.error.code) == (400, "request.invalid")
        await client.offer(grant)
        offer = await agent.next(JobOffer)
        for headers in (by_grant, {}):
            assert (await client.ask("POST", path, body, headers=headers)).status == 204
            got = await agent.next(SignalCandidate)
            assert (got.jti, got.candidate, got.sdpMid) == (offer.jti, body["candidate"], "0")
        for _ in range(30):
            assert (await client.ask("POST", path, body)).status == 204
        many = await client.ask("POST", path, body)
        assert (many.status, many.error.code) == (400, "link.too_many_candidates")
        stranger = await (await b.client_of(Role.FLASHER)).ask("POST", path, body)
        assert stranger.status == 404


async def test_an_agents_candidates_end_at_32_too(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent, client = await b.agent(), b.client()
        grant, offer = await _offered(b, agent)
        async with client.events(grant.job_id) as events:
            for n in range(33):
                await agent.send(
                    SignalCandidate(job_id=offer.job_id, jti=offer.jti, candidate=str(n))
                )
            await agent.answer(offer)
            seen = []
            while not isinstance(event := await events.next(), Answer):
                if isinstance(event, Candidate):
                    seen.append(event.candidate)
            assert seen == [str(n) for n in range(32)]


async def test_an_agent_can_say_nothing_about_a_job_that_is_not_its_own(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent, intruder, client = await b.agent("a"), await b.agent("z", slots=0), b.client()
        grant, offer = await _offered(b, agent)
        async with client.events(grant.job_id) as events:
            await events.until(Assigned)
            forged = SignalAnswer(
                job_id=offer.job_id, jti=offer.jti, sdp="v=0 forged", signature="c2ln"
            )
            await intruder.send(forged)
            await intruder.accept(offer)
            never = forged.model_copy(update={"jti": "never-offered"})
            await agent.send(never)
            await agent.answer(offer)
            answer = await events.until(Answer)
            assert (answer.sdp, answer.jti) == ("v=0 answer", offer.jti)
        assert (await client.job(grant.job_id))["state"] == "assigned"


async def test_a_link_that_closes_is_told_to_its_clients_at_once_and_so_is_its_return(
    tmp: Path,
) -> None:
    async with bench(tmp / "s") as b:
        agent, client = await b.agent(), b.client()
        grant = await b.running(client, agent)
        async with client.events(grant.job_id) as events:
            await events.until(Assigned)
            began = time.monotonic()
            await agent.leave()
            closed = await events.until(Closed)
            assert closed.error is not None
            assert (closed.error.code, closed.jti) == ("agent.gone", None)
            assert time.monotonic() - began < 2
            late = client.events(grant.job_id)
            async with late as second:
                error = (await second.until(Closed)).error
                assert error is not None and error.code == "agent.gone"
            await agent.link(HeldJob(job_id=grant.job_id, state=JobState.RUNNING))
            assert (await events.until(State)).state is JobState.RUNNING


async def test_the_stream_of_a_job_that_is_over_says_so_and_ends(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        await b.agent()
        client = b.client()
        grant = await client.granted()
        async with client.events(grant.job_id) as events:
            await events.until(Assigned)
            await client.ask("DELETE", f"/jobs/{grant.job_id}")
            rest = await events.rest()
        async with client.events(grant.job_id) as late:
            told = await late.rest()
        for found in (rest, told):
            state, closed = found[-2:]
            assert isinstance(state, State) and state.state is JobState.CANCELED
            assert isinstance(closed, Closed) and closed.error is not None
            assert closed.error.code == "job.canceled"


async def test_one_job_has_a_bounded_number_of_listeners(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        await b.agent()
        client = b.client()
        grant = await client.granted()
        path = f"{b.base_url}/signaling/{grant.job_id}/events"
        headers = {"Authorization": f"Bearer {client.key}"}
        streams = [await client.session.get(path, headers=headers) for _ in range(16)]
        answer = await client.ask("GET", f"/signaling/{grant.job_id}/events")
        assert (answer.status, answer.error.code) == (429, "request.rate_limited")
        for stream in streams:
            stream.close()
        await until(lambda: b.served.control.streams.count == 0)


async def test_turn_credentials_are_made_for_the_job_and_the_side(tmp: Path) -> None:
    settings = {
        "stun_urls": "stun:stun.example.org:3478",
        "turn_urls": "turn:turn.example.org:3478,turn:turn.example.org:3478?transport=tcp,"
        "turns:turn.example.org:5349?transport=tcp",
        "turn_secret": "shared with coturn",
    }
    async with bench(tmp / "s", **settings) as b:
        agent, client = await b.agent(), b.client()
        grant = await client.granted(timeout_secs=100)
        await client.offer(grant)
        offer = await agent.next(JobOffer)
        for servers, side in ((grant.ice_servers, "client"), (offer.ice_servers, "agent")):
            stun, turn = servers
            assert stun.urls == ("stun:stun.example.org:3478",)
            assert turn.urls == (
                "turn:turn.example.org:3478",
                "turn:turn.example.org:3478?transport=tcp",
                "turns:turn.example.org:5349?transport=tcp",
            )
            expiry, job_id, for_side = (turn.username or "").split(":")
            assert (job_id, for_side) == (grant.job_id, side)
            assert abs(int(expiry) - (time.time() + 190)) < 5


def test_while_the_turn_secret_changes_there_are_credentials_by_either() -> None:
    config = ControlConfig(
        turn_urls=("turn:turn.example.org",),
        turn_secret=SecretStr("the new one"),
        turn_secret_previous=SecretStr("the old one"),
    )
    both, new, old = (
        ice_servers(
            stun_urls=(),
            turn_urls=config.turn_urls,
            turn_secrets=secrets,
            job_id="job-1",
            side="client",
            ends_at_s=1_800_000_000,
        )
        for secrets in (config.turn_secrets, ("the new one",), ("the old one",))
    )
    assert both == (*new, *old)
    assert new != old


def test_turn_credentials_are_what_coturn_computes() -> None:
    # printf %s USERNAME | openssl dgst -sha1 -hmac SECRET -binary | base64
    recorded: dict[Side, str] = {
        "client": "eHPOoCThXajGAQH4wx31CbgDw6M=",
        "agent": "V7DyPfix3nEXZz5v+idvm8makNY=",
    }
    for side, credential in recorded.items():
        (server,) = ice_servers(
            stun_urls=(),
            turn_urls=("turn:turn.example.org",),
            turn_secrets=("shared with coturn",),
            job_id="job-1",
            side=side,
            ends_at_s=1_800_000_000.5,
        )
        assert (server.username, server.credential) == (f"1800000090:job-1:{side}", credential)


async def _offered(b: Bench, agent: FakeAgent) -> tuple[GrantReply, JobOffer]:
    client = b.client()
    grant = await client.granted(agent_id=agent.name)
    assert (await client.offer(grant)).status == 202
    return grant, await agent.next(JobOffer)
