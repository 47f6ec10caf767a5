"""The fast association packet by packet: two of them, and a wire that the test holds."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest
from aegis_links.fast import packets
from aegis_links.fast.congestion import INITIAL_BYTES
from aegis_links.fast.receiving import (
    EAGER_AT_START,
    EAGER_ON_SHORT_PATH,
    MAX_HELD_FRAGMENTS,
    SACK_EVERY_PACKETS,
    Breach,
)
from aegis_links.fast.recovering import RTO_INITIAL_S
from aegis_links.fast.sending import MAX_IN_FLIGHT
from aiortc import RTCDataChannel
from aiortc.rtcsctptransport import InitChunk, RTCSctpTransport, serialize_packet
from waiting import until
from wired_associations import PORT, End, is_data, is_sack, tsn_of, wired

pytestmark = pytest.mark.timeout(30)


async def opened(end: End, *, ordered: bool = True) -> RTCDataChannel:
    channel = end.open_channel(ordered=ordered)
    await until(lambda: channel.readyState == "open")
    return channel


def noise(size_bytes: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size_bytes)  # noqa: S311


@pytest.mark.parametrize(
    ("lost", "copied", "turned"), [(0.0, 0.0, 0.0), (0.01, 0.0, 0.0), (0.05, 0.05, 0.1)]
)
async def test_messages_arrive_whole_and_in_order_whatever_the_wire_does(
    lost: float, copied: float, turned: float
) -> None:
    chance = random.Random(7)  # noqa: S311
    messages = [noise(chance.randrange(1, 60_000), n) for n in range(40)] + [b"", b"\0"]
    async with wired() as (near, far):
        kept: list[bytes] = []

        def passes(packet: bytes) -> bool:
            if chance.random() < copied:
                far.wire.arriving.put_nowait(packet)
            if chance.random() < turned:
                kept.append(packet)
                return False
            while kept and chance.random() < 0.5:
                far.wire.arriving.put_nowait(kept.pop())
            return chance.random() >= lost

        near.wire.passes = passes
        far.wire.passes = lambda packet: chance.random() >= lost
        channel = await opened(near)
        for message in messages:
            channel.send(message)
        await until(lambda: len(far.received) == len(messages), within_s=25)
        assert far.received == messages
        await until(lambda: near.association.delivered, within_s=10)
        assert near.association._flight_size == 0
        assert far.association._advertised_rwnd == 1024 * 1024
        assert far.association._held == 0


async def test_messages_without_order_arrive_too() -> None:
    async with wired() as (near, far):
        channel = await opened(near, ordered=False)
        chance = random.Random(3)  # noqa: S311
        near.wire.passes = lambda packet: chance.random() > 0.05
        messages = [noise(5000, n) for n in range(30)]
        for message in messages:
            channel.send(message)
        await until(lambda: len(far.received) == len(messages), within_s=25)
        assert Counter(far.received) == Counter(messages)


async def test_a_missing_packet_holds_up_its_own_channel_only() -> None:
    async with wired() as (near, far):
        first, second = await opened(near), await opened(near)
        held: list[bytes] = []

        def passes(packet: bytes) -> bool:
            if is_data(packet) and not held:
                held.append(packet)
                return False
            return not held or tsn_of(packet) != tsn_of(held[0])

        near.wire.passes = passes
        first.send(b"lost")
        second.send(b"behind it")
        await until(lambda: far.received == [b"behind it"])
        near.wire.passes = lambda packet: True
        await until(lambda: far.received == [b"behind it", b"lost"], within_s=10)


async def test_a_lost_packet_is_sent_again_by_three_reports_and_without_a_timer() -> None:
    async with wired() as (near, far):
        channel = await opened(near)
        before = len(near.wire.sent)
        dropped: list[int] = []

        def passes(packet: bytes) -> bool:
            if is_data(packet) and not dropped:
                dropped.append(tsn_of(packet))
                return False
            return True

        near.wire.passes = passes
        for n in range(8):
            channel.send(noise(1000, n))
        began = near.association._own_loop.time()
        await until(lambda: len(far.received) == 8)
        assert near.association._own_loop.time() - began < RTO_INITIAL_S / 2
        sendings = Counter(tsn_of(p) for p in near.wire.sent[before:] if is_data(p))
        assert sendings.pop(dropped[0]) == 2
        assert set(sendings.values()) == {1}


async def test_a_packet_that_is_lost_again_is_found_by_what_left_after_it() -> None:
    async with wired() as (near, far):
        channel = await opened(near)
        lost: Counter[int] = Counter()
        victim = (tsn_of(next(p for p in reversed(near.wire.sent) if is_data(p))) + 1) & (2**32 - 1)

        def passes(packet: bytes) -> bool:
            if is_data(packet) and tsn_of(packet) == victim and lost[victim] < 2:
                lost[victim] += 1
                return False
            return True

        near.wire.passes = passes
        for n in range(60):
            channel.send(noise(1160, n))
        began = near.association._own_loop.time()
        await until(lambda: len(far.received) == 60)
        assert lost[victim] == 2
        assert near.association._own_loop.time() - began < RTO_INITIAL_S / 2


async def test_the_first_flight_is_as_large_as_the_standard_says() -> None:
    async with wired() as (near, far):
        channel = await opened(near)
        far.wire.passes = lambda packet: False
        sent = len(near.wire.sent)
        channel.send(noise(60_000))
        await until(lambda: len(near.wire.sent) > sent)
        first = [p for p in near.wire.sent[sent:] if is_data(p)]
        assert INITIAL_BYTES <= sum(len(p) - 28 for p in first) <= INITIAL_BYTES + 2 * 1160


async def test_no_more_flies_than_the_peer_has_room_for_and_one_packet_asks_again() -> None:
    async with wired() as (near, far):
        channel = await opened(near)
        near.association._window.size_bytes = 500_000
        far.association._advertised_rwnd = 3_000
        await told(near, far, channel)
        sent = len(near.wire.sent)
        far.wire.passes = lambda packet: not is_sack(packet)
        channel.send(noise(60_000))
        await until(lambda: len(near.wire.sent) > sent)
        assert sum(len(p) - 28 for p in near.wire.sent[sent:] if is_data(p)) <= 3_000

        # Nothing flies and there is no room: one packet at a time finds out.
        flights: list[int] = []

        def note(packet: bytes) -> bool:
            if near.association._peer_window == 0:
                flights.append(len(near.association._sent))
            return True

        far.association._advertised_rwnd = 0
        far.wire.passes, near.wire.passes = lambda packet: True, note
        await until(lambda: len(far.received) == 2, within_s=10)
        assert set(flights) == {1} and len(flights) > 40


async def told(near: End, far: End, channel: RTCDataChannel) -> None:
    """Let the near end learn what room the far end has now."""
    expected = far.association._advertised_rwnd
    channel.send(b"?")
    await until(lambda: near.association._peer_window == expected)


async def test_silence_is_waited_for_longer_each_time_and_ends_the_association() -> None:
    async with wired() as (near, far):
        channel = await opened(near)
        near.association.retransmission_limit = 2
        near.association._rto = 0.05
        far.wire.passes = lambda packet: False
        sent = len(near.wire.sent)
        times: list[float] = []

        def swallow(packet: bytes) -> bool:
            times.append(near.association._own_loop.time())
            return False

        near.wire.passes = swallow
        channel.send(b"anybody there?")
        await until(lambda: near.association.breach is Breach.SILENCE, within_s=5)
        assert near.association.state == "closed" and channel.readyState == "closed"
        assert len(near.wire.sent) - sent == 4
        gaps = [after - before for before, after in pairwise(times)]
        assert gaps[2] > 1.5 * gaps[1], "the first is that of the probe"
        assert near.association._t3_handle is None


async def test_an_acknowledgment_that_comes_after_the_end_begins_no_timer() -> None:
    """The peer's ABORT has overtaken it; nobody would look at the timer any more."""
    async with wired() as (near, far):
        channel = await opened(near)
        await until(lambda: near.association.delivered)
        near.wire.passes = lambda packet: not (is_data(packet) and packet.endswith(b"lost"))
        held: list[bytes] = []

        def hold(packet: bytes) -> bool:
            held.append(packet)
            return False

        far.wire.passes = hold
        channel.send(b"here")
        channel.send(b"lost")
        await until(lambda: held)
        near.association._set_state(RTCSctpTransport.State.CLOSED)
        await near.association.take_packets(held)
        assert near.association._t3_handle is None and near.association._tail._handle is None


async def test_acknowledgments_are_few_in_a_stream_and_one_for_each_packet_at_the_start() -> None:
    async with wired() as (near, far):
        channel = await opened(near)
        before = sum(is_sack(p) for p in far.wire.sent)
        for n in range(4):
            channel.send(noise(1000, n))
        await until(lambda: near.association.delivered)
        assert sum(is_sack(p) for p in far.wire.sent) - before == 4

        far.association._eager = 0
        before = sum(is_sack(p) for p in far.wire.sent)
        data = sum(is_data(p) for p in near.wire.sent)
        near.association._window.size_bytes = 200_000
        for n in range(20):
            channel.send(noise(16_000, n))
        await until(lambda: near.association.delivered)
        count = sum(is_data(p) for p in near.wire.sent) - data
        assert sum(is_sack(p) for p in far.wire.sent) - before <= count / SACK_EVERY_PACKETS * 2 + 2


async def test_a_short_path_needs_few_packets_acknowledged_one_by_one() -> None:
    async with wired(agreed=True) as (near, far):
        assert near.association._eager == far.association._eager == EAGER_AT_START
        await until(lambda: far.association._eager == EAGER_ON_SHORT_PATH)
        far.association._eager = EAGER_AT_START
        far.association._update_rto(0.2)  # as on a long path
        assert far.association._eager == EAGER_AT_START


async def test_a_lone_packet_is_acknowledged_soon() -> None:
    async with wired() as (near, far):
        channel = await opened(near)
        far.association._eager = 0
        channel.send(b"lone")
        await until(lambda: near.association.delivered, within_s=0.5)


async def test_reports_of_what_was_never_sent_change_nothing() -> None:
    async with wired() as (near, far):
        channel = await opened(near)
        wire = packets.Association(PORT, PORT, near.association._local_verification_tag)
        state = near.association
        acked = (state._first_tsn + state._acked - 1) % 2**32
        far.wire.passes = lambda packet: False
        channel.send(noise(3000))
        await until(lambda: len(state._sent) == 3)
        for tsn, gaps in [
            (acked + 100, []),
            (acked - 1, []),
            (acked, [(5, 9)]),
            (acked, [(3, 2)]),
            (acked, [(2, 2), (2, 3)]),
            (acked, [(0, 1)]),
            (acked, [(1, 65535)]),
        ]:
            await state.take_packets([wire.sack(tsn % 2**32, 10**6, gaps, [])])
        assert len(state._sent) == 3 and state._flight_size == 3000
        assert not any(chunk.here for chunk in state._sent.values())
        await state.take_packets([wire.sack(acked, 10**6, [(2, 3)], [])])
        assert [chunk.here for chunk in state._sent.values()] == [False, True, True]


async def test_a_late_copy_of_the_first_packet_does_not_set_anything_back() -> None:
    async with wired() as (near, far):
        channel = await opened(near)
        init = next(p for p in near.wire.sent if p[12] == InitChunk.type)
        for n in range(10):
            channel.send(noise(2000, n))
        await until(lambda: len(far.received) == 10)
        await far.association.take_packets([init])
        channel.send(b"still here")
        await until(lambda: far.received[-1] == b"still here")


async def test_small_messages_have_a_bound_on_their_number_in_flight() -> None:
    async with wired() as (near, far):
        channel = await opened(near)
        near.association._window.size_bytes = 10**9
        far.wire.passes = lambda packet: False
        for _ in range(2 * MAX_IN_FLIGHT):
            channel.send(b"x")
            near.association._room_bytes = 10**6
        await until(lambda: len(near.association._sent) >= MAX_IN_FLIGHT)
        near.association._flush_now()
        assert len(near.association._sent) == MAX_IN_FLIGHT


async def test_fragments_without_an_end_are_held_up_to_a_limit() -> None:
    async with wired() as (near, far):
        await opened(near)
        wire = packets.Association(PORT, PORT, far.association._local_verification_tag)
        tsn = far.association._last_received_tsn
        assert tsn is not None
        for n in range(1, MAX_HELD_FRAGMENTS + 10):
            await far.association.take_packets(
                [wire.data(2 if n == 1 else 0, (tsn + n) % 2**32, 77, 0, 53, b"x")]
            )
        assert far.association.breach is Breach.NONSENSE
        assert far.association._association_state is RTCSctpTransport.State.CLOSED


async def test_a_channel_that_is_closed_still_delivers_what_was_sent() -> None:
    async with wired() as (near, far):
        channel = await opened(near)
        for n in range(20):
            channel.send(noise(16_000, n))
        channel.close()
        await until(lambda: len(far.received) == 20)
        await until(lambda: channel.readyState == "closed")
        assert not far.association._data_channels


async def test_a_packet_with_a_foreign_tag_is_not_for_us() -> None:
    async with wired() as (near, far):
        channel = await opened(near)
        tsn = far.association._last_received_tsn
        assert tsn is not None
        await far.association.take_packets(
            [packets.Association(PORT, PORT, 12345).data(3, (tsn + 1) % 2**32, 0, 5, 53, b"forged")]
        )
        good = packets.Association(PORT, PORT, far.association._local_verification_tag)
        spoiled = bytearray(good.data(3, (tsn + 1) % 2**32, 0, 5, 53, b"spoiled"))
        spoiled[-1] ^= 1
        await far.association.take_packets([bytes(spoiled)])
        assert far.association._last_received_tsn == tsn
        channel.send(b"genuine")
        await until(lambda: far.received == [b"genuine"])


def test_packets_are_what_aiortc_makes_of_the_same() -> None:
    from aiortc.rtcsctptransport import DataChunk, SackChunk

    data = DataChunk(3)
    data.tsn, data.stream_id, data.stream_seq, data.protocol = 2**32 - 2, 7, 65535, 53
    sack = SackChunk()
    sack.cumulative_tsn, sack.advertised_rwnd = 99, 1000
    sack.gaps, sack.duplicates = [(2, 3), (7, 7)], [1, 2]
    wire = packets.Association(1, 2, 3)
    for size in range(1, 10):
        data.user_data = noise(size)
        ours = wire.data(3, data.tsn, 7, 65535, 53, data.user_data)
        assert ours == serialize_packet(1, 2, 3, data)
        assert packets.is_sound(ours)
    assert wire.sack(99, 1000, sack.gaps, sack.duplicates) == serialize_packet(1, 2, 3, sack)
