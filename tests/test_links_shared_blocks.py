"""One image for many clients: in memory once."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import random
from contextlib import AsyncExitStack
from io import FileIO
from pathlib import Path

import pytest
from aegis_links.shared_blocks import BLOCK_BYTES, block_of, held_bytes, identity_of
from aegis_links.transfers import TransferPort
from aegis_protocol.channels import ChannelName
from linked_peers import linked_peers

pytestmark = pytest.mark.timeout(30)

CLIENTS = 6
IMAGE = random.Random(1).randbytes(BLOCK_BYTES + 100_000)  # noqa: S311


@pytest.fixture(autouse=True)
def nothing_is_held() -> None:
    """What an earlier test's error still points at, in a cycle, is no block that somebody holds."""
    gc.collect()
    assert held_bytes() == 0


async def test_who_reads_the_same_place_of_a_file_is_given_the_same_bytes(tmp: Path) -> None:
    path = tmp / "image.bin"
    path.write_bytes(IMAGE)
    identity = identity_of(path.stat())
    with FileIO(path) as one, FileIO(path) as other:
        blocks = await asyncio.gather(*(block_of(one, identity, n) for n in (0, 1, 70_000)))
        assert all(block is blocks[0] for block in blocks)
        assert await block_of(other, identity, 5) is blocks[0]
        last = await block_of(other, identity, BLOCK_BYTES)
        assert blocks[0].data + last.data == IMAGE and last.start == BLOCK_BYTES
        assert held_bytes() == len(IMAGE)
        del blocks, last
        assert held_bytes() == 0


async def test_a_file_that_was_written_anew_is_another_one(tmp: Path) -> None:
    path = tmp / "image.bin"
    path.write_bytes(b"old" * 100)
    with FileIO(path) as file:
        old = await block_of(file, identity_of(path.stat()), 0)
    path.write_bytes(b"newer" * 100)
    with FileIO(path) as file:
        new = await block_of(file, identity_of(path.stat()), 0)
    assert old.data == b"old" * 100 and new.data == b"newer" * 100


async def test_an_image_that_goes_to_many_clients_is_in_memory_once(tmp: Path) -> None:
    path, digest = tmp / "image.bin", hashlib.sha256(IMAGE).hexdigest()
    path.write_bytes(IMAGE)
    most_bytes = under_way = 0

    async def send(port: TransferPort) -> None:
        nonlocal most_bytes, under_way
        under_way += 1

        def look(offset_bytes: int) -> None:
            nonlocal most_bytes
            if under_way == CLIENTS:
                most_bytes = max(most_bytes, held_bytes())

        await port.send_file(1, path, sha256=digest, on_progress=look)

    async with AsyncExitStack() as stack:
        ports = []
        for _ in range(CLIENTS):
            peers = await stack.enter_async_context(
                linked_peers({ChannelName.ESPCTL, ChannelName.FIRMWARE})
            )
            both = [link.channel(ChannelName.FIRMWARE) for link in (peers.agent, peers.client)]
            ports.append([await stack.enter_async_context(TransferPort.over(end)) for end in both])
        async with asyncio.TaskGroup() as group:
            for number, (agent, client) in enumerate(ports):
                group.create_task(send(agent))
                target = tmp / str(number)
                group.create_task(
                    client.receive_to(1, target, size_bytes=len(IMAGE), sha256=digest)
                )
    assert 0 < most_bytes <= len(IMAGE)
    assert all((tmp / str(number)).read_bytes() == IMAGE for number in range(CLIENTS))
