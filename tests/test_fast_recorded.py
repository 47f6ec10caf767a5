"""
What other implementations really sent, again to the fast path: as it was, out of order, repeated,
cut and damaged. `recordings/record.py` made the recordings.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aegis_links.fast import packets
from aegis_links.fast.receiving import MAX_HELD_FRAGMENTS
from aegis_links.fast.sctp import FastSctp
from aiortc import RTCDataChannel, RTCDataChannelParameters, rtcsctptransport
from aiortc.rtcsctptransport import RTCSctpCapabilities, parse_packet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wired_associations import PORT, Wire

pytestmark = pytest.mark.timeout(120)
PEERS = ("aiortc", "libdatachannel")


class Recording:
    def __init__(self, peer: str) -> None:
        text = (Path(__file__).parent / "recordings" / f"{peer}.json.gz").read_bytes()
        words: dict[str, Any] = json.loads(gzip.decompress(text))
        self.numbers: tuple[int, int] = (words["tag"], words["tsn"])
        self.channels: list[str] = words["channels"]
        self.firmware: dict[str, Any] = words["firmware"]
        self.packets = [bytes.fromhex(packet) for packet in words["packets"]]


class Replay:
    """Our side of a recorded session, with the same numbers as then."""

    def __init__(self, association: FastSctp, wire: Wire) -> None:
        self.association = association
        self.wire = wire
        self.received: dict[str, list[bytes]] = {}
        self.opened: set[str] = set()

    def open(self, label: str) -> None:
        channel = RTCDataChannel(self.association, RTCDataChannelParameters(label=label))
        received = self.received[label] = []
        channel.on("message", received.append)
        channel.on("open", lambda: self.opened.add(label))

    async def take(self, batch: list[bytes]) -> None:
        await self.association.take_packets(batch)
        await asyncio.sleep(0)

    def firmware(self) -> dict[str, Any]:
        data = b"".join(self.received["firmware"])
        return {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@asynccontextmanager
async def replay(recording: Recording) -> AsyncIterator[Replay]:
    numbers = iter(recording.numbers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rtcsctptransport, "random32", lambda: next(numbers))
        wire = Wire("server")  # which numbers channels by its role, as then
        association = FastSctp(wire)
    made = Replay(association, wire)
    for label in recording.channels:
        made.open(label)
    await association.start(RTCSctpCapabilities(maxMessageSize=65536), PORT)
    try:
        yield made
    finally:
        await association.stop()


def bounded(association: FastSctp) -> None:
    assert association._held <= MAX_HELD_FRAGMENTS + 1
    assert association._advertised_rwnd <= 1024 * 1024


@pytest.mark.parametrize("peer", PEERS)
async def test_a_recorded_session_is_understood_as_it_was(peer: str) -> None:
    recording = Recording(peer)
    async with replay(recording) as made:
        for packet in recording.packets:
            await made.take([packet])
        assert made.opened == set(recording.channels)
        assert made.firmware() == recording.firmware
        assert made.received["pty"] == [b"k"]
        assert made.association.breach is None
        for packet in made.wire.sent:
            parse_packet(packet)  # each has the right checksum and is whole
        bounded(made.association)


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("seed", range(3))
async def test_a_recorded_session_arrives_whole_in_another_order_and_in_bursts(
    peer: str, seed: int
) -> None:
    recording = Recording(peer)
    chance = random.Random(seed)  # noqa: S311
    async with replay(recording) as made:
        # The set-up is a conversation; what comes after it may overtake itself.
        await _set_up(made, recording)
        rest = [packet for packet in recording.packets if packet[12] in (0, 3)]
        rest += chance.sample(rest, len(rest) // 4)
        rest = [rest[n] for n in sorted(range(len(rest)), key=lambda n: n + chance.uniform(0, 40))]
        while rest:
            size = chance.randrange(1, 17)
            await made.take(rest[:size])
            del rest[:size]
        assert made.firmware() == recording.firmware
        assert made.received["pty"] == [b"k"]
        bounded(made.association)


Damage = Callable[[bytearray], None]


@pytest.mark.parametrize("peer", PEERS)
@given(data=st.data())
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_a_damaged_session_lets_nothing_escape_and_nothing_grow(
    peer: str, data: st.DataObject
) -> None:
    recording = RECORDINGS[peer]
    damaged = data.draw(st.sets(st.integers(0, len(recording.packets) - 1), max_size=40))
    kinds = st.sampled_from(["flip", "cut", "drop", "twice", "foreign"])
    chance = random.Random(data.draw(st.integers(0, 2**16)))  # noqa: S311
    sent: list[bytes] = []
    for number, packet in enumerate(recording.packets):
        sent += _damaged(packet, data.draw(kinds), chance) if number in damaged else [packet]

    async def run() -> None:
        async with replay(recording) as made:
            for packet in sent:
                await made.take([packet])
            bounded(made.association)
            got = b"".join(made.received["firmware"])
            assert len(got) <= recording.firmware["size_bytes"] + 65536 * len(damaged)

    asyncio.run(run())


def _damaged(packet: bytes, kind: str, chance: random.Random) -> list[bytes]:
    changed = bytearray(packet)
    match kind:
        case "flip":
            for _ in range(chance.randrange(1, 6)):
                changed[chance.randrange(12, len(changed))] ^= 1 << chance.randrange(8)
        case "cut":
            del changed[chance.randrange(12, len(changed)) :]
        case "drop":
            return []
        case "twice":
            return [packet, packet]
        case "foreign":
            changed[4:8] = chance.randbytes(4)
    changed[8:12] = bytes(4)
    return [packets.summed(bytes(changed))]


async def _set_up(made: Replay, recording: Recording) -> None:
    for packet in recording.packets:
        if packet[12] not in (0, 3):
            await made.take([packet])


RECORDINGS = {peer: Recording(peer) for peer in PEERS}
