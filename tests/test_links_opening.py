"""What the descriptions settle beforehand, and what happens where one of them does not."""

from __future__ import annotations

import base64
import struct

import pytest
from aegis_links.certificate import Certificate
from aegis_links.fast import early_setup
from aegis_links.fast.guard import is_fast
from aegis_links.peer_link import PeerLink
from aegis_links.session_description import MAX_REMOTE_CHANNELS, read_description
from aegis_protocol.channels import STREAM_IDS, ChannelName
from aegis_protocol.fingerprint import check_sdp
from aiortc import RTCConfiguration, RTCDataChannel, RTCPeerConnection, RTCSessionDescription
from aiortc.rtcsctptransport import Chunk, HeartbeatChunk, parse_packet
from linked_peers import ALL, linked_peers
from waiting import until
from wired_associations import wired

pytestmark = pytest.mark.timeout(30)

ESPCTL, PTY, SERIAL = ChannelName.ESPCTL, ChannelName.PTY, ChannelName.SERIAL


async def test_granted_channels_are_named_in_both_descriptions_and_open_on_their_streams() -> None:
    async with linked_peers(ALL, ALL - {SERIAL}) as peers:
        offered = read_description(peers.client.offer_sdp).channels
        answered = read_description(peers.agent.answer_sdp).channels
        assert offered == STREAM_IDS
        assert answered == {name: STREAM_IDS[name] for name in ALL - {SERIAL}}
        for link in (peers.client, peers.agent):
            raw = link.channel(PTY)._raw
            assert raw is not None and raw.negotiated and raw.id == STREAM_IDS[PTY]
        await until(lambda: bool(peers.rejected))
        assert [str(error) for error in peers.rejected] == ["Channel serial was rejected"]


def without(lines: str | tuple[str, ...], sdp: str) -> str:
    return "".join(line for line in sdp.splitlines(keepends=True) if not line.startswith(lines))


@pytest.mark.parametrize("fast", ["on", "off"])
async def test_a_peer_that_copies_the_offer_into_its_answer_has_agreed_to_nothing(
    fast: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As libdatachannel does with what it does not know."""
    monkeypatch.setenv("AEGIS_FAST_LINKS", fast)
    is_fast.cache_clear()
    stock = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    opened: dict[str, RTCDataChannel] = {}
    stock.on("datachannel", lambda channel: opened.update({channel.label: channel}))
    try:
        async with PeerLink.offering(Certificate.generate(), channels={ESPCTL, PTY}) as link:
            await stock.setRemoteDescription(RTCSessionDescription(link.offer_sdp, "offer"))
            await stock.setLocalDescription(await stock.createAnswer())
            copied = [
                line
                for line in link.offer_sdp.splitlines(keepends=True)
                if line.startswith(("a=dcmap", "a=sctp-init"))
            ]
            answer = without(
                ("a=fingerprint:sha-384", "a=fingerprint:sha-512"), stock.localDescription.sdp
            ) + "".join(copied)
            await link.accept_answer(answer, expected_fingerprint=check_sdp(answer))
            await link.opened(10)
            await link.channel(PTY).send(b"heard")
            await until(lambda: {"espctl", "pty"} <= set(opened))
            opened["pty"].send(b"answered")
            assert await link.channel(PTY).receive() == b"answered"
    finally:
        await stock.close()
        is_fast.cache_clear()


@pytest.mark.parametrize(
    ("lines", "lost_from"),
    [
        ("a=sctp-init", "offer"),
        ("a=dcmap", "offer"),
        (("a=sctp-init", "a=dcmap"), "offer"),
        ("a=sctp-init", "answer"),
    ],
)
async def test_a_link_opens_where_a_description_lacks_what_would_save_time(
    lines: str | tuple[str, ...], lost_from: str
) -> None:
    ours, theirs = Certificate.generate(), Certificate.generate()
    async with PeerLink.offering(ours, channels={ESPCTL, PTY}) as client:
        offer = client.offer_sdp if lost_from == "answer" else without(lines, client.offer_sdp)
        async with PeerLink.answering(
            offer, theirs, expected_fingerprint=ours.fingerprint, granted={ESPCTL, PTY}
        ) as agent:
            answer = agent.answer_sdp
            if lost_from == "answer":
                answer = without(lines, answer)
            assert not any(line.startswith(lines) for line in answer.splitlines())
            await client.accept_answer(answer, expected_fingerprint=theirs.fingerprint)
            await client.opened(10)
            await client.channel(PTY).send(b"from the client")
            assert await agent.channel(PTY).receive() == b"from the client"
            await agent.channel(PTY).send(b"from the agent")
            assert await client.channel(PTY).receive() == b"from the agent"


async def test_an_association_that_is_agreed_on_needs_no_packet_to_begin() -> None:
    async with wired(agreed=True) as (near, far):
        assert all(kind_of(packet) is HeartbeatChunk for packet in near.wire.sent + far.wire.sent)
        assert near.association._peer_window == far.association._advertised_rwnd
        channel = near.open_channel()
        await until(lambda: channel.readyState == "open")
        channel.send(b"x" * 60_000)
        await until(lambda: far.received == [b"x" * 60_000])


def kind_of(packet: bytes) -> type[Chunk]:
    (chunk,) = parse_packet(packet)[3]
    return type(chunk)


def init(tag: int = 1, window: int = 65_536, out: int = 10, into: int = 10) -> bytes:
    return struct.pack("!BBHLLHHL", 1, 0, 20, tag, window, out, into, 7)


@pytest.mark.parametrize(
    "chunk",
    [
        b"",
        b"\1",
        init()[:-1],
        b"\0" + init()[1:],
        init(tag=0),
        init(window=0),
        init(out=0),
        init(into=0),
        struct.pack("!BBH", 1, 0, 24) + init()[4:],
    ],
)
def test_an_init_that_no_association_could_begin_with_is_not_taken(chunk: bytes) -> None:
    assert early_setup.read(base64.b64encode(init()).decode()) is not None
    assert early_setup.read(base64.b64encode(chunk).decode()) is None


def test_text_that_is_no_base64_is_not_taken() -> None:
    assert early_setup.read("AQ=A") is None


@pytest.mark.parametrize(
    ("lines", "read"),
    [
        ('a=dcmap:0 label="espctl"', {"espctl": 0}),
        ('a=dcmap:0 label="espctl";max-retr=3', {}),
        ('a=dcmap:0 subprotocol="x";label="espctl"', {}),
        ('a=dcmap:0 label="espctl"\r\na=dcmap:0 label="pty"', {"espctl": 0}),
        ('a=dcmap:0 label="espctl"\r\na=dcmap:2 label="espctl"', {"espctl": 0}),
        ("a=dcmap:0", {}),
        ('a=dcmap:99999 label="espctl"', {}),
    ],
)
async def test_only_plain_channels_with_a_stream_of_their_own_are_agreed_on(
    lines: str, read: dict[str, int]
) -> None:
    async with PeerLink.offering(Certificate.generate(), channels=()) as link:
        assert read_description(f"{link.offer_sdp}{lines}\r\n").channels == read


async def test_a_description_with_channels_without_end_is_read_to_a_limit() -> None:
    labels = [f"{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(500)]
    lines = "".join(f'a=dcmap:{n} label="{label}"\r\n' for n, label in enumerate(labels))
    async with PeerLink.offering(Certificate.generate(), channels=()) as link:
        read = read_description(link.offer_sdp + lines)
    assert len(read.channels) == MAX_REMOTE_CHANNELS
