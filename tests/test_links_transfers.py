"""Files over a link: whole and verified or not there, cut and resumed, many at once."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aegis_links.file_receiver import partial_path
from aegis_links.transfers import MAX_MEMORY_BYTES, MAX_TRANSFERS, TransferPort, partial_size
from aegis_protocol.channels import PAYLOAD_BYTES, SEND_QUEUE_CAP_BYTES, ChannelName
from aegis_protocol.failures.link import (
    DigestMismatch,
    FrameError,
    LinkClosed,
    LinkError,
    PeerGone,
    SentFileChanged,
    SizeMismatch,
    TransferAborted,
    TransferNotWritten,
    TransferRefused,
    TransferStalled,
)
from aegis_protocol.frames import (
    TRANSFER_WINDOW_BYTES,
    TransferData,
    TransferEnd,
    decode_transfer_frame,
)
from linked_peers import Peers, linked_peers
from waiting import until

pytestmark = pytest.mark.timeout(30)

ESPCTL, FIRMWARE = ChannelName.ESPCTL, ChannelName.FIRMWARE


def noise(size_bytes: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size_bytes)  # noqa: S311 - reproducible, no secret


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@asynccontextmanager
async def ports() -> AsyncIterator[tuple[TransferPort, TransferPort, Peers]]:
    """The agent's port, the client's, and the link below."""
    async with (
        linked_peers({ESPCTL, FIRMWARE}) as peers,
        TransferPort.over(peers.agent.channel(FIRMWARE)) as agent,
        TransferPort.over(peers.client.channel(FIRMWARE)) as client,
    ):
        yield agent, client, peers


@pytest.mark.parametrize("size_bytes", [0, 1, PAYLOAD_BYTES, 3_000_001])
async def test_a_file_arrives_whole_under_its_name(tmp: Path, size_bytes: int) -> None:
    data = noise(size_bytes)
    source, target = tmp / "source.bin", tmp / "target.bin"
    source.write_bytes(data)
    progress: list[int] = []
    async with ports() as (agent, client, peers):
        sent, _ = await asyncio.gather(
            agent.send_file(7, source),
            client.receive_to(
                7, target, size_bytes=size_bytes, sha256=sha256(data), on_progress=progress.append
            ),
        )
        assert peers.agent.buffered_high_water <= SEND_QUEUE_CAP_BYTES
    assert (sent.size_bytes, sent.sha256) == (size_bytes, sha256(data))
    assert target.read_bytes() == data
    assert progress == sorted(progress) and (not size_bytes or progress[-1] == size_bytes)
    assert not partial_path(target).exists()


async def test_bytes_travel_without_a_file_up_to_a_limit() -> None:
    data = noise(100_000)
    async with ports() as (agent, client, _):
        sending = asyncio.create_task(client.send_file(1, data))
        assert await agent.receive_bytes(1, size_bytes=len(data), sha256=sha256(data)) == data
        await sending
        with pytest.raises(SizeMismatch):
            await agent.receive_bytes(2, size_bytes=MAX_MEMORY_BYTES + 1, sha256=sha256(b""))


async def test_many_files_share_a_channel_fairly_and_in_both_directions(tmp: Path) -> None:
    files = {number: noise(1_000_000, number) for number in range(1, 7)}
    finished: list[int] = []
    held = dict.fromkeys(range(1, 6), 0)
    spread: list[int] = []

    async def receive(port: TransferPort, number: int, data: bytes) -> None:
        def note(offset_bytes: int) -> None:
            held[number] = offset_bytes
            if not finished:
                spread.append(max(held.values()) - min(held.values()))

        await port.receive_to(
            number,
            tmp / str(number),
            size_bytes=len(data),
            sha256=sha256(data),
            on_progress=note if number < 6 else lambda offset_bytes: None,
        )
        finished.append(number)
        assert (tmp / str(number)).read_bytes() == data

    async with ports() as (agent, client, _), asyncio.TaskGroup() as tasks:
        for number, data in files.items():
            sender, receiver = (agent, client) if number < 6 else (client, agent)
            tasks.create_task(receive(receiver, number, data))
            tasks.create_task(sender.send_file(number, data))
    assert sorted(finished) == list(files)
    # One after the other, the first would be whole before the last had begun.
    assert max(spread) < 500_000


async def test_a_receiver_that_comes_late_still_gets_all(tmp: Path) -> None:
    data = noise(TRANSFER_WINDOW_BYTES + 500_000)
    async with ports() as (agent, client, _):
        sending = asyncio.create_task(agent.send_file(3, data))
        await until(lambda: 3 in client._missed)
        await client.receive_to(3, tmp / "late", size_bytes=len(data), sha256=sha256(data))
        await sending
    assert (tmp / "late").read_bytes() == data


async def test_a_transfer_that_was_cut_goes_on_where_it_stopped(tmp: Path) -> None:
    data = noise(4_000_000)
    source, target = tmp / "source.bin", tmp / "target.bin"
    source.write_bytes(data)
    half = asyncio.Event()

    def note(offset_bytes: int) -> None:
        if offset_bytes > 1_000_000:
            half.set()

    async with ports() as (agent, client, peers):
        sending = asyncio.create_task(agent.send_file(1, source))
        receiving = asyncio.create_task(
            client.receive_to(
                1, target, size_bytes=len(data), sha256=sha256(data), on_progress=note
            )
        )
        await half.wait()
        await peers.client.close(PeerGone("The network is gone."))
        with pytest.raises(PeerGone):
            await receiving
        with pytest.raises(LinkError):
            await sending
    held = partial_size(target)
    assert 1_000_000 < held < len(data)
    assert not target.exists()

    first: list[int] = []
    async with ports() as (agent, client, _):
        await asyncio.gather(
            agent.send_file(1, source, from_offset=held),
            client.receive_to(
                1, target, size_bytes=len(data), sha256=sha256(data), on_progress=first.append
            ),
        )
    assert first[0] > held
    assert target.read_bytes() == data


async def test_a_receiver_that_has_a_part_is_not_sent_it_again_whatever_was_said(
    tmp: Path,
) -> None:
    data = noise(600_000)
    target = tmp / "target.bin"
    partial_path(target).write_bytes(data[:500_001])
    async with ports() as (agent, client, _):
        await asyncio.gather(
            agent.send_file(1, data),  # from the start, as if nobody had told it
            client.receive_to(1, target, size_bytes=len(data), sha256=sha256(data)),
        )
    assert target.read_bytes() == data


@pytest.mark.parametrize("stale_bytes", [200_000, 900_000])
async def test_the_rest_of_another_file_does_not_spoil_this_one(
    tmp: Path, stale_bytes: int
) -> None:
    data, target = noise(600_000), tmp / "target.bin"
    partial_path(target).write_bytes(noise(stale_bytes, 2))
    async with ports() as (agent, client, _):
        await asyncio.gather(
            agent.send_file(1, data),
            client.receive_to(1, target, size_bytes=len(data), sha256=sha256(data)),
        )
    assert target.read_bytes() == data


async def test_another_digest_than_the_announced_one_leaves_nothing(tmp: Path) -> None:
    target = tmp / "target.bin"
    async with ports() as (agent, client, _):
        sending = asyncio.create_task(agent.send_file(1, noise(300_000)))
        with pytest.raises(DigestMismatch):
            await client.receive_to(1, target, size_bytes=300_000, sha256=sha256(b"other"))
        with pytest.raises(DigestMismatch):
            await sending
    assert list(tmp.iterdir()) == []


@pytest.mark.parametrize("announced", [299_999, 300_001])
async def test_another_size_than_the_announced_one_is_refused_on_both_sides(
    tmp: Path, announced: int
) -> None:
    data = noise(300_000)
    async with ports() as (agent, client, _):
        sending = asyncio.create_task(agent.send_file(1, data))
        with pytest.raises(SizeMismatch):
            await client.receive_to(1, tmp / "target", size_bytes=announced, sha256=sha256(data))
        with pytest.raises(SizeMismatch):
            await sending
    assert not (tmp / "target").exists()


@pytest.mark.parametrize("change", ["grows", "shrinks"])
async def test_a_file_that_changes_while_it_is_sent_is_named(tmp: Path, change: str) -> None:
    data, source = noise(3_000_000), tmp / "source.bin"
    source.write_bytes(data)

    def spoil(offset_bytes: int) -> None:
        if change == "grows":
            with source.open("ab") as file:
                file.write(b"more")
        else:
            os.truncate(source, 1000)

    async with ports() as (agent, client, _):
        receiving = asyncio.create_task(
            client.receive_to(
                1, tmp / "target", size_bytes=len(data), sha256=sha256(data), on_progress=spoil
            )
        )
        with pytest.raises(SentFileChanged):
            await agent.send_file(1, source)
        with pytest.raises(SentFileChanged):
            await receiving
    assert not (tmp / "target").exists()


async def test_an_offset_beyond_the_end_is_refused() -> None:
    async with ports() as (agent, _, _):
        with pytest.raises(SizeMismatch):
            await agent.send_file(1, b"short", from_offset=6)


async def test_a_canceled_transfer_is_told_to_the_peer(tmp: Path) -> None:
    data = noise(8_000_000)
    begun = asyncio.Event()
    async with ports() as (agent, client, _):
        receiving = asyncio.create_task(
            client.receive_to(
                1,
                tmp / "target",
                size_bytes=len(data),
                sha256=sha256(data),
                on_progress=lambda offset_bytes: begun.set(),
            )
        )
        sending = asyncio.create_task(agent.send_file(1, data))
        await begun.wait()
        receiving.cancel()
        with pytest.raises(TransferAborted):
            await sending
        again = noise(50_000)
        await asyncio.gather(
            agent.send_file(2, again),
            client.receive_to(2, tmp / "again", size_bytes=50_000, sha256=sha256(again)),
        )
    assert partial_size(tmp / "target") > 0


async def test_a_folder_that_can_not_be_written_is_an_error_with_a_remedy(tmp: Path) -> None:
    async with ports() as (agent, client, _):
        sending = asyncio.create_task(agent.send_file(1, b"data"))
        with pytest.raises(TransferNotWritten):
            await client.receive_to(1, tmp / "no" / "folder", size_bytes=4, sha256=sha256(b"data"))
        with pytest.raises(TransferNotWritten):
            await sending


async def test_a_symlink_in_the_place_of_the_part_is_not_followed(tmp: Path) -> None:
    victim = tmp / "victim"
    victim.write_bytes(b"precious")
    partial_path(tmp / "target").symlink_to(victim)
    async with ports() as (_, client, _):
        with pytest.raises(TransferNotWritten):
            await client.receive_to(1, tmp / "target", size_bytes=4, sha256=sha256(b"data"))
    assert victim.read_bytes() == b"precious"


async def test_silence_is_a_stall_and_the_channel_lives(tmp: Path) -> None:
    async with ports() as (agent, client, _):
        with pytest.raises(TransferStalled):
            await client.receive_to(
                1, tmp / "target", size_bytes=4, sha256=sha256(b"data"), stall_s=0.1
            )
        with pytest.raises(TransferStalled):
            await agent.send_file(2, b"data", stall_s=0.1)
        await asyncio.gather(
            agent.send_file(3, b"data"),
            client.receive_to(3, tmp / "target", size_bytes=4, sha256=sha256(b"data")),
        )


async def test_too_many_transfers_and_a_number_in_use_are_refused() -> None:
    async with ports() as (agent, _, _):
        waiting = [
            asyncio.create_task(agent.send_file(number, b"x")) for number in range(MAX_TRANSFERS)
        ]
        await until(lambda: len(agent._boxes) == MAX_TRANSFERS)
        with pytest.raises(TransferRefused):
            await agent.send_file(100, b"x")
        waiting.pop().cancel()
        await until(lambda: len(agent._boxes) < MAX_TRANSFERS)
        with pytest.raises(TransferRefused):
            await agent.send_file(0, b"x")
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)


async def test_a_sender_waits_for_a_receiver_that_does_not_acknowledge() -> None:
    async with (
        linked_peers({ESPCTL, FIRMWARE}) as peers,
        TransferPort.over(peers.agent.channel(FIRMWARE)) as agent,
    ):
        sending = asyncio.create_task(agent.send_file(1, bytes(TRANSFER_WINDOW_BYTES * 2)))
        raw = peers.client.channel(FIRMWARE)
        received = 0
        while received < TRANSFER_WINDOW_BYTES:
            frame = decode_transfer_frame(await raw.receive())
            assert isinstance(frame, TransferData)
            received += len(frame.data)
        more = asyncio.create_task(raw.receive())
        await asyncio.wait({more}, timeout=0.3)
        assert not more.done()
        more.cancel()
        sending.cancel()
        await asyncio.wait({more, sending})


async def test_a_sender_that_ignores_the_window_is_stopped(tmp: Path) -> None:
    async with (
        linked_peers({ESPCTL, FIRMWARE}) as peers,
        TransferPort.over(peers.client.channel(FIRMWARE)) as client,
    ):
        raw = peers.agent.channel(FIRMWARE)
        size_bytes = 64 * 1024 * 1024
        gate = asyncio.Event()

        async def receive() -> None:
            with client._mailbox(1):
                await gate.wait()

        receiving = asyncio.create_task(receive())
        await until(lambda: 1 in client._boxes)
        for offset in range(0, TRANSFER_WINDOW_BYTES * 2, PAYLOAD_BYTES):
            await raw.send(TransferData(1, offset, bytes(PAYLOAD_BYTES)).encode())
        await raw.send(TransferEnd(1, size_bytes, bytes(32)).encode())
        held = client._boxes[1]
        await until(lambda: held._failure)
        assert sum(len(f.data) for f in held._frames if isinstance(f, TransferData)) < (
            TRANSFER_WINDOW_BYTES * 1.5
        )
        gate.set()
        await receiving


@pytest.mark.parametrize("message", ["text", b"", b"\x00\x00\x00\x01\x63" + bytes(8)])
async def test_bytes_that_are_no_frame_end_the_channel_and_not_the_link(
    tmp: Path, message: bytes | str
) -> None:
    async with (
        linked_peers({ESPCTL, FIRMWARE}) as peers,
        TransferPort.over(peers.client.channel(FIRMWARE)) as client,
    ):
        receiving = asyncio.create_task(
            client.receive_to(1, tmp / "t", size_bytes=4, sha256=sha256(b"data"))
        )
        await peers.agent.channel(FIRMWARE).send(message)
        with pytest.raises(FrameError):
            await receiving
        with pytest.raises(FrameError):
            await client.send_file(2, b"x")
        await peers.agent.channel(ESPCTL).send("alive")
        assert await peers.client.channel(ESPCTL).receive() == "alive"


async def test_a_clean_close_in_the_middle_is_no_success(tmp: Path) -> None:
    async with ports() as (agent, client, peers):
        receiving = asyncio.create_task(
            client.receive_to(1, tmp / "t", size_bytes=4, sha256=sha256(b"data"))
        )
        await until(lambda: client._boxes)
        await peers.agent.close()
        with pytest.raises(LinkClosed):
            await receiving
        with pytest.raises(LinkClosed):
            await agent.send_file(2, b"x")
