"""Many associations in one process: whose turn it is, and how much each may have on its way."""

from __future__ import annotations

import asyncio

import pytest
from aegis_links.fast.congestion import SHORT_RTT_S, useful_bytes
from aegis_links.fast.sharing import sharers
from aegis_links.fast.turns import IN_A_ROW, Seat, of_this_loop
from aegis_protocol.channels import PAYLOAD_BYTES, ChannelName
from linked_peers import linked_peers
from waiting import until
from wired_associations import End, wired

pytestmark = pytest.mark.timeout(30)

STREAMS, PIECES = 6, 64


async def test_one_burst_goes_in_each_pass_of_the_loop_in_the_order_of_asking() -> None:
    turns = of_this_loop()
    assert of_this_loop() is turns
    done: list[str] = []
    seen: list[int] = []
    for name in "abc":
        turns.seat().do(lambda name=name: done.append(name))  # type: ignore[misc]
    assert done == ["a"], "without others, at once"
    waiting = asyncio.create_task(turns.seat().mine())
    for _ in range(4):
        await asyncio.sleep(0)
        seen.append(len(done))
    assert done == ["a", "b", "c"] and seen[0] == 2
    await waiting
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    turns.seat().do(lambda: done.append("d"))
    assert done[-1] == "d"


async def test_who_had_the_last_turn_goes_on_a_few_times_and_then_the_next_in_line() -> None:
    done: list[str] = []

    def ask(name: str, seat: Seat, times: int) -> None:
        def work() -> None:
            done.append(name)
            if times > 1:
                ask(name, seat, times - 1)

        seat.do(work)

    turns = of_this_loop()
    turns.take()
    for name in "abc":
        ask(name, turns.seat(), 2 * IN_A_ROW)
    await until(lambda: len(done) == 6 * IN_A_ROW)
    assert "".join(done) == 2 * "".join(name * IN_A_ROW for name in "abc")


async def test_who_types_goes_before_the_line_once_in_each_round() -> None:
    done: list[str] = []
    turns = of_this_loop()
    turns.take()
    for name in "ab":
        turns.seat().do(lambda name=name: done.append(name))  # type: ignore[misc]
    typing = turns.seat()
    for name in ("first", "second"):
        typing.do(lambda name=name: done.append(name))  # type: ignore[misc]
        typing.hurry()
    await until(lambda: len(done) == 4)
    assert done == ["first", "a", "b", "second"]
    turns.take()
    turns.seat().do(lambda: done.append("c"))
    typing.do(lambda: done.append("third"))
    typing.left = 0
    typing.hurry()
    await until(lambda: len(done) == 6)
    assert done[4:] == ["third", "c"]


async def test_a_key_behind_a_stream_of_its_own_takes_both_before_the_streams_of_others() -> None:
    done: list[str] = []

    def note(packet: bytes) -> bool:
        done.append("sent")
        return True

    async with wired() as (near, far):
        channel = near.open_channel()
        await until(lambda: near.association.delivered)
        near.wire.passes = note
        turns = of_this_loop()
        turns.take()
        for name in "abc":
            turns.seat().do(lambda name=name: done.append(name))  # type: ignore[misc]
        near.association._data_channel_send(channel, bytes(PAYLOAD_BYTES))
        near.association._data_channel_send(channel, b"k")
        await until(lambda: far.received == [bytes(PAYLOAD_BYTES), b"k"])
    assert done[:2] == ["a", "sent"] and {"b", "c"} < set(done)


async def test_a_turn_passes_by_who_no_longer_wants_it() -> None:
    turns = of_this_loop()
    done: list[str] = []
    for _ in range(3):
        turns.seat().do(lambda: None)
    gone = asyncio.create_task(turns.seat().mine())
    await asyncio.sleep(0)
    gone.cancel()
    turns.seat().do(lambda: done.append("next"))
    await until(lambda: done == ["next"])
    assert gone.cancelled()


def test_short_paths_share_what_may_be_on_its_way_and_long_ones_have_their_own() -> None:
    alone, crowded = useful_bytes(0.001, 1), useful_bytes(0.001, 32)
    assert alone > 200_000 and alone / 32 < crowded < alone / 3
    assert useful_bytes(SHORT_RTT_S, 32) == useful_bytes(SHORT_RTT_S, 1) > 1_000_000


async def test_who_has_something_on_its_way_is_counted_until_it_arrived_or_ended() -> None:
    def send(near: End) -> None:
        channel = near.open_channel()
        near.association._data_channel_send(channel, bytes(1000))

    async with wired() as (near, _), wired() as (other, _):
        assert sharers() == 1
        near.wire.passes = other.wire.passes = lambda packet: False
        send(near)
        send(other)
        await until(lambda: sharers() == 2)
        near.wire.passes = lambda packet: True
        await until(lambda: near.association.delivered and sharers() == 1, within_s=10)
        send(near)
        await until(lambda: near.association.delivered)
        await other.association.stop()
        other.association._flush_now()
        send(near)
        await until(lambda: near.association.delivered)
    assert sharers() == 1


async def test_many_streams_in_one_process_all_go_on_and_keystrokes_pass_them() -> None:
    finished = 0

    async def stream() -> None:
        nonlocal finished
        async with linked_peers() as peers, asyncio.TaskGroup() as group:
            firmware = peers.agent.channel(ChannelName.FIRMWARE)
            for _ in range(PIECES):
                group.create_task(firmware.send(bytes(PAYLOAD_BYTES)))
            for _ in range(PIECES):
                await peers.client.channel(ChannelName.FIRMWARE).receive()
            finished += 1

    passed = 0
    async with linked_peers() as typing, asyncio.TaskGroup() as group:
        for _ in range(STREAMS):
            group.create_task(stream())
        while finished < STREAMS:
            await typing.client.channel(ChannelName.PTY).send(b"k")
            assert await typing.agent.channel(ChannelName.PTY).receive() == b"k"
            passed += not finished
    assert passed > STREAMS
