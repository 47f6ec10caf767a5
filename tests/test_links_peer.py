"""A link from its opening to each of its ends, over real ICE, DTLS and SCTP."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import ifaddr
import pytest
from aegis_links.certificate import Certificate
from aegis_links.datagram_queue import MOST_BYTES, OVERHEAD_BYTES
from aegis_links.heartbeat import PING
from aegis_links.peer_link import PeerLink
from aegis_links.rejecting import MAX_REJECTED_CHANNELS
from aegis_links.session_description import MAX_REMOTE_CANDIDATES, read_description
from aegis_links.states import CHANNEL_MOVES, LINK_MOVES, ChannelState, LinkState
from aegis_protocol.channels import (
    MAX_MESSAGE_BYTES,
    PAYLOAD_BYTES,
    SEND_QUEUE_CAP_BYTES,
    ChannelName,
)
from aegis_protocol.failures.link import (
    ChannelClosed,
    ChannelNotGranted,
    FingerprintMismatch,
    LinkClosed,
    LinkFlooded,
    LinkNotOpened,
    MessageTooLarge,
    NoCandidates,
    PeerGone,
    SdpInvalid,
    TooManyCandidates,
)
from aegis_protocol.fingerprint import Fingerprint
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from linked_peers import ALL, linked_peers
from waiting import until

pytestmark = pytest.mark.timeout(30)

ESPCTL, SOURCE, PTY = ChannelName.ESPCTL, ChannelName.SOURCE, ChannelName.PTY
FIRMWARE, SERIAL = ChannelName.FIRMWARE, ChannelName.SERIAL


async def test_messages_of_both_kinds_arrive_in_order_on_every_channel() -> None:
    async with linked_peers() as peers:
        for name in ALL:
            for message in (b"\x00bytes", "tëxt", b"", ""):
                await peers.client.channel(name).send(message)
            channel = peers.agent.channel(name)
            assert [await channel.receive() for _ in range(4)] == [b"\x00bytes", "tëxt", b"", ""]
        assert peers.client.state is LinkState.OPEN
        assert peers.client.path == "host/host"
        assert peers.agent.rtt_s is not None or peers.client.rtt_s is not None


async def test_a_clean_close_is_seen_at_once_and_what_was_sent_arrives() -> None:
    async with linked_peers() as peers:
        await peers.agent.channel(PTY).send(b"last words")
        began = time.monotonic()
        await peers.agent.close()
        assert await peers.client.wait_closed() is None
        assert time.monotonic() - began < 1.0
        assert [message async for message in peers.client.channel(PTY)] == [b"last words"]
        with pytest.raises(LinkClosed):
            await peers.client.channel(PTY).send(b"too late")
        with pytest.raises(LinkClosed):
            await peers.client.channel(PTY).receive()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
async def test_a_vanished_peer_ends_every_stream_within_eight_seconds(
    caplog: pytest.LogCaptureFixture, number: signal.Signals
) -> None:
    certificate = Certificate.generate()
    peer = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("vanishing_peer.py")),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert peer.stdin is not None and peer.stdout is not None
    try:
        async with PeerLink.offering(certificate, channels=ALL) as link:
            offer = {"sdp": link.offer_sdp, "fingerprint": str(certificate.fingerprint)}
            peer.stdin.write(json.dumps(offer).encode() + b"\n")
            answer = json.loads(await asyncio.wait_for(peer.stdout.readline(), 10))
            await link.accept_answer(
                answer["sdp"], expected_fingerprint=Fingerprint.parse(answer["fingerprint"])
            )
            await link.opened(10)
            assert json.loads(await asyncio.wait_for(peer.stdout.readline(), 10))

            async def upload() -> None:
                while True:
                    await link.channel(SOURCE).send(bytes(PAYLOAD_BYTES))

            async def first_of(name: ChannelName) -> bytes | str:
                return await anext(aiter(link.channel(name)))

            waiting = [
                asyncio.create_task(link.channel(ESPCTL).receive()),
                asyncio.create_task(first_of(PTY)),
                asyncio.create_task(upload()),
            ]
            peer.send_signal(number)
            began = time.monotonic()
            error = await link.wait_closed()
            assert isinstance(error, PeerGone) and error.retryable
            assert time.monotonic() - began < 8.0
            ends = await asyncio.gather(*waiting, return_exceptions=True)
            assert all(end is error for end in ends)
            assert link.state is LinkState.FAILED
    finally:
        if peer.returncode is None:
            peer.kill()
        await peer.wait()
    assert not [r for r in caplog.records if r.name == "asyncio" and r.levelno >= logging.ERROR]


async def test_an_idle_link_is_pinged_by_both_sides() -> None:
    async with linked_peers() as peers:
        pings: list[str] = []
        for side in ("client", "agent"):
            raw = getattr(peers, side).channel(ESPCTL)._raw
            raw.on("message", lambda message, side=side: pings.append(side + message))
        await until(lambda: {"client" + PING, "agent" + PING} <= set(pings), within_s=6)


async def test_an_idle_link_stays_open_beyond_the_limit_of_silence() -> None:
    async with linked_peers({PTY}, {PTY}) as peers:
        ended = asyncio.create_task(peers.client.wait_closed())
        await asyncio.wait({ended}, timeout=7.5)
        assert not ended.done()
        await peers.client.channel(PTY).send(b"still here")
        assert await peers.agent.channel(PTY).receive() == b"still here"
        ended.cancel()


async def test_a_channel_without_a_grant_is_closed_and_the_others_go_on() -> None:
    async with linked_peers(ALL, ALL - {SERIAL}) as peers:
        with pytest.raises(ChannelClosed):
            await peers.client.channel(SERIAL).receive()
        with pytest.raises(ChannelClosed):
            await peers.client.channel(SERIAL).send(b"?")
        assert [str(error) for error in peers.rejected] == ["Channel serial was rejected"]
        assert peers.rejected[0].code == "channel.not_granted"
        await peers.client.channel(PTY).send(b"goes on")
        assert await peers.agent.channel(PTY).receive() == b"goes on"
        with pytest.raises(ChannelNotGranted):
            peers.agent.channel(SERIAL)


async def test_a_peer_that_opens_channels_without_end_is_cut_off() -> None:
    async with linked_peers({ESPCTL}, {ESPCTL}) as peers:
        for number in range(1000):
            peers.client._transport.open_channel(f"extra-{number}")
        error = await peers.agent.wait_closed()
        assert isinstance(error, LinkFlooded)
        assert len(peers.rejected) <= MAX_REJECTED_CHANNELS


async def test_an_unordered_or_second_channel_of_a_name_is_rejected() -> None:
    async with linked_peers({ESPCTL, PTY}, {ESPCTL, PTY}) as peers:
        await peers.client.channel(PTY).opened(5)
        again = peers.client._transport.open_channel("pty")
        closed = asyncio.Event()
        again.on("close", closed.set)
        await asyncio.wait_for(closed.wait(), 5)
        assert [str(error) for error in peers.rejected] == ["Channel pty was rejected"]
        assert not peers.agent.channel(PTY).closed


async def test_four_megabytes_never_stand_above_the_cap_of_the_send_queue() -> None:
    async with linked_peers() as peers:
        raws = list(peers.agent._transport.association._data_channels.values())
        seen: list[int] = []
        received = 0

        async def download() -> None:
            channel = peers.agent.channel(FIRMWARE)
            for _ in range(4 * 1024 * 1024 // PAYLOAD_BYTES):
                await channel.send(bytes(PAYLOAD_BYTES))
                seen.append(sum(raw.bufferedAmount for raw in raws))

        async def terminal() -> None:
            for _ in range(64):
                await peers.agent.channel(PTY).send(bytes(PAYLOAD_BYTES))
                seen.append(sum(raw.bufferedAmount for raw in raws))

        async def requests() -> None:
            for _ in range(8):
                await peers.agent.channel(ESPCTL).send("x" * MAX_MESSAGE_BYTES)
                seen.append(sum(raw.bufferedAmount for raw in raws))

        async def sink(name: ChannelName, size_bytes: int) -> None:
            nonlocal received
            count = 0
            while count < size_bytes:
                count += len(await peers.client.channel(name).receive())
            received += count

        await asyncio.gather(
            download(),
            terminal(),
            requests(),
            sink(FIRMWARE, 4 * 1024 * 1024),
            sink(PTY, 1024 * 1024),
            sink(ESPCTL, 8 * MAX_MESSAGE_BYTES),
        )
        assert received == 4 * 1024 * 1024 + 1024 * 1024 + 8 * MAX_MESSAGE_BYTES
        assert max(seen) <= peers.agent.buffered_high_water <= SEND_QUEUE_CAP_BYTES


async def test_a_keystroke_goes_before_all_firmware_that_waits() -> None:
    async with linked_peers() as peers:
        handed = 0
        arrivals: list[str] = []

        async def firmware() -> None:
            nonlocal handed
            await peers.client.channel(FIRMWARE).send(bytes(PAYLOAD_BYTES))
            handed += 1

        async def read(name: ChannelName, count: int) -> None:
            for _ in range(count):
                await peers.agent.channel(name).receive()

        # Noted as they arrive: which reader is woken first is another matter.
        for name in (FIRMWARE, SERIAL):
            await peers.agent.channel(name).opened(5)
            raw = peers.agent.channel(name)._raw
            assert raw is not None
            raw.on("message", partial(lambda name, _: arrivals.append(name), name))
        reading = [
            asyncio.create_task(read(FIRMWARE, 128)),
            asyncio.create_task(read(SERIAL, 1)),
        ]
        sending = [asyncio.create_task(firmware()) for _ in range(128)]
        while handed < 20:
            await asyncio.wait(sending, return_when=asyncio.FIRST_COMPLETED)
            sending = [task for task in sending if not task.done()]
        await peers.client.channel(SERIAL).send(b"k")
        ahead = 128 - len(peers.client._scheduler._lines[FIRMWARE].waiting)
        assert ahead < 128
        await asyncio.gather(*sending, *reading)
        assert arrivals.index(SERIAL) <= ahead


async def test_a_message_above_the_limit_is_refused_and_the_link_lives() -> None:
    async with linked_peers({ESPCTL, PTY}) as peers:
        with pytest.raises(MessageTooLarge):
            await peers.client.channel(PTY).send(bytes(MAX_MESSAGE_BYTES + 1))
        with pytest.raises(MessageTooLarge):
            await peers.client.channel(PTY).send("é" * (MAX_MESSAGE_BYTES // 2 + 1))
        await peers.client.channel(PTY).send(bytes(MAX_MESSAGE_BYTES))
        assert len(await peers.agent.channel(PTY).receive()) == MAX_MESSAGE_BYTES


async def test_a_peer_that_floods_a_channel_nobody_reads_is_cut_off() -> None:
    async with linked_peers() as peers:
        with pytest.raises((LinkClosed, ChannelClosed)):
            while True:
                await peers.client.channel(SOURCE).send(bytes(MAX_MESSAGE_BYTES))
                if peers.agent.error is not None:
                    await peers.agent.close()
        assert isinstance(await peers.agent.wait_closed(), LinkFlooded)
        assert await peers.client.wait_closed() is None


@pytest.mark.parametrize("size_bytes", [50_000, 1], ids=["joined", "tiny"])
async def test_what_anybody_sends_to_a_socket_has_a_bound_and_the_link_lives(
    size_bytes: int,
) -> None:
    """What looks like DTLS is taken from the socket sooner than it is found to be forged."""
    forged = (b"\x17\xfe\xfd" + bytes(8) + b"\x04\x00").ljust(size_bytes, b"\0")[:size_bytes]
    most = MOST_BYTES // (size_bytes + OVERHEAD_BYTES) + 1
    async with linked_peers() as peers:
        connection = peers.agent._transport._ice._connection
        await until(connection._queue.empty)
        for _ in range(2 * most):
            connection.data_received(forged, 1)
        assert connection._queue.qsize() == most
        await peers.client.channel(PTY).send(b"k")
        assert await peers.agent.channel(PTY).receive() == b"k"
        await until(connection._queue.empty)
        connection.data_received(forged, 1)
        assert connection._queue.qsize() == 1, "there is room again"
        assert peers.agent.state is peers.client.state is LinkState.OPEN


@pytest.mark.parametrize("sender", ["agent", "client"])
@pytest.mark.parametrize(
    ("limits", "size_bytes", "count", "at_least_s"),
    [
        # The burst and one message more pass at once; the other 40,960 bytes at 100,000 a second.
        ((800, 0), PAYLOAD_BYTES, 5, 0.35),
        # The burst is five messages and passes at once, with one more; the others at 20 a second.
        ((0, 20), 1, 16, 0.45),
    ],
    ids=["kbit/s", "messages/s"],
)
async def test_a_limit_of_the_grant_slows_either_side_and_never_cuts(
    sender: str, limits: tuple[int, int], size_bytes: int, count: int, at_least_s: float
) -> None:
    async with linked_peers(max_bandwidth_kbps=limits[0], max_message_rate=limits[1]) as peers:
        ends = (peers.agent, peers.client)
        near, far = ends if sender == "agent" else reversed(ends)
        began = time.monotonic()
        for _ in range(count):
            await near.channel(FIRMWARE).send(bytes(size_bytes))
        assert time.monotonic() - began > at_least_s
        for _ in range(count):
            await far.channel(FIRMWARE).receive()
        assert near.state is far.state is LinkState.OPEN


async def test_an_answer_of_another_peer_is_refused_before_a_packet_is_sent() -> None:
    certificate, answering, stranger = (Certificate.generate() for _ in range(3))
    async with (
        PeerLink.offering(certificate, channels={ESPCTL}) as client,
        PeerLink.answering(
            client.offer_sdp,
            answering,
            expected_fingerprint=certificate.fingerprint,
            granted={ESPCTL},
        ) as agent,
    ):
        with pytest.raises(FingerprintMismatch):
            await client.accept_answer(agent.answer_sdp, expected_fingerprint=stranger.fingerprint)
        assert client.state is LinkState.NEW
        with pytest.raises(FingerprintMismatch):
            async with PeerLink.answering(
                client.offer_sdp,
                answering,
                expected_fingerprint=stranger.fingerprint,
                granted={ESPCTL},
            ):
                pytest.fail("the offer has another fingerprint than the grant")


class _Impostor(Certificate):
    """Announces the fingerprint of a certificate whose key it does not have."""

    announced: Fingerprint

    @property
    def fingerprint(self) -> Fingerprint:
        return self.announced


async def test_a_certificate_other_than_the_announced_one_ends_the_link() -> None:
    certificate, honest = Certificate.generate(), Certificate.generate()
    impostor = _Impostor(Certificate.generate().rtc)
    object.__setattr__(impostor, "announced", honest.fingerprint)
    async with (
        PeerLink.offering(certificate, channels={ESPCTL}) as client,
        PeerLink.answering(
            client.offer_sdp,
            impostor,
            expected_fingerprint=certificate.fingerprint,
            granted={ESPCTL},
        ) as agent,
    ):
        await client.accept_answer(agent.answer_sdp, expected_fingerprint=honest.fingerprint)
        with pytest.raises(FingerprintMismatch):
            await client.opened(10)
        with pytest.raises(FingerprintMismatch):
            await client.channel(ESPCTL).send("secret")


async def test_candidates_may_be_trickled_and_mdns_names_cost_nothing() -> None:
    certificate, answering = Certificate.generate(), Certificate.generate()
    async with (
        PeerLink.offering(certificate, channels={ESPCTL}) as client,
        PeerLink.answering(
            client.offer_sdp,
            answering,
            expected_fingerprint=certificate.fingerprint,
            granted={ESPCTL},
        ) as agent,
    ):
        lines = agent.answer_sdp.splitlines()
        candidates = [line for line in lines if line.startswith("a=candidate")]
        bare = [line for line in lines if "candidate" not in line]
        name = (
            "a=candidate:1 1 udp 2130706431 8e1c7d2a-0b5c-4b0e-9a59-7f3e0c4f2d11.local 9 typ host"
        )
        sdp = "\r\n".join([*bare, name, "a=end-of-candidates", ""])
        assert read_description(sdp).candidates == ()
        assert not read_description(sdp).complete
        began = time.monotonic()
        await client.accept_answer(sdp, expected_fingerprint=answering.fingerprint)
        client.add_remote_candidate(name.removeprefix("a="), "0", 0)
        client.add_remote_candidate("candidate:garbage")
        for line in candidates:
            client.add_remote_candidate(line.removeprefix("a="), "0", 0)
        client.add_remote_candidate("")
        await client.opened(10)
        assert time.monotonic() - began < 1.0
        with pytest.raises(TooManyCandidates):
            for _ in range(MAX_REMOTE_CANDIDATES):
                client.add_remote_candidate(candidates[0].removeprefix("a="))


async def test_a_peer_that_never_answers_is_given_up_at_the_deadline() -> None:
    certificate, silent = Certificate.generate(), Certificate.generate()
    async with PeerLink.offering(certificate, channels={ESPCTL}) as other:
        answer = other.offer_sdp.replace("actpass", "active").replace(
            certificate.fingerprint.pairs, silent.fingerprint.pairs
        )
        async with PeerLink.offering(certificate, channels={ESPCTL}) as client:
            await client.accept_answer(answer, expected_fingerprint=silent.fingerprint)
            with pytest.raises(LinkNotOpened) as caught:
                await client.opened(0.5)
            assert caught.value.retryable
            assert await client.wait_closed() is caught.value


async def test_an_ordinary_peer_connection_may_be_the_client() -> None:
    page = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    pipe = page.createDataChannel("pty")
    requests = page.createDataChannel("espctl")
    echoed: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    pipe.on("message", echoed.set_result)
    await page.setLocalDescription(await page.createOffer())
    # A browser offers one fingerprint; aiortc offers one for each hash.
    offer = re.sub(r"a=fingerprint:sha-(384|512).*\r\n", "", page.localDescription.sdp)
    try:
        async with PeerLink.answering(
            offer,
            Certificate.generate(),
            expected_fingerprint=read_description(offer).fingerprint,
            granted=ALL,
        ) as link:
            await page.setRemoteDescription(RTCSessionDescription(link.answer_sdp, "answer"))
            await link.opened(10)
            await link.channel(PTY).send(b"from the agent")
            assert await asyncio.wait_for(echoed, 5) == b"from the agent"
            requests.send("from the page")
            assert await link.channel(ESPCTL).receive() == "from the page"
            await page.close()
            assert await asyncio.wait_for(link.wait_closed(), 5) is None
    finally:
        await page.close()


@pytest.mark.parametrize("wrong", ["", "a=setup:actpass", "a=ice-ufrag:", "a=sctp-port:99999"])
async def test_an_answer_that_can_not_be_used_is_refused(wrong: str) -> None:
    certificate = Certificate.generate()
    async with PeerLink.offering(certificate, channels={ESPCTL}) as client:
        lines = client.offer_sdp.replace("actpass", "passive").splitlines()
        attribute = wrong.split(":", maxsplit=1)[0]
        sdp = "\r\n".join(wrong if line.startswith(attribute) else line for line in lines)
        with pytest.raises(SdpInvalid):
            await client.accept_answer(sdp, expected_fingerprint=certificate.fingerprint)
        assert client.state is LinkState.NEW


async def test_a_host_with_loopback_only_is_told_so_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loopback = ifaddr.Adapter("lo", "lo", [ifaddr.IP("127.0.0.1", 8, "lo")])
    monkeypatch.setattr(ifaddr, "get_adapters", lambda: [loopback])
    began = time.monotonic()
    with pytest.raises(NoCandidates) as caught:
        async with PeerLink.offering(Certificate.generate(), channels={ESPCTL}):
            pytest.fail("there is no address to offer")
    assert time.monotonic() - began < 1.0
    assert "dummy" in caught.value.remedy


@pytest.mark.parametrize(
    ("states", "moves", "ends"),
    [
        (LinkState, LINK_MOVES, {LinkState.CLOSED, LinkState.FAILED}),
        (ChannelState, CHANNEL_MOVES, {ChannelState.CLOSED}),
    ],
)
def test_the_table_of_moves_is_whole(
    states: Iterable[str], moves: Mapping[str, frozenset[str]], ends: set[str]
) -> None:
    first, *others = states
    assert set(moves) == {first, *others}
    assert set().union(*moves.values()) == set(others)
    assert {state for state in moves if not moves[state]} == ends
