"""Losses at the end, where nothing that arrives later shows them: one probe tells, soon."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aegis_links.fast.outgoing import Outgoing
from aegis_links.fast.recovering import RTO_INITIAL_S
from aegis_links.fast.tail_loss import LEAST_ACK_DELAY_S, MOST_ACK_DELAY_S, TailProbe
from aiortc import RTCDataChannel
from waiting import until
from wired_associations import End, is_data, is_sack, tsn_of, wired

pytestmark = pytest.mark.timeout(30)

WINDOW_BYTES = 100_000


@asynccontextmanager
async def measured() -> AsyncIterator[tuple[End, End, RTCDataChannel]]:
    """Two ends that know their round trip, with a channel and a window of some size."""
    async with wired() as (near, far):
        channel = near.open_channel()
        await until(lambda: channel.readyState == "open" and near.association.delivered)
        near.association._window.size_bytes = WINDOW_BYTES
        far.association._eager = 0  # as later in a stream: a lone packet is not told at once
        near.wire.sent.clear()
        yield near, far, channel


def lose(end: End, *turns: int) -> list[int]:
    """Let the DATA packets of these turns be lost, counted from now; return the TSNs of all."""
    seen: list[int] = []

    def passes(packet: bytes) -> bool:
        if not is_data(packet):
            return True
        seen.append(tsn_of(packet))
        return len(seen) not in turns

    end.wire.passes = passes
    return seen


def sendings(end: End) -> Counter[int]:
    return Counter(tsn_of(packet) for packet in end.wire.sent if is_data(packet))


@pytest.mark.parametrize(
    ("count", "lost"),
    [(1, [1]), (2, [1]), (3, [3]), (10, [8, 9, 10]), (6, [1, 2, 3, 4, 5, 6])],
    ids=["the only one", "one of two", "the last", "the last three", "a whole flight"],
)
async def test_what_is_lost_at_the_end_arrives_long_before_the_timer(
    count: int, lost: list[int]
) -> None:
    async with measured() as (near, far, channel):
        rto_s = near.association._rto
        lose(near, *lost)
        began = near.association._own_loop.time()
        for n in range(count):
            channel.send(bytes([n]) * 1_000)
        await until(lambda: len(far.received) == count)
        assert near.association._own_loop.time() - began < RTO_INITIAL_S * 0.8
        await until(lambda: near.association.delivered)
        assert [message[0] for message in far.received] == list(range(count))
        assert sorted(sendings(near).values()) == [1] * (count - len(lost)) + [2] * len(lost)
        assert near.association._rto <= rto_s, "the timer doubles it"
        # A loss is a loss, whoever found it: half the window and not all of it.
        assert near.association._window.size_bytes == WINDOW_BYTES // 2


async def test_a_probe_is_a_packet_that_waits_where_one_does() -> None:
    async with measured() as (near, far, channel):
        near.association._window.size_bytes = 3_000
        tsns = lose(near, 1, 2, 3)
        for n in range(5):
            channel.send(bytes([n]) * 1_000)
        await until(lambda: near.association.delivered)
        assert tsns[3] == tsns[2] + 1, "the fourth went before any was sent again"
        assert set(sendings(near).values()) == {1, 2} and len(far.received) == 5


async def test_an_acknowledgment_that_is_lost_costs_one_packet_and_no_window() -> None:
    async with measured() as (near, far, channel):
        sacks: list[bytes] = []

        def passes(packet: bytes) -> bool:
            if not is_sack(packet):
                return True
            sacks.append(packet)
            return len(sacks) > 1

        far.wire.passes = passes
        channel.send(b"heard, and not told")
        await until(lambda: near.association.delivered, within_s=0.8)
        assert len(sacks) == 2 and list(sendings(near).values()) == [2]
        assert far.received == [b"heard, and not told"]
        assert near.association._window.size_bytes >= WINDOW_BYTES
        assert near.association._tail.ack_delay_s == 2 * LEAST_ACK_DELAY_S


async def test_neither_an_idle_link_nor_one_in_full_flow_is_probed() -> None:
    async with measured() as (near, far, channel):
        for n in range(200):
            channel.send(bytes([n]) * 8_000)
        await until(lambda: near.association.delivered, within_s=20)
        counted = len(near.wire.sent)
        await until(lambda: near.association._tail._handle is None)
        assert len(near.wire.sent) == counted, "the timer has fired once more, for nothing"
        assert set(sendings(near).values()) == {1} and len(far.received) == 200


async def test_a_peer_that_takes_its_time_to_acknowledge_is_given_it() -> None:
    async with measured() as (near, far, channel):
        loop = asyncio.get_running_loop()

        def late(packet: bytes) -> bool:
            assert near.wire is far.wire.far
            loop.call_later(0.15, near.wire.arriving.put_nowait, packet)
            return False

        far.wire.passes = late
        for n in range(8):
            # As if each were the first in a while: the smoothed round trip learns slowly.
            near.association._srtt, near.association._rttvar = 0.001, 0.0005
            channel.send(bytes([n]))
            await until(lambda: near.association.delivered)
        newest = max(sendings(near))
        assert sendings(near)[newest] == 1, "that it takes long is known by now"
        assert max(sendings(near).values()) == 2, "and was not at first"
        assert near.association._window.size_bytes >= WINDOW_BYTES


async def test_a_probe_that_is_lost_too_leaves_the_rest_to_the_timer() -> None:
    async with measured() as (near, far, channel):
        tsns = lose(near, 1, 2)
        channel.send(b"lost twice")
        await until(lambda: far.received == [b"lost twice"])
        assert len(tsns) == 3
        assert near.association._window.threshold_bytes == WINDOW_BYTES // 2
        assert near.association._window.size_bytes < WINDOW_BYTES // 2, "that was a timeout"


async def test_a_peer_without_room_is_not_probed() -> None:
    async with measured() as (near, far, channel):
        far.association._advertised_rwnd = 0
        channel.send(b"tell me")
        await until(lambda: near.association._peer_window == 0 and near.association.delivered)
        far.wire.passes = lambda packet: False
        near.wire.sent.clear()
        began = near.association._own_loop.time()
        channel.send(b"no room")
        await until(lambda: max(sendings(near).values(), default=0) > 1)
        assert near.association._own_loop.time() - began >= RTO_INITIAL_S


async def test_a_process_that_stood_still_reads_its_answers_before_it_probes() -> None:
    async with measured() as (near, _, channel):
        channel.send(b"and then this process sleeps")
        await asyncio.sleep(0)  # it leaves
        await asyncio.sleep(0)
        assert near.association._flight_size
        time.sleep(0.3)  # longer than probe and acknowledgment wait
        await until(lambda: near.association.delivered)
        assert list(sendings(near).values()) == [1]


async def test_patience_has_a_most_and_a_least() -> None:
    tail = TailProbe(asyncio.get_running_loop(), lambda: None)
    chunk = Outgoing(3, 1, 1, 53, b"x")
    chunk.number, chunk.sendings = 7, 2
    for _ in range(10):
        tail.asked(chunk)
        tail.doubled([6, 7])
    assert tail.ack_delay_s == MOST_ACK_DELAY_S
    for _ in range(10):
        tail.asked(chunk)
        assert tail.repaired(0.01) == 7
        assert tail.repaired(0.01) is None, "each is told once"
    tail.asked(chunk)
    assert tail.ack_delay_s == LEAST_ACK_DELAY_S


async def test_an_answer_sooner_than_any_round_trip_was_to_the_first_sending() -> None:
    loop = asyncio.get_running_loop()
    tail = TailProbe(loop, lambda: None)
    chunk = Outgoing(3, 1, 1, 53, b"x")
    chunk.number, chunk.sendings, chunk.sent_at = 7, 2, loop.time()
    tail.asked(chunk)
    assert tail.repaired(5.0) is None
    tail.doubled([7])
    assert tail.ack_delay_s == 2 * LEAST_ACK_DELAY_S, "it was only late"
