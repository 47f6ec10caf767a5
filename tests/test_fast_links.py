"""Links on the fast path over real transports: mixed with stock peers, and over bad networks."""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aegis_links import event_loop
from aegis_links.association import FastAssociation
from aegis_links.certificate import Certificate
from aegis_links.fast.datagrams import DatagramPort
from aegis_links.fast.dtls import FastDtls
from aegis_links.peer_link import PeerLink
from aegis_protocol.channels import SEND_QUEUE_CAP_BYTES, ChannelName
from aegis_protocol.fingerprint import check_sdp
from aiortc import RTCConfiguration, RTCDataChannel, RTCPeerConnection, RTCSessionDescription
from bench.udp_path import UdpPath, Weather
from linked_peers import ALL, Peers, linked_peers
from waiting import until

pytestmark = pytest.mark.timeout(60)
FIRMWARE, PTY = ChannelName.FIRMWARE, ChannelName.PTY
PIECE = 16_384


def noise(size_bytes: int) -> bytes:
    return random.Random(5).randbytes(size_bytes)  # noqa: S311


async def send_all(link: PeerLink, data: bytes) -> None:
    for start in range(0, len(data), PIECE):
        await link.channel(FIRMWARE).send(data[start : start + PIECE])


async def digest_of(link: PeerLink, size_bytes: int) -> str:
    digest, left = hashlib.sha256(), size_bytes
    while left:
        message = await link.channel(FIRMWARE).receive()
        assert isinstance(message, bytes)
        digest.update(message)
        left -= len(message)
    return digest.hexdigest()


async def both_ways(peers: Peers, size_bytes: int) -> None:
    data = noise(size_bytes)
    async with asyncio.TaskGroup() as tasks:
        found = []
        for sender, receiver in ((peers.agent, peers.client), (peers.client, peers.agent)):
            tasks.create_task(send_all(sender, data))
            found.append(tasks.create_task(digest_of(receiver, size_bytes)))
    assert {task.result() for task in found} == {hashlib.sha256(data).hexdigest()}


def association_of(link: PeerLink) -> FastAssociation:
    association = link._transport.association
    assert isinstance(association, FastAssociation)
    return association


def port_of(link: PeerLink) -> DatagramPort:
    dtls = link._transport._dtls
    assert isinstance(dtls, FastDtls)
    return dtls._port


@pytest.mark.parametrize(
    ("weather", "size_bytes"),
    [
        (Weather(), 4_000_000),
        (Weather(loss=0.01), 3_000_000),
        (Weather(loss=0.05, delay_s=0.001), 1_500_000),
        (Weather(delay_s=0.005, disordered=0.1, copied=0.05), 1_000_000),
        (Weather(loss=0.02, disordered=0.02, copied=0.02), 1_500_000),
    ],
    ids=["clean", "1 % lost", "5 % lost", "disorder and copies", "all at once"],
)
async def test_what_is_sent_arrives_whatever_the_network_does(
    weather: Weather, size_bytes: int
) -> None:
    async with UdpPath.through(weather) as path, linked_peers(path=path) as peers:
        await both_ways(peers, size_bytes)
        assert bool(path.dropped) is bool(weather.loss)
        for link in (peers.agent, peers.client):
            await until(lambda link=link: association_of(link).delivered)  # type: ignore[misc]
            assert 0 < link.buffered_high_water <= SEND_QUEUE_CAP_BYTES


async def test_a_long_path_is_filled_and_its_queue_stays_below_the_cap() -> None:
    async with (
        UdpPath.through(Weather(delay_s=0.05)) as path,
        linked_peers(path=path) as peers,
    ):
        data = noise(4_000_000)
        receiving = asyncio.create_task(digest_of(peers.client, len(data)))
        most_in_flight = 0
        for start in range(0, len(data), PIECE):
            await peers.agent.channel(FIRMWARE).send(data[start : start + PIECE])
            flying = association_of(peers.agent).in_flight_bytes
            most_in_flight = max(most_in_flight, flying)
        assert await receiving == hashlib.sha256(data).hexdigest()
        # A queue that is emptied once in a round trip would never have more than itself there.
        assert most_in_flight > 2 * SEND_QUEUE_CAP_BYTES
        assert 4 * PIECE < peers.agent.buffered_high_water <= SEND_QUEUE_CAP_BYTES


async def test_a_keystroke_passes_a_stream_of_firmware() -> None:
    async with linked_peers() as peers:
        clock = asyncio.get_running_loop().time
        data = noise(16_000_000)
        sending = asyncio.create_task(send_all(peers.agent, data))
        reading = asyncio.create_task(digest_of(peers.client, len(data)))
        waits = []
        while not sending.done():
            began = clock()
            await peers.agent.channel(PTY).send(b"k")
            await peers.client.channel(PTY).receive()
            waits.append(clock() - began)
        await asyncio.gather(sending, reading)
        assert len(waits) > 10
        assert sorted(waits)[len(waits) // 2] < 0.1


async def test_a_blocked_path_goes_on_where_it_stood() -> None:
    async with UdpPath.through() as path, linked_peers(path=path) as peers:
        data = noise(3_000_000)
        sending = asyncio.create_task(send_all(peers.agent, data))
        reading = asyncio.create_task(digest_of(peers.client, len(data)))
        await until(lambda: path.passed > 200)
        path.blocked = True
        await until(lambda: association_of(peers.agent)._t3_failures >= 1, within_s=5)
        path.blocked = False
        await sending
        assert await reading == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("refused", [False, True], ids=["never", "no longer"])
async def test_where_the_kernel_does_not_cut_bursts_datagrams_go_one_by_one(refused: bool) -> None:
    async with linked_peers() as peers:
        for link in (peers.agent, peers.client):
            port = port_of(link)
            for protocol in port._connection._protocols:
                gone = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                gone.close()
                port._cutters[protocol] = gone if refused else None
        await both_ways(peers, 1_000_000)
        assert None in port_of(peers.agent)._cutters.values()


async def test_sockets_are_given_back_with_their_link() -> None:
    async with linked_peers() as peers:
        await both_ways(peers, 500_000)
        cutters = [
            cutter
            for link in (peers.agent, peers.client)
            for cutter in port_of(link)._cutters.values()
            if cutter
        ]
        assert cutters
    assert all(cutter.fileno() == -1 for cutter in cutters)


@asynccontextmanager
async def stock_client(
    weather: Weather,
) -> AsyncIterator[tuple[PeerLink, RTCDataChannel, list[bytes]]]:
    """Aiortc as it comes as the client of a link on the fast path."""
    stock = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    channels = {name: stock.createDataChannel(name) for name in ALL}
    received: list[bytes] = []
    channels[FIRMWARE].on("message", received.append)
    await stock.setLocalDescription(await stock.createOffer())
    certificate = Certificate.generate()
    offer = re.sub(r"a=fingerprint:sha-(384|512).*\r\n", "", stock.localDescription.sdp)
    async with (
        UdpPath.through(weather) as path,
        PeerLink.answering(
            path.of_offer(offer), certificate, expected_fingerprint=check_sdp(offer), granted=ALL
        ) as link,
    ):
        answer = path.of_answer(link.answer_sdp)
        await stock.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        await link.opened(10)
        await until(lambda: channels[FIRMWARE].readyState == "open")
        try:
            yield link, channels[FIRMWARE], received
        finally:
            await stock.close()


@pytest.mark.parametrize(
    "weather",
    [Weather(), Weather(loss=0.01), Weather(loss=0.05), Weather(disordered=0.1, copied=0.05)],
    ids=["clean", "1 % lost", "5 % lost", "disorder and copies"],
)
async def test_a_stock_peer_and_a_fast_one_understand_each_other(weather: Weather) -> None:
    data = noise(800_000)
    async with stock_client(weather) as (link, channel, received):
        sending = asyncio.create_task(send_all(link, data))
        for start in range(0, len(data), PIECE):
            channel.send(data[start : start + PIECE])
        assert await digest_of(link, len(data)) == hashlib.sha256(data).hexdigest()
        await sending
        await until(lambda: sum(map(len, received)) == len(data), within_s=40)
        assert b"".join(received) == data


async def test_a_loop_of_asyncio_is_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(event_loop.SWITCH, "asyncio")
    assert event_loop.loop_factory() is None


async def exchange() -> str:
    async with linked_peers() as peers:
        await both_ways(peers, 2_000_000)
    return type(asyncio.get_running_loop()).__module__


def test_the_fast_loop_carries_links_where_it_is_installed() -> None:
    assert event_loop.run(exchange()).startswith("uvloop")
