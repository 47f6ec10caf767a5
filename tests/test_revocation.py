"""
Permissions taken back and keys changed: a real control, a real agent, and a peer that watches.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jwt
import pytest
from aegis_agent.identity import Enrollment
from aegis_links.certificate import Certificate
from aegis_links.peer_link import PeerLink
from aegis_protocol.actions import Role
from aegis_protocol.channels import ChannelName
from aegis_protocol.events import Answer
from aegis_protocol.failures.agent import SessionRevoked
from aegis_protocol.fingerprint import check_sdp
from aegis_protocol.grant import GrantClaims
from aegis_protocol.http_api.grants import GrantReply
from aegis_protocol.states import TaskState
from agent_control import ControlPlane
from agent_stand import ALL, Peer, RunningAgent, Screen, unlinked_agent
from control_fixtures import AGENTS, Bench, Client, bench, key_of
from cut_wire import CutWire
from waiting import until

pytestmark = [pytest.mark.requires("bwrap"), pytest.mark.both_stores]

TICKS = {"build.sh": b"while :; do echo tick; sleep 0.02; done\n"}


@dataclass
class House:
    """A control, an agent at the other end of a wire, and an operator."""

    bench: Bench
    wire: CutWire
    agent: RunningAgent
    operator: Client

    def client(self, key: str) -> Client:
        """One that goes to control directly, whatever happens to the wire."""
        return Client(self.bench.session, f"http://127.0.0.1:{self.bench.served.port}", key)

    async def member(self) -> Client:
        return self.client(await key_of(self.bench.served, Role.FLASHER))

    @property
    def linked(self) -> bool:
        return self.bench.served.control.links.find(self.agent.id) is not None

    async def revoke(self, kind: str, of: str, **more: str) -> Any:
        body = {"kind": kind, "id": of, **more}
        answer = await self.operator.ask("POST", "/services/revocations", body)
        assert answer.status == 200, answer.body
        return answer.body["revocations"]

    async def listed(self) -> Any:
        return (await self.operator.ask("GET", "/services/revocations")).body["revocations"]


@pytest.fixture
async def house(tmp: Path) -> AsyncIterator[House]:
    async with CutWire.laid() as wire, bench(tmp / "s", public_base_url=wire.url) as b:
        wire.port = b.served.port
        plane = cast(ControlPlane, wire)  # the agent needs its URL, and nothing else of it
        async with unlinked_agent(plane, tmp, agent_auth_secret=AGENTS) as agent:
            direct = f"http://127.0.0.1:{b.served.port}"
            operator = Client(b.session, direct, await key_of(b.served, Role.OPERATOR))
            made = House(b, wire, agent, operator)
            await until(lambda: made.linked, within_s=20)
            yield made


@asynccontextmanager
async def connected(house: House, client: Client, **fields: Any) -> AsyncIterator[Peer]:
    """A peer by a grant of its own."""
    certificate = Certificate.generate()
    grant = await client.granted(
        peer_fingerprint=str(certificate.fingerprint),
        required_channels=[str(name) for name in ALL],
        **fields,
    )
    async with AsyncExitStack() as stack:
        link = await stack.enter_async_context(PeerLink.offering(certificate, channels=ALL))
        events = await stack.enter_async_context(client.events(grant.job_id, after=0))
        assert (await client.offer(grant, link.offer_sdp)).status == 202
        jti = claims_of(grant).jti
        answer = await events.until(Answer, lambda event: event.jti == jti)
        await link.accept_answer(answer.sdp, expected_fingerprint=check_sdp(answer.sdp))
        await link.opened(20)
        peer = Peer(house.agent, claims_of(grant), link)
        await peer.open(stack, ALL)
        await peer.hello()
        yield peer


@asynccontextmanager
async def watching(peer: Peer) -> AsyncIterator[tuple[Screen, str]]:
    """The terminal of a build that prints for ever, and the build's id."""
    started = await peer.build(TICKS)
    async with peer.view(ChannelName.PTY, started.stream) as screen:
        await screen.shows("tick")
        yield screen, started.task_id


def claims_of(grant: GrantReply) -> GrantClaims:
    raw = jwt.decode(grant.grant, options={"verify_signature": False})
    return GrantClaims.model_validate(raw)


async def ended(peer: Peer) -> None:
    """Wait until nothing of the connection is left."""
    async with asyncio.timeout(10):
        await peer.link.wait_closed()


def building(house: House, job_id: str) -> bool:
    job = house.agent.daemon.jobs.get(job_id)
    return job is not None and any(t.state is TaskState.RUNNING for t in job.tasks.values())


class Lag:
    """How late this process was at worst while it measured: that is not what is measured."""

    def __init__(self) -> None:
        self.worst_s = 0.0

    async def run(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            self.worst_s = max(self.worst_s, time.monotonic() - before - 0.01)


async def test_a_streaming_terminal_ends_within_a_second_of_its_revocation(house: House) -> None:
    client = await house.member()
    async with connected(house, client, target="esp32p4") as peer, watching(peer) as (_, task_id):
        lag = Lag()
        measuring = asyncio.create_task(lag.run())
        began = time.monotonic()
        told = asyncio.create_task(house.revoke("grant", peer.claims.jti, reason="not yours"))
        why = await peer.closing()
        await ended(peer)
        took_s = time.monotonic() - began
        measuring.cancel()
        assert isinstance(why, SessionRevoked)
        assert why.message == "not yours"
        assert took_s < 1 + 3 * lag.worst_s
        (row,) = await told
        assert (row["state"], row["agent_name"], row["job_id"]) == ("done", "bench", peer.job_id)
        # Revoking ends connections, not work: the build goes on for who may still see it.
        assert building(house, peer.job_id)
        async with connected(house, client, job_id=peer.job_id) as again:
            shown = await again.ask("build.status", task_id=task_id)
            assert shown["state"] == "running"


async def test_with_the_link_cut_it_ends_when_the_link_returns(house: House) -> None:
    client = await house.member()
    async with connected(house, client, target="esp32p4") as peer, watching(peer) as (screen, _):
        house.wire.cut()
        await until(lambda: not house.linked, within_s=20)
        (row,) = await house.revoke("job", peer.job_id)
        assert row["state"] == "pending"
        seen = len(screen.data)
        await until(lambda: len(screen.data) > seen + 20)
        assert [one["state"] for one in await house.listed()] == ["pending"]
        house.wire.mend()
        why = await peer.closing()
        assert isinstance(why, SessionRevoked)
        await ended(peer)
        async with asyncio.timeout(10):
            while [one["state"] for one in await house.listed()] != ["done"]:
                await asyncio.sleep(0.02)
        assert building(house, peer.job_id)
        refused = await client.request(job_id=peer.job_id)
        assert (refused.status, refused.error.code) == (403, "grant.revoked")


async def test_a_key_that_is_revoked_takes_its_connections_and_waiting_jobs_with_it(
    house: House,
) -> None:
    client, other = await house.member(), await house.member()
    key_id = (await client.ask("GET", "/whoami")).body["identity"]
    async with (
        connected(house, client, target="esp32p4") as peer,
        connected(house, other, target="esp32p4") as stays,
    ):
        waits = await client.request(target="esp32c6")
        assert waits.status == 202
        unused = await client.granted(job_id=peer.job_id)
        assert (await house.operator.ask("DELETE", f"/services/keys/{key_id}")).status == 204
        assert isinstance(await peer.closing(), SessionRevoked)
        await stays.hello()
        shown = await house.operator.ask("GET", f"/jobs/{waits.body['job_id']}")
        assert shown.body["state"] == "canceled"
        assert shown.body["error"]["code"] == "session.revoked"
        refused = await client.offer(unused)
        assert (refused.status, refused.error.code) == (403, "grant.revoked")


async def test_what_there_is_not_can_not_be_revoked(house: House) -> None:
    for kind, code in (
        ("grant", "grant.not_found"),
        ("job", "job.not_found"),
        ("key", "key.not_found"),
    ):
        body = {"kind": kind, "id": "nothing-of-that-name"}
        answer = await house.operator.ask("POST", "/services/revocations", body)
        assert (answer.status, answer.error.code) == (404, code)


@pytest.mark.sqlite
async def test_the_agent_follows_a_new_issuer_key_and_over_several_when_it_was_away(
    house: House,
) -> None:
    client = await house.member()

    async def rotate() -> str:
        answer = await house.operator.ask("POST", "/services/issuer/rotate")
        assert answer.status == 200, answer.body
        return str(answer.body["keys"][-1]["kid"])

    await rotate()
    async with connected(house, client, target="esp32p4") as peer:
        await peer.ask("job.end")
    house.wire.cut()
    await until(lambda: not house.linked, within_s=20)
    for _ in range(2):
        newest = await rotate()
    house.wire.mend()
    await until(lambda: house.linked, within_s=30)
    async with connected(house, client, target="esp32p4") as peer:
        await peer.hello()
    kept = Enrollment.open(house.agent.state)
    assert kept is not None
    assert list(kept.keys())[-1] == newest
    assert len(kept.issuer_keys) == 2
