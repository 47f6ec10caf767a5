"""Links opened and closed again and again leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

import psutil
import pytest
import uvloop
from aegis_links import transport
from aegis_links.certificate import Certificate
from aegis_links.peer_link import PeerLink
from aegis_protocol.channels import ChannelName
from aioice import ice
from bench.udp_path import UdpPath
from linked_peers import ALL, Peers, linked_peers
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


@pytest.mark.parametrize("loop", [None, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_link_that_is_canceled_at_any_step_of_its_beginning_gives_its_sockets_back(
    monkeypatch: pytest.MonkeyPatch, loop: Callable[[], asyncio.AbstractEventLoop] | None
) -> None:
    """A machine has several addresses, and a socket for each is opened one after the other."""
    addresses = [f"127.0.0.{number}" for number in range(1, 6)]
    monkeypatch.setattr(ice, "get_host_addresses", lambda **kinds: addresses)
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(_cancel_at_each_step())


async def _cancel_at_each_step() -> None:
    certificate = Certificate.generate()
    this = psutil.Process()
    before = len(this.net_connections("udp"))

    async def begin() -> None:
        async with PeerLink.offering(certificate, channels=ALL):
            pass

    for steps in range(1, 60):
        beginning = asyncio.create_task(begin())
        for _ in range(steps):
            await asyncio.sleep(0)
        beginning.cancel()
        await asyncio.gather(beginning, return_exceptions=True)
        await until(lambda: len(this.net_connections("udp")) == before, within_s=2)


async def test_a_link_that_is_canceled_while_it_takes_leave_gives_its_sockets_back() -> None:
    this, left = psutil.Process(), asyncio.Event()
    before = len(this.net_connections("udp"))

    async def leave() -> None:
        async with UdpPath.through() as path, linked_peers(path=path) as peers:
            path.blocked = True
            await peers.agent.channel(ChannelName.FIRMWARE).send(b"never acknowledged")
            left.set()

    leaving = asyncio.create_task(leave())
    await left.wait()
    for _ in range(5):
        await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert leaving.cancelled()
    await until(lambda: len(this.net_connections("udp")) == before)
