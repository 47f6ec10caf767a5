"""A real TURN server: relayed links by each way to it, and what is said when there is no relay."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psutil
import pytest
from aegis_links import ice_knock, relay
from aegis_links.certificate import Certificate
from aegis_links.ice_guide import IceGuide
from aegis_links.peer_link import PeerLink
from aegis_protocol.channels import ChannelName
from aegis_protocol.failures.link import (
    PeerGone,
    RelayExpired,
    RelayRefused,
    RelayUnavailable,
    RelayUnreachable,
)
from aegis_protocol.http_api.grants import IceServer
from aioice.ice import relayed_candidate
from linked_peers import linked_peers
from turn_server import TurnServer, Way, running
from waiting import until

pytestmark = [pytest.mark.timeout(60), pytest.mark.requires("turnserver")]

CHANNELS = {ChannelName.ESPCTL, ChannelName.FIRMWARE}


@pytest.fixture
async def turn(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TurnServer]:
    """Every connection to it is closed in the end: TLS takes leave of its peer first."""
    for transport in ("tcp", "tls"):  # a busy machine is no dead server
        monkeypatch.setitem(ice_knock.KNOCK_DEADLINE_S, transport, 20.0)
    with running() as server:
        yield server
        await until(lambda: not connections_to(server), within_s=30)


def connections_to(server: TurnServer) -> list[object]:
    ports = (server.port, server.tls_port)
    connections = psutil.Process().net_connections("tcp")
    return [each for each in connections if each.raddr and each.raddr.port in ports]


@pytest.mark.parametrize("way", ["udp", "tcp", "tls"])
async def test_a_link_that_may_only_be_relayed_carries_every_byte(
    turn: TurnServer, way: Way
) -> None:
    sent = b"".join(number.to_bytes(4, "big") * 4096 for number in range(64))
    async with (
        IceGuide(turn.trust).running() as guide,
        linked_peers(ice_servers=turn.servers(way), guide=guide, relay_only=True) as peers,
    ):
        assert peers.client.path == peers.agent.path == "relay/relay"
        assert "typ host" not in peers.client.offer_sdp + peers.agent.answer_sdp
        firmware = peers.agent.channel(ChannelName.FIRMWARE)
        received = asyncio.create_task(_digest(peers.client, len(sent)))
        for start in range(0, len(sent), 16384):
            await firmware.send(sent[start : start + 16384])
        assert await received == hashlib.sha256(sent).digest()


async def test_a_relayed_peer_meets_one_that_is_not(turn: TurnServer) -> None:
    """The relay of one side alone is enough: the other knows of no server."""
    certificate = Certificate.generate()
    async with (
        PeerLink.offering(
            certificate, channels=CHANNELS, ice_servers=turn.servers("udp"), relay_only=True
        ) as client,
        PeerLink.answering(
            client.offer_sdp,
            agent_certificate := Certificate.generate(),
            expected_fingerprint=certificate.fingerprint,
            granted=CHANNELS,
            ice_servers=turn.servers("tcp"),
        ) as agent,
    ):
        await client.accept_answer(
            agent.answer_sdp, expected_fingerprint=agent_certificate.fingerprint
        )
        await asyncio.gather(client.opened(10), agent.opened(10))
        assert client.path.startswith("relay/")


@pytest.mark.parametrize("way", ["udp", "tcp", "tls"])
async def test_another_secret_than_the_servers_is_told(turn: TurnServer, way: Way) -> None:
    with pytest.raises(RelayRefused) as caught:
        async with _relay_only(turn, turn.servers(way, secret="another")):
            pytest.fail("there is no relay")
    assert turn.url(way) in caught.value.message
    assert "AEGIS_TURN_SECRET" in caught.value.remedy
    assert not caught.value.retryable


@pytest.mark.parametrize("way", ["udp", "tcp", "tls"])
async def test_while_a_secret_changes_the_credentials_that_the_server_takes_are_used(
    turn: TurnServer, way: Way
) -> None:
    """Control hands out two for each server, the new ones first; this server has the old secret."""
    servers = (*turn.servers(way, secret="another"), *turn.servers(way))
    async with (
        IceGuide(turn.trust).running() as guide,
        linked_peers(ice_servers=servers, guide=guide, relay_only=True) as peers,
    ):
        assert peers.client.path == peers.agent.path == "relay/relay"
        assert peers.client.relay_unavailable is None


async def test_each_server_is_asked_with_credentials_of_its_own(turn: TurnServer) -> None:
    """One is dead, one refuses, and the third takes what no other does."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf, running(secret="its own") as own:
        deaf.bind(("127.0.0.1", 0))
        dead = f"turn:127.0.0.1:{deaf.getsockname()[1]}"
        (refused,), (right,) = turn.servers("udp", "tcp", secret="x"), own.servers("udp")
        servers = (right.model_copy(update={"urls": (dead,), "username": "1:a"}), refused, right)
        async with linked_peers(ice_servers=servers, relay_only=True) as peers:
            assert peers.client.path == "relay/relay"
        (candidate,) = (line for line in peers.client.offer_sdp.splitlines() if "typ relay" in line)
        assert candidate


async def test_what_refuses_is_not_asked_without_end_and_the_first_refusal_is_told(
    turn: TurnServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []

    async def counted(**settings: Any) -> Any:
        asked.append(settings["turn_username"])
        return await relayed_candidate(**settings)

    monkeypatch.setattr(relay, "relayed_candidate", counted)
    many = [turn.servers("udp", secret=f"secret {n}", ended_s=100 - 200 * n)[0] for n in range(9)]
    with pytest.raises(RelayExpired):
        async with _relay_only(turn, tuple(many)):
            pytest.fail("there is no relay")
    assert asked == [server.username for server in many[: relay.MOST_ASKED]]


async def test_a_server_that_fell_silent_does_not_keep_the_next_from_being_asked(
    turn: TurnServer,
) -> None:
    async with answering_once() as silent:
        (right,) = turn.servers("udp")
        servers = [right.model_copy(update={"urls": (silent, *right.urls)})]
        # Its other credentials are not asked with: there is time for the next server.
        async with _relay_only(turn, (*servers, *servers)) as link:
            assert "typ relay" in link.offer_sdp
            assert link.relay_unavailable is None


async def test_a_server_that_refuses_without_a_code_is_told_and_the_next_is_asked(
    turn: TurnServer,
) -> None:
    async with answering_once(for_ever=True) as rude:
        (right,) = turn.servers("udp")
        alone = right.model_copy(update={"urls": (rude,)})
        with pytest.raises(RelayUnavailable, match="no reason given"):
            async with _relay_only(turn, (alone,)):
                pytest.fail("there is no relay")
        async with _relay_only(turn, (alone, right)) as link:
            assert "typ relay" in link.offer_sdp


async def test_an_address_that_came_while_the_link_was_canceled_is_given_back(
    turn: TurnServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    async def late(**settings: Any) -> Any:
        _, protocol = found = await relayed_candidate(**settings)
        given.append(protocol.transport)
        await asyncio.sleep(0.05)  # the answer is on its way
        return found

    async def begin() -> None:
        async with _relay_only(turn, turn.servers("tcp")):
            pytest.fail("it was canceled")

    monkeypatch.setattr(relay, "relayed_candidate", late)
    beginning = asyncio.create_task(begin())
    await until(lambda: given)
    beginning.cancel()
    await asyncio.gather(beginning, return_exceptions=True)
    assert beginning.cancelled()
    await until(lambda: not connections_to(turn))


@asynccontextmanager
async def answering_once(*, for_ever: bool = False) -> AsyncIterator[str]:
    """The URL of a server that answers a knock, by an error without a code, and nothing more."""

    class Rude(asyncio.DatagramProtocol):
        left = True

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            if self.left or for_ever:
                self.left = False
                transport.sendto(b"\x01\x13\x00\x00" + data[4:20], addr)

    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Rude, local_addr=("127.0.0.1", 0))
    try:
        yield f"turn:127.0.0.1:{transport.get_extra_info('sockname')[1]}"
    finally:
        transport.close()


async def test_credentials_that_expired_are_told_with_the_time_since(turn: TurnServer) -> None:
    with pytest.raises(RelayExpired) as caught:
        async with _relay_only(turn, turn.servers("udp", ended_s=100)):
            pytest.fail("there is no relay")
    assert 100 <= caught.value.facts["over_s"] < 130
    assert caught.value.retryable


async def test_a_server_whose_certificate_is_not_trusted_is_told(turn: TurnServer) -> None:
    with pytest.raises(RelayUnreachable, match="its certificate is not trusted"):
        async with PeerLink.offering(
            Certificate.generate(),
            channels=CHANNELS,
            ice_servers=turn.servers("tls"),
            relay_only=True,
        ):
            pytest.fail("there is no relay")


async def test_the_next_way_is_taken_where_udp_is_blocked(turn: TurnServer) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind(("127.0.0.1", 0))
        blocked = f"turn:127.0.0.1:{deaf.getsockname()[1]}"
        (right,) = turn.servers("tcp", "tls")
        servers = [right.model_copy(update={"urls": (blocked, *right.urls)})]
        began = time.monotonic()
        async with (
            IceGuide(turn.trust).running() as guide,
            linked_peers(ice_servers=servers, guide=guide, relay_only=True) as peers,
        ):
            assert peers.client.path == "relay/relay"
        assert time.monotonic() - began < 10


async def test_a_refused_relay_is_the_error_where_no_direct_way_is_found(turn: TurnServer) -> None:
    """The peer is nowhere: what could have helped is named, and the time is kept."""
    certificate, absent = Certificate.generate(), Certificate.generate()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind(("127.0.0.1", 0))
        async with PeerLink.offering(
            certificate, channels=CHANNELS, ice_servers=turn.servers("udp", secret="another")
        ) as link:
            assert isinstance(link.relay_unavailable, RelayRefused)
            async with PeerLink.answering(
                "\r\n".join([*_nowhere(link.offer_sdp), ""]),  # so it does not come by itself
                absent,
                expected_fingerprint=certificate.fingerprint,
                granted=CHANNELS,
            ) as answering:
                answer = _nowhere(answering.answer_sdp)
            port = deaf.getsockname()[1]
            answer.append(f"a=candidate:1 1 udp 2130706431 127.0.0.1 {port} typ host")
            await link.accept_answer(
                "\r\n".join(answer) + "\r\n", expected_fingerprint=absent.fingerprint
            )
            with pytest.raises(RelayRefused, match="No direct way") as caught:
                await link.opened(1)
    assert caught.value.facts["progress"]["remote_candidates"] == 1


@pytest.mark.parametrize("way", [pytest.param("udp", marks=pytest.mark.long), "tcp"])
async def test_a_relay_that_dies_ends_the_link_in_time(turn: TurnServer, way: Way) -> None:
    async with linked_peers(ice_servers=turn.servers(way), relay_only=True) as peers:
        turn.process.kill()
        began = time.monotonic()
        for end in await asyncio.gather(peers.client.wait_closed(), peers.agent.wait_closed()):
            assert isinstance(end, PeerGone)
        # Over TCP the end of the connection tells, over UDP silence does.
        assert time.monotonic() - began < (8 if way == "udp" else 4)
    assert asyncio.all_tasks() == {asyncio.current_task()}, "a dead relay is asked to let go"


@asynccontextmanager
async def _relay_only(turn: TurnServer, servers: tuple[IceServer, ...]) -> AsyncIterator[PeerLink]:
    async with (
        IceGuide(turn.trust).running() as guide,
        PeerLink.offering(
            Certificate.generate(),
            channels=CHANNELS,
            ice_servers=servers,
            guide=guide,
            relay_only=True,
        ) as link,
    ):
        yield link


def _nowhere(sdp: str) -> list[str]:
    """The lines of a description but for its addresses."""
    addresses = ("a=candidate:", "a=end-of-candidates")
    return [line for line in sdp.splitlines() if not line.startswith(addresses)]


async def _digest(link: PeerLink, size_bytes: int) -> bytes:
    digest = hashlib.sha256()
    async for message in link.channel(ChannelName.FIRMWARE):
        assert isinstance(message, bytes)
        digest.update(message)
        size_bytes -= len(message)
        if size_bytes == 0:
            break
    return digest.digest()
