"""Paths that bring packets out of order: what is late is not lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest
from aegis_links.fast.recovering import MISSED_TIMES, RTO_INITIAL_S
from aegis_links.fast.reordering import CALM_RECOVERIES, Reordering
from waiting import until
from wired_associations import End, is_data, tsn_of, wired

pytestmark = pytest.mark.timeout(30)

RTT_S = 0.1


def test_each_needless_recovery_grants_a_quarter_of_a_round_trip_more_up_to_a_whole() -> None:
    late = Reordering()
    for turn in range(1, 7):
        late.recovery_began()
        for number in (turn, turn + 100):
            late.sent_again(number)
        assert not late.doubled([turn], RTT_S), "the other may have been lost"
        assert late.doubled([turn + 100], RTT_S)
        assert late.window_s == pytest.approx(min(turn, 4) * RTT_S / 4)


def test_copies_that_the_network_makes_tell_nothing() -> None:
    late = Reordering()
    late.recovery_began()
    late.sent_again(7)
    assert not late.doubled([1, 2, 3], RTT_S)
    assert late.window_s == 0


def test_lateness_is_forgotten_after_losses_that_were_true() -> None:
    late = Reordering()
    late.seen(RTT_S)
    assert late.window_s == RTT_S / 4
    for _ in range(CALM_RECOVERIES):
        late.recovery_began()
        assert late.window_s
    late.recovery_began()
    assert late.window_s == 0


def slowly(end: End, delay_of: Callable[[bytes], float]) -> None:
    """Let each packet of `end` take its time; the far end is given it then."""
    loop = asyncio.get_running_loop()

    def passes(packet: bytes) -> bool:
        assert end.wire.far is not None
        loop.call_later(delay_of(packet), end.wire.far.arriving.put_nowait, packet)
        return False

    end.wire.passes = passes


async def test_a_path_that_brings_every_fifth_packet_late_makes_few_resends() -> None:
    sent: Counter[int] = Counter()

    def delay_s(packet: bytes) -> float:
        if not is_data(packet):
            return 0.04
        sent[tsn_of(packet)] += 1
        return 0.055 if tsn_of(packet) % 5 == 0 and sent[tsn_of(packet)] == 1 else 0.04

    async with wired() as (near, far):
        channel = near.open_channel()
        await until(lambda: channel.readyState == "open")
        slowly(near, delay_s)
        slowly(far, lambda packet: 0.04)
        near.association._shortest_rtt_s = RTO_INITIAL_S  # what the wire had without its delay
        for n in range(150):
            channel.send(bytes([n]) * 16_000)
        await until(lambda: near.association.delivered, within_s=25)
        assert [message[0] for message in far.received] == list(range(150))
        resent = sum(count - 1 for count in sent.values())
        assert len(sent) > 1_900 and resent < len(sent) / 20
        assert near.association._reordering.window_s > 0


async def test_what_was_sent_again_in_vain_gives_the_window_back() -> None:
    async with wired() as (near, far):
        channel = near.open_channel()
        await until(lambda: channel.readyState == "open")
        near.association._window.size_bytes = 100_000
        kept: list[bytes] = []

        def keep_one(packet: bytes) -> bool:
            if is_data(packet) and not kept:
                kept.append(packet)
                return False
            return True

        near.wire.passes = keep_one
        for n in range(10):
            channel.send(bytes([n]) * 1_000)
        await until(lambda: near.association.delivered, within_s=0.9)
        assert near.association._window.size_bytes < 100_000
        far.wire.arriving.put_nowait(kept[0])
        await until(lambda: near.association._window.size_bytes >= 100_000, within_s=5)
        assert near.association._reordering.window_s > 0
        assert len(far.received) == 10


async def test_a_lost_packet_is_sent_again_without_a_timeout_though_others_come_late() -> None:
    async with wired() as (near, far):
        channel = near.open_channel()
        await until(lambda: channel.readyState == "open")
        slowly(near, lambda packet: 0.02)
        slowly(far, lambda packet: 0.02)
        channel.send(b"measure the path")
        await until(lambda: near.association.delivered)
        near.association._shortest_rtt_s = 0.04
        near.association._reordering.seen(0.04)
        near.association._window.size_bytes = 100_000
        lost: list[bytes] = []
        through = near.wire.passes

        def lose_one(packet: bytes) -> bool:
            if is_data(packet) and not lost:
                lost.append(packet)
                return False
            return through(packet)

        near.wire.passes = lose_one
        rto_s = near.association._rto
        for n in range(MISSED_TIMES + 1):
            channel.send(bytes([n]) * 1_000)
        await until(lambda: near.association.delivered, within_s=10)
        assert near.association._rto <= rto_s, "the timer doubles it"
        assert near.association._window.size_bytes > 10_000
