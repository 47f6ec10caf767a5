"""Links opened and closed again and again leave nothing behind."""

from __future__ import annotations

import asyncio
import gc

import psutil
import pytest
from aegis_protocol.channels import ChannelName
from linked_peers import Peers, linked_peers

WARM_UP = 50
CYCLES = 400
MOST_BYTES_EACH = 12 * 1024
"""A link that is kept costs about 200 KB; what an allocator keeps is far below this."""


async def spoken(peers: Peers) -> None:
    firmware = ChannelName.FIRMWARE
    await peers.agent.channel(firmware).send(bytes(16_384))
    assert await peers.client.channel(firmware).receive() == bytes(16_384)


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_links_leave_neither_memory_nor_descriptors_nor_tasks() -> None:
    process = psutil.Process()
    before_bytes = before_fds = 0
    for cycle in range(WARM_UP + CYCLES):
        if cycle == WARM_UP:
            gc.collect()
            before_bytes, before_fds = process.memory_info().rss, process.num_fds()
        async with linked_peers() as peers:
            await spoken(peers)
            if cycle % 3 == 1:
                await peers.agent.close()
            elif cycle % 3 == 2:
                await peers.client.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}
    gc.collect()
    assert process.num_fds() == before_fds
    assert process.memory_info().rss - before_bytes < CYCLES * MOST_BYTES_EACH
