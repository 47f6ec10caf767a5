"""Links opened and closed again and again leave nothing behind."""

from __future__ import annotations

import asyncio
import gc

import psutil
import pytest
from aegis_links import transport
from aegis_protocol.channels import ChannelName
from linked_peers import Peers, linked_peers
from waiting import until

WARM_UP = 50
CYCLES = 400
MOST_BYTES = CYCLES * 100 * 1024
"""A link that is kept costs about 200 KB; what an allocator keeps does not grow with them."""
MOST_OBJECTS = 2 * CYCLES
"""A link that is kept is hundreds of objects."""


async def spoken(peers: Peers) -> None:
    firmware = ChannelName.FIRMWARE
    await peers.agent.channel(firmware).send(bytes(16_384))
    assert await peers.client.channel(firmware).receive() == bytes(16_384)


async def test_sockets_are_given_back_though_ice_does_not_stop_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport, "STOP_LIMIT_S", 0.05)
    never = asyncio.Event()
    before_fds = psutil.Process().num_fds()
    async with linked_peers() as peers:
        stops = [link._transport._ice.stop for link in (peers.client, peers.agent)]
        for link in (peers.client, peers.agent):
            monkeypatch.setattr(link._transport._ice, "stop", never.wait)
    await until(lambda: psutil.Process().num_fds() == before_fds)
    for stop in stops:
        await stop()


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_links_leave_neither_memory_nor_descriptors_nor_tasks() -> None:
    process = psutil.Process()
    before_bytes = before_fds = before_objects = 0
    for cycle in range(WARM_UP + CYCLES):
        if cycle == WARM_UP:
            gc.collect()
            before_bytes, before_fds = process.memory_info().rss, process.num_fds()
            before_objects = len(gc.get_objects())
        async with linked_peers() as peers:
            await spoken(peers)
            if cycle % 3 == 1:
                await peers.agent.close()
            elif cycle % 3 == 2:
                await peers.client.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}
    gc.collect()
    assert process.num_fds() == before_fds
    assert len(gc.get_objects()) - before_objects < MOST_OBJECTS
    assert process.memory_info().rss - before_bytes < MOST_BYTES
