"""A peer that sends what no peer may: nothing escapes, nothing grows, and the end has a name."""

from __future__ import annotations

import random
import struct

import pytest
from aegis_links.fast import packets
from aegis_links.fast.receiving import MAX_HELD_FRAGMENTS
from aegis_links.fast.sending import MAX_IN_FLIGHT
from aiortc import RTCDataChannel
from aiortc.rtcsctptransport import CHUNK_TYPES, ForwardTsnChunk, serialize_packet
from waiting import until
from wired_associations import PORT, End, wired

pytestmark = pytest.mark.timeout(60)
ROUNDS = 400


def chunk_of(chance: random.Random, end: End) -> bytes:
    """A chunk that is nearly right, or not at all."""
    kind = chance.choice([*CHUNK_TYPES, 0, 0, 0, 3, 3, 3, 130, 200])
    last = end.association._last_received_tsn or 0
    if kind == 0:
        tsn = (last + chance.choice([0, 1, 1, 1, 2, 3, 50, 70_000, 2**31, -5])) % 2**32
        ids = chance.choice([0, 1, 2, 9, 65535])
        body = struct.pack(
            "!LHHL", tsn, ids, chance.randrange(4), chance.choice([50, 51, 53, 56, 57, 9])
        ) + chance.randbytes(chance.choice([0, 1, 3, 12, 40]))
    elif kind == 3:
        near = end.association
        cumulative = (near._first_tsn + near._acked - 1 + chance.choice([0, 0, 1, 5, -1])) % 2**32
        gaps = chance.randrange(5)
        body = struct.pack("!LLHH", cumulative, chance.choice([0, 1, 10**6]), gaps, 0)
        body += b"".join(
            struct.pack("!HH", chance.randrange(9), chance.randrange(9)) for _ in range(gaps)
        )
        body = body[: chance.choice([len(body), len(body), 9])]
    else:
        body = chance.randbytes(chance.choice([0, 4, 8, 16, 20, 31]))
    length = len(body) + 4 + chance.choice([0, 0, 0, 0, 1, 1000])
    return struct.pack("!BBH", kind, chance.randrange(8), length) + body + bytes(-len(body) % 4)


def packet_of(chance: random.Random, end: End) -> bytes:
    tag = end.association._local_verification_tag
    chunks = b"".join(chunk_of(chance, end) for _ in range(chance.choice([1, 1, 1, 2, 4])))
    packet = packets.summed(
        struct.pack("!HHLL", PORT, PORT, chance.choice([tag, tag, 0]), 0) + chunks
    )
    return packet if chance.random() < 0.95 else chance.randbytes(chance.randrange(40))


@pytest.mark.parametrize("seed", range(12))
async def test_nothing_that_a_peer_can_send_escapes_or_grows(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    async with wired() as (near, _):
        channel = near.open_channel()
        await until(lambda: channel.readyState == "open")
        for _ in range(ROUNDS):
            if channel.readyState == "open":
                channel.send(chance.randbytes(chance.randrange(3000)))
            await near.association.take_packets(
                [packet_of(chance, near) for _ in range(chance.randrange(1, 4))]
            )
        association = near.association
        assert association._held <= MAX_HELD_FRAGMENTS + 1
        assert len(association._sent) <= MAX_IN_FLIGHT
        assert len(association._sack_duplicates) <= 16
        assert len(association._gaps) <= 65_536 // 2
        flying = sum(len(c.user_data) for c in association._sent.values() if c.flies)
        assert association._flight_size == flying


@pytest.mark.parametrize(
    "chunk",
    [
        struct.pack("!BBHBBHLHH", 0, 3, 4 + 12, 50, 0, 0, 0, 0, 0),  # DATA without content
        struct.pack("!BBHLL", 3, 0, 12, 0, 0),  # half a SACK
        struct.pack("!BBH", 0, 3, 60_000),
        struct.pack("!BBH", 0, 3, 0),
        b"",
    ],
)
async def test_a_malformed_chunk_is_dropped_or_ends_the_association(chunk: bytes) -> None:
    async with wired() as (near, far):
        tag = far.association._local_verification_tag
        packet = packets.summed(struct.pack("!HHLL", PORT, PORT, tag, 0) + chunk)
        await far.association.take_packets([packet])
        if far.association.breach is None:
            channel: RTCDataChannel = near.open_channel()
            await until(lambda: channel.readyState == "open")
            channel.send(b"goes on")
            await until(lambda: far.received == [b"goes on"])


async def test_skipping_that_nobody_offered_is_ignored() -> None:
    async with wired() as (near, far):
        channel = near.open_channel()
        await until(lambda: channel.readyState == "open")
        before = far.association._last_received_tsn
        assert before is not None
        skip = ForwardTsnChunk()
        skip.cumulative_tsn = before + 1000
        tag = far.association._local_verification_tag
        await far.association.take_packets([serialize_packet(PORT, PORT, tag, skip)])
        assert far.association._last_received_tsn == before
        channel.send(b"nothing is skipped")
        await until(lambda: far.received == [b"nothing is skipped"])
