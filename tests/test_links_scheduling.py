"""What decides about sending and about silence, each alone and with a clock of the test's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from aegis_links.liveness import SILENCE_CEILING_S, SILENCE_LIMIT_S, TICK_S, Liveness
from aegis_links.pacing import Pacer, TokenBucket
from aegis_links.send_scheduler import SendScheduler
from aegis_protocol.channels import (
    MAX_MESSAGE_BYTES,
    PAYLOAD_BYTES,
    SEND_QUEUE_CAP_BYTES,
    ChannelName,
)
from aegis_protocol.failures.link import PeerGone

ESPCTL, SOURCE, PTY = ChannelName.ESPCTL, ChannelName.SOURCE, ChannelName.PTY
FIRMWARE, SERIAL = ChannelName.FIRMWARE, ChannelName.SERIAL


@dataclass
class Clock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Wire:
    """A send queue that the test empties; `sent` is what was handed to it, in order."""

    sent: list[tuple[ChannelName, int]] = field(default_factory=list)

    def outlet(self, name: ChannelName) -> _Outlet:
        return _Outlet(name, self)


@dataclass
class _Outlet:
    name: ChannelName
    wire: Wire
    buffered_bytes: int = 0

    def send(self, message: bytes | str) -> None:
        self.buffered_bytes += len(message)
        self.wire.sent.append((self.name, len(message)))


def scheduler_over(
    wire: Wire, *, rtt_s: float | None = None, pacer: Pacer | None = None
) -> tuple[SendScheduler, dict[ChannelName, _Outlet]]:
    scheduler = SendScheduler(
        cap_bytes=SEND_QUEUE_CAP_BYTES,
        pacer=pacer or Pacer(0, 0, Clock()),
        rtt_s=lambda: rtt_s,
    )
    outlets = {name: wire.outlet(name) for name in ChannelName}
    for name, outlet in outlets.items():
        scheduler.attach(name, outlet)
    return scheduler, outlets


async def settle(until: Callable[[], bool]) -> None:
    while not until():
        await asyncio.sleep(0)


async def test_what_waits_goes_by_tier_and_channels_of_a_tier_take_turns() -> None:
    wire = Wire()
    scheduler, outlets = scheduler_over(wire)
    outlets[FIRMWARE].buffered_bytes = SEND_QUEUE_CAP_BYTES
    order = [SOURCE, SOURCE, FIRMWARE, FIRMWARE, SERIAL, PTY, PTY, ESPCTL]
    async with asyncio.TaskGroup() as tasks:
        for name in order:
            tasks.create_task(scheduler.send(name, b"12345678", 8))
        await asyncio.sleep(0)
        assert wire.sent == []
        outlets[FIRMWARE].buffered_bytes = 0
        scheduler.pump()
    went = [name for name, _ in wire.sent]
    assert went[0] is ESPCTL
    assert set(went[1:3]) == {SERIAL, PTY} and went[3] is PTY
    assert set(went[4:6]) == set(went[6:8]) == {SOURCE, FIRMWARE}


@pytest.mark.parametrize(("rtt_s", "frames"), [(None, 2), (0.001, 2), (0.02, 4), (0.1, 6)])
async def test_bulk_keeps_the_queue_short_on_short_paths(rtt_s: float | None, frames: int) -> None:
    wire = Wire()
    scheduler, _ = scheduler_over(wire, rtt_s=rtt_s)
    payload = bytes(PAYLOAD_BYTES + 13)
    senders = [
        asyncio.ensure_future(scheduler.send(FIRMWARE, payload, len(payload))) for _ in range(20)
    ]
    await settle(lambda: senders[frames - 1].done())
    assert len(wire.sent) == frames
    typed = asyncio.ensure_future(scheduler.send(PTY, b"k", 1))
    await settle(typed.done)
    asked = asyncio.ensure_future(scheduler.send(ESPCTL, b"x" * 9000, 9000))
    await settle(asked.done)
    assert scheduler.high_water_bytes <= SEND_QUEUE_CAP_BYTES
    scheduler.end(PeerGone("gone"))
    ends = await asyncio.gather(*senders, return_exceptions=True)
    assert sum(isinstance(end, PeerGone) for end in ends) == 20 - frames


async def test_a_canceled_sender_leaves_no_message_behind() -> None:
    wire = Wire()
    scheduler, outlets = scheduler_over(wire)
    outlets[SOURCE].buffered_bytes = SEND_QUEUE_CAP_BYTES
    first, second = (
        asyncio.ensure_future(scheduler.send(PTY, text, 3)) for text in (b"one", b"and two")
    )
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})
    outlets[SOURCE].buffered_bytes = 0
    scheduler.pump()
    await second
    assert wire.sent == [(PTY, 7)]


async def test_a_limit_holds_back_files_and_terminals_but_no_request() -> None:
    clock, wire = Clock(), Wire()
    scheduler, outlets = scheduler_over(wire, pacer=Pacer(8, 0, clock))  # 1,000 bytes a second
    await scheduler.send(FIRMWARE, bytes(3000), 3000)
    held = asyncio.ensure_future(scheduler.send(PTY, b"later", 5))
    await scheduler.send(ESPCTL, "now", 3)
    assert [name for name, _ in wire.sent] == [FIRMWARE, ESPCTL]
    clock.now_s += 3
    scheduler.pump()
    await held
    assert outlets[PTY].buffered_bytes == len(b"later")


@pytest.mark.parametrize("cap_bytes", [MAX_MESSAGE_BYTES - 1, SEND_QUEUE_CAP_BYTES + 1])
async def test_a_send_queue_has_a_smallest_and_a_largest_size(cap_bytes: int) -> None:
    with pytest.raises(ValueError, match="send queue"):
        SendScheduler(cap_bytes=cap_bytes, pacer=Pacer(0, 0, Clock()), rtt_s=lambda: None)


def test_a_bucket_keeps_its_rate_and_lets_large_units_pass_on_credit() -> None:
    clock = Clock()
    bucket = TokenBucket(1000, clock)
    passed = 0
    for _ in range(200):
        clock.now_s += bucket.delay_s()
        bucket.take(500)
        passed += 500
    assert passed / (clock.now_s - 1000) == pytest.approx(1000, rel=0.02)


def test_messages_are_limited_beside_bytes() -> None:
    clock = Clock()
    pacer = Pacer(0, 4, clock)
    pacer.took(1)
    assert pacer.delay_s() == pytest.approx(0, abs=0.01)
    pacer.took(1)
    assert pacer.delay_s() == pytest.approx(0.25, abs=0.01)


def silence_until_gone(liveness: Liveness, clock: Clock, unacked_bytes: int, acked: int) -> float:
    heard_at = clock.now_s
    while True:
        clock.now_s += TICK_S
        if liveness.gone(
            clock.now_s, heard_at_s=heard_at, acked_bytes=acked, unacked_bytes=unacked_bytes
        ):
            return clock.now_s - heard_at


def test_a_silent_peer_is_gone_after_six_seconds() -> None:
    clock = Clock()
    silence_s = silence_until_gone(Liveness(clock.now_s), clock, 0, 0)
    assert SILENCE_LIMIT_S < silence_s <= SILENCE_LIMIT_S + TICK_S


@pytest.mark.parametrize(
    ("unacked_bytes", "limit_s"), [(10_000, 6.0), (100_000, 20.0), (10**9, SILENCE_CEILING_S)]
)
def test_a_slow_path_gets_twice_the_time_that_its_queue_needs(
    unacked_bytes: int, limit_s: float
) -> None:
    clock = Clock()
    liveness = Liveness(clock.now_s)
    acked = 0
    for _ in range(20):
        clock.now_s += TICK_S
        acked += 5_000
        heard = clock.now_s - 0.1
        assert not liveness.gone(
            clock.now_s, heard_at_s=heard, acked_bytes=acked, unacked_bytes=50_000
        )
    silence_s = silence_until_gone(liveness, clock, unacked_bytes, acked)
    assert limit_s < silence_s <= limit_s + 2 * TICK_S


def test_a_process_that_stood_still_does_not_blame_its_peer() -> None:
    clock = Clock()
    liveness = Liveness(clock.now_s)
    heard_at = clock.now_s
    clock.now_s += 3600
    assert not liveness.gone(clock.now_s, heard_at_s=heard_at, acked_bytes=0, unacked_bytes=0)
    assert silence_until_gone(liveness, clock, 0, 0) > SILENCE_LIMIT_S
