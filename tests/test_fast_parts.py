"""The parts of the fast path that decide without a wire: ranges, windows, bursts, the guard."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import aioice.ice
import pytest
from aegis_links.fast import gap_blocks, guard
from aegis_links.fast.congestion import INITIAL_BYTES, LEAST_BYTES, MOST_BYTES, CongestionWindow
from aegis_links.fast.datagrams import (
    MAX_BATCH,
    MAX_BATCH_BYTES,
    MAX_BURST,
    DatagramPort,
    records_end,
)
from aegis_links.fast.dtls import bursts
from aiortc.rtcsctptransport import USERDATA_MAX_LENGTH
from linked_peers import linked_peers
from structlog.testing import capture_logs


async def test_what_came_while_others_had_their_turn_goes_along_up_to_the_size_of_a_batch() -> None:
    connection = aioice.ice.Connection(ice_controlling=True)
    port = DatagramPort(connection)
    batch = [b"first"]
    port.add_more(batch)
    assert batch == [b"first"]
    for _ in range(2 * MAX_BATCH):
        connection.data_received(b"more", 1)
    port.add_more(batch)
    assert len(batch) == MAX_BATCH and connection._queue.qsize() == MAX_BATCH + 1
    large = [bytes(MAX_BATCH_BYTES - 5)]
    port.add_more(large)
    assert len(large) == 3, "the one that fills it is the last"
    await connection.close()
    while connection._queue.qsize() > 1:
        connection._queue.get_nowait()
    last = [b"first"]
    port.add_more(last)
    assert last == [b"first"] and connection._queue.get_nowait() is None, "the end is not taken"


@pytest.mark.parametrize("seed", range(20))
def test_ranges_are_what_a_set_of_numbers_is(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    blocks: list[gap_blocks.Block] = []
    known: list[gap_blocks.Block] = []
    numbers: set[int] = set()
    earlier: set[int] = set()
    for turn in range(300):
        number = chance.randrange(2, 120)
        assert gap_blocks.insert(blocks, number) is (number not in numbers)
        numbers.add(number)
        spelled = [n for first, last in blocks for n in range(first, last + 1)]
        assert spelled == sorted(numbers)
        assert all(a[1] + 1 < b[0] for a, b in pairwise(blocks))
        anew = [n for span in gap_blocks.beyond(blocks, known) for n in span]
        assert anew == sorted(numbers - earlier)
        missing = {n for span in gap_blocks.holes(blocks, 1) for n in span}
        assert missing == set(range(1, max(numbers))) - numbers
        if turn % 7 == 0:
            known, earlier = list(blocks), set(numbers)


def test_a_window_doubles_each_round_then_grows_by_one_packet_and_halves_for_a_loss() -> None:
    window = CongestionWindow()
    assert window.size_bytes == INITIAL_BYTES == 4404
    window.acknowledged(window.size_bytes)
    assert window.size_bytes == 2 * INITIAL_BYTES
    window.size_bytes = 100_000
    window.lost()
    assert window.size_bytes == window.threshold_bytes == 50_000
    window.acknowledged(1)
    grown = window.size_bytes
    acked = 0
    while window.size_bytes == grown:
        window.acknowledged(5_000)
        acked += 5_000
    assert window.size_bytes == grown + USERDATA_MAX_LENGTH
    assert acked == pytest.approx(grown, abs=5_001)
    window.timed_out()
    assert window.size_bytes == USERDATA_MAX_LENGTH and window.threshold_bytes >= LEAST_BYTES
    for _ in range(100_000):
        window.acknowledged(100_000)
    assert window.size_bytes <= MOST_BYTES


@pytest.mark.parametrize("seed", range(5))
def test_bursts_keep_the_order_and_only_their_last_is_shorter(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    packets = [bytes(chance.choice([1188, 1188, 1188, 200, 28])) for _ in range(200)]
    groups = bursts(packets)
    assert [packet for group in groups for packet in group] == packets
    for group in groups:
        assert len(group) <= MAX_BURST
        sizes = [len(packet) for packet in group]
        assert len(set(sizes[:-1])) <= 1 and sizes[-1] <= sizes[0]


def test_joined_records_are_told_apart_by_their_lengths() -> None:
    record = bytes([23, 254, 253]) + bytes(8) + (5).to_bytes(2, "big") + b"abcde"
    joined = record * 3
    assert records_end(joined, 0, 1) == len(record)
    assert records_end(joined, 0, 8) == len(joined)
    assert records_end(joined, len(record), 8) == len(joined)
    assert records_end(joined[:-1], 0, 8) == len(joined) - 1
    assert records_end(b"\x00\x01" + record, 0, 8) == 0
    assert records_end(record + b"\x01" * 30, 0, 8) == len(record)


def test_the_installed_aiortc_is_the_one_that_the_fast_path_knows() -> None:
    assert guard.refusal() is None


def test_another_version_is_refused_with_its_number() -> None:
    reason = guard.refusal(installed=lambda name: "1.17.0")
    assert reason == "aiortc is 1.17.0; the fast path knows 1.16.0"


def test_a_changed_source_is_refused(tmp_path: Path) -> None:
    assert guard.refusal(sources={aioice.ice: "0" * 64}) == "aioice.ice is not as released"
    lost = ModuleType("lost")
    lost.__file__ = str(tmp_path / "lost.py")
    reason = guard.refusal(sources={lost: "0" * 64})
    assert reason is not None and "can't be read" in reason


async def test_a_refusal_is_one_warning_and_links_that_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(guard.VERSIONS, "aiortc", "0.0.0")
    guard.is_fast.cache_clear()
    try:
        with capture_logs() as logs:
            for _ in range(2):
                async with linked_peers() as peers:
                    for name in peers.client._channels:
                        await peers.client.channel(name).send(b"slow but sure")
                        assert await peers.agent.channel(name).receive() == b"slow but sure"
                    assert not hasattr(peers.client._transport.association, "take_packets")
        warnings = [entry for entry in logs if entry["event"] == "fast_path.refused"]
        assert len(warnings) == 1 and "0.0.0" in warnings[0]["reason"]
    finally:
        guard.is_fast.cache_clear()
