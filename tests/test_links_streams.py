"""Terminals from a spool: every byte or an explicit gap, whoever comes late or reads slowly."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aegis_links.spool import MIN_CAPACITY_BYTES, End, Gap, Piece, Spool
from aegis_links.streams import StreamPort
from aegis_protocol.channels import ChannelName
from aegis_protocol.failures.link import FrameError, LinkClosed, PeerGone
from aegis_protocol.frames import (
    STREAM_WINDOW_BYTES,
    StreamEnd,
    StreamGap,
    StreamOutput,
    StreamResume,
    decode_stream_frame,
)
from linked_peers import Peers, linked_peers
from waiting import until

pytestmark = pytest.mark.timeout(20)

ESPCTL, PTY = ChannelName.ESPCTL, ChannelName.PTY
STREAM = 4


def noise(size_bytes: int) -> bytes:
    return random.Random(size_bytes).randbytes(size_bytes)  # noqa: S311 - reproducible


def read_all(spool: Spool, offset: int = 0) -> tuple[bytes, list[Gap]]:
    data, gaps = b"", []
    while True:
        match spool.read(offset, 5000):
            case Piece(data=piece):
                data += piece
                offset += len(piece)
            case Gap() as gap:
                gaps.append(gap)
                offset = gap.stop
            case _:
                return data, gaps


def test_a_spool_gives_back_what_it_was_given(tmp: Path) -> None:
    data = noise(50_000)
    with Spool(tmp / "spool", capacity_bytes=MIN_CAPACITY_BYTES) as spool:
        for start in range(0, len(data), 777):
            spool.append(data[start : start + 777])
        assert read_all(spool) == (data, [])
        assert spool.read(len(data)) is None
        spool.finish()
        assert spool.read(len(data)) == End(len(data))
        with pytest.raises(ValueError, match="finished"):
            spool.append(b"more")
        with pytest.raises(ValueError, match="offset"):
            spool.read(len(data) + 1)


def test_what_does_not_fit_goes_oldest_first_and_leaves_an_explicit_gap(tmp: Path) -> None:
    data = noise(400_000)
    with Spool(tmp / "spool", capacity_bytes=MIN_CAPACITY_BYTES) as spool:
        spool.append(data[:10])
        spool.append(data[10:])
        kept, gaps = read_all(spool)
        assert gaps == [Gap(0, spool.start_offset)]
        assert kept == data[spool.start_offset :]
        assert MIN_CAPACITY_BYTES * 0.9 < len(kept) <= MIN_CAPACITY_BYTES
        on_disk = sum(path.stat().st_size for path in (tmp / "spool").iterdir())
        assert on_disk <= MIN_CAPACITY_BYTES
        spool.copy_to(tmp / "log")
        assert (tmp / "log").read_bytes() == kept


def test_a_spool_is_found_again_as_it_was_left(tmp: Path) -> None:
    data = noise(200_000)
    with Spool(tmp / "spool", capacity_bytes=MIN_CAPACITY_BYTES) as spool:
        spool.append(data)
        left = (spool.start_offset, spool.end_offset)
    again = Spool(tmp / "spool", capacity_bytes=MIN_CAPACITY_BYTES)
    assert (again.start_offset, again.end_offset, again.finished) == (*left, True)
    assert read_all(again, left[0])[0] == data[left[0] :]
    again.close()
    assert read_all(again, left[0])[0] == data[left[0] :]


async def test_readers_wait_for_what_is_to_come_each_at_its_own_pace(tmp: Path) -> None:
    with Spool(tmp / "spool") as spool:

        async def follow() -> bytes:
            data = b""
            while True:
                match await spool.next(len(data)):
                    case Piece(data=piece):
                        data += piece
                    case _:
                        return data

        readers = [asyncio.create_task(follow()) for _ in range(3)]
        for number in range(100):
            spool.append(b"%d\r\n" % number)
            await asyncio.sleep(0)
        late = asyncio.create_task(follow())
        spool.finish()
        told = await asyncio.gather(*readers, late)
        assert set(told) == {b"".join(b"%d\r\n" % number for number in range(100))}


@asynccontextmanager
async def stream_ports() -> AsyncIterator[tuple[StreamPort, StreamPort, Peers]]:
    """The agent's port, the client's, and the link below."""
    async with (
        linked_peers({ESPCTL, PTY}) as peers,
        StreamPort.over(peers.agent.channel(PTY)) as agent,
        StreamPort.over(peers.client.channel(PTY)) as client,
    ):
        yield agent, client, peers


async def test_output_input_and_size_travel_and_the_end_is_the_end(tmp: Path) -> None:
    typed = bytearray()
    sizes: list[tuple[int, int]] = []
    async with stream_ports() as (agent, client, _):
        with Spool(tmp / "spool") as spool:
            serving = asyncio.create_task(
                agent.serve(
                    STREAM,
                    spool,
                    on_input=typed.extend,
                    on_resize=lambda cols, rows: sizes.append((cols, rows)),
                )
            )
            async with client.view(STREAM) as viewer:
                events = aiter(viewer)
                spool.append(b"$ ")
                assert await anext(events) == StreamOutput(STREAM, 0, b"$ ")
                await viewer.send_input(b"x" * 40_000)
                await viewer.resize(132, 43)
                await until(lambda: len(typed) == 40_000 and sizes == [(132, 43)])
                spool.append(b"done")
                spool.finish()
                assert [event async for event in events] == [StreamOutput(STREAM, 2, b"done")]
                assert viewer.offset == 6
            async with client.view(STREAM, from_offset=2) as again:
                assert [event async for event in again] == [StreamOutput(STREAM, 2, b"done")]
            assert not serving.done()
            serving.cancel()
            await asyncio.wait({serving})


async def test_a_viewer_that_comes_back_on_another_link_misses_nothing(tmp: Path) -> None:
    data = noise(3_000_000)
    seen = b""
    with Spool(tmp / "spool") as spool:
        spool.append(data[:2_000_000])
        async with stream_ports() as (agent, client, peers):
            serving = asyncio.create_task(agent.serve(STREAM, spool))
            async with client.view(STREAM) as viewer:
                with pytest.raises(PeerGone):
                    async for event in viewer:
                        assert isinstance(event, StreamOutput)
                        seen += event.data
                        if len(seen) > 500_000:
                            await peers.client.close(PeerGone("The network is gone."))
                offset = viewer.offset
            await asyncio.wait({serving})
        assert offset == len(seen) < 2_000_000
        spool.append(data[2_000_000:])
        spool.finish()
        async with stream_ports() as (agent, client, _):
            serving = asyncio.create_task(agent.serve(STREAM, spool))
            async with client.view(STREAM, from_offset=offset) as viewer:
                async for event in viewer:
                    assert isinstance(event, StreamOutput)
                    seen += event.data
            serving.cancel()
            await asyncio.wait({serving})
    assert seen == data


async def test_a_stream_may_be_viewed_again_from_earlier_while_it_flows(tmp: Path) -> None:
    data = noise(4_000_000)
    async with stream_ports() as (agent, client, _):
        with Spool(tmp / "spool") as spool:
            spool.append(data)
            spool.finish()
            serving = asyncio.create_task(agent.serve(STREAM, spool))
            for _ in range(3):
                async with client.view(STREAM, from_offset=2_000_000) as left:
                    async for _ in left:
                        break
                # What was on its way to that one comes now, from beyond.
                seen = b""
                async with client.view(STREAM, from_offset=1_000_000) as again:
                    async for event in again:
                        assert isinstance(event, StreamOutput)
                        seen += event.data
                assert seen == data[1_000_000:]
            serving.cancel()
            await asyncio.wait({serving})


async def test_an_end_on_its_way_to_an_earlier_viewer_ends_no_later_one() -> None:
    async with (
        linked_peers({ESPCTL, PTY}) as peers,
        StreamPort.over(peers.client.channel(PTY)) as client,
    ):
        async with client.view(STREAM, from_offset=0) as viewer:
            agent = peers.agent.channel(PTY)
            for frame in (
                StreamGap(STREAM, 3, 5),
                StreamOutput(STREAM, 5, b"f"),
                StreamEnd(STREAM, 6),
                StreamOutput(STREAM, 0, b"abcdef"),
                StreamEnd(STREAM, 6),
            ):
                await agent.send(frame.encode())
            assert [event async for event in viewer] == [StreamOutput(STREAM, 0, b"abcdef")]


async def test_a_slow_viewer_never_slows_the_writer_and_sees_its_gap(tmp: Path) -> None:
    async with stream_ports() as (agent, client, _):
        with Spool(tmp / "spool", capacity_bytes=MIN_CAPACITY_BYTES) as spool:
            serving = asyncio.create_task(agent.serve(STREAM, spool))
            async with client.view(STREAM) as viewer:
                for _ in range(40):
                    spool.append(noise(100_000))
                    await asyncio.sleep(0)
                spool.finish()
                position, gaps = 0, 0
                async for event in viewer:
                    if isinstance(event, StreamGap):
                        assert event.start == position
                        position, gaps = event.stop, gaps + 1
                    else:
                        assert event.offset == position
                        position += len(event.data)
                assert position == spool.end_offset == 4_000_000
                assert gaps >= 1
            serving.cancel()
            await asyncio.wait({serving})


async def test_a_viewer_that_does_not_acknowledge_is_waited_for(tmp: Path) -> None:
    async with (
        linked_peers({ESPCTL, PTY}) as peers,
        StreamPort.over(peers.agent.channel(PTY)) as agent,
    ):
        raw = peers.client.channel(PTY)
        with Spool(tmp / "spool") as spool:
            spool.append(bytes(STREAM_WINDOW_BYTES * 2))
            serving = asyncio.create_task(agent.serve(STREAM, spool))
            silent = asyncio.create_task(raw.receive())
            await asyncio.wait({silent}, timeout=0.2)
            assert not silent.done(), "nothing flows before the first resume"
            await raw.send(StreamResume(STREAM, 0).encode())
            received = 0
            message = await silent
            while True:
                frame = decode_stream_frame(message)
                assert isinstance(frame, StreamOutput)
                received += len(frame.data)
                if received >= STREAM_WINDOW_BYTES:
                    break
                message = await raw.receive()
            more = asyncio.create_task(raw.receive())
            await asyncio.wait({more}, timeout=0.2)
            assert not more.done()
            for task in (more, serving):
                task.cancel()
            await asyncio.wait({more, serving})


async def test_a_resume_that_comes_before_the_stream_is_served_is_kept(tmp: Path) -> None:
    async with stream_ports() as (agent, client, _):
        with Spool(tmp / "spool") as spool:
            spool.append(b"early")
            spool.finish()
            async with client.view(STREAM) as viewer:
                await until(lambda: agent._early)
                serving = asyncio.create_task(agent.serve(STREAM, spool))
                assert [event async for event in viewer] == [StreamOutput(STREAM, 0, b"early")]
            serving.cancel()
            await asyncio.wait({serving})


async def test_a_channel_closed_before_the_end_of_a_stream_is_no_end(tmp: Path) -> None:
    async with stream_ports() as (agent, client, peers):
        with Spool(tmp / "spool") as spool:
            serving = asyncio.create_task(agent.serve(STREAM, spool))
            async with client.view(STREAM) as viewer:
                spool.append(b"half a line")
                events = aiter(viewer)
                await anext(events)
                await peers.agent.close()
                with pytest.raises(LinkClosed):
                    await anext(events)
            await serving


@pytest.mark.parametrize(
    "message",
    [
        b"",
        "text",
        StreamOutput(STREAM, 10, b"beyond").encode(),
        StreamGap(STREAM, 2, 3).encode(),
        StreamEnd(STREAM, 2).encode(),
        StreamResume(STREAM, 0).encode(),
    ],
)
async def test_a_stream_that_breaks_the_rules_ends_the_channel_with_a_frame_error(
    message: bytes | str,
) -> None:
    async with (
        linked_peers({ESPCTL, PTY}) as peers,
        StreamPort.over(peers.client.channel(PTY)) as client,
    ):
        async with client.view(STREAM) as viewer:
            await peers.agent.channel(PTY).send(StreamOutput(STREAM, 0, b"a").encode())
            await peers.agent.channel(PTY).send(message)
            with pytest.raises(FrameError):
                [event async for event in viewer]
        await peers.agent.channel(ESPCTL).send("alive")
        assert await peers.client.channel(ESPCTL).receive() == "alive"


async def test_a_listener_with_a_defect_does_not_end_the_stream(tmp: Path) -> None:
    def break_down(data: bytes) -> None:
        raise OSError("the pty is gone")

    async with stream_ports() as (agent, client, _):
        with Spool(tmp / "spool") as spool:
            serving = asyncio.create_task(agent.serve(STREAM, spool, on_input=break_down))
            async with client.view(STREAM) as viewer:
                await viewer.send_input(b"x")
                spool.append(b"y")
                spool.finish()
                assert len([event async for event in viewer]) == 1
            serving.cancel()
            await asyncio.wait({serving})


async def test_bytes_that_were_seen_already_are_not_seen_twice() -> None:
    async with (
        linked_peers({ESPCTL, PTY}) as peers,
        StreamPort.over(peers.client.channel(PTY)) as client,
    ):
        async with client.view(STREAM, from_offset=3) as viewer:
            agent = peers.agent.channel(PTY)
            for frame in (
                StreamOutput(STREAM, 0, b"abc"),
                StreamOutput(STREAM, 1, b"bcde"),
                StreamGap(STREAM, 2, 8),
                StreamEnd(STREAM, 8),
            ):
                await agent.send(frame.encode())
            assert [event async for event in viewer] == [
                StreamOutput(STREAM, 3, b"de"),
                StreamGap(STREAM, 5, 8),
            ]
