"""A line as slow as a modem's, and lossy: what goes over it is alive until it is there."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest
from aegis_links.channel import Channel
from aegis_links.liveness import SILENCE_LIMIT_S
from aegis_links.transfers import TransferPort
from aegis_protocol.channels import ChannelName
from bench.udp_path import UdpPath, Weather
from linked_peers import linked_peers

KBIT_S = 200
SLOW = Weather(delay_s=0.05, loss=0.03, bytes_per_s=KBIT_S * 1000 / 8)
SIZE_BYTES = 700_000
AT_LEAST_S = 20.0
"""28 s at that rate: a path that lets more pass is none."""


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_a_download_over_a_slow_and_lossy_line_is_never_declared_dead(tmp: Path) -> None:
    data = os.urandom(SIZE_BYTES)
    clock = asyncio.get_running_loop().time
    async with UdpPath.through(SLOW) as path, linked_peers(path=path) as peers:
        began = clock()
        echoing = asyncio.create_task(_echoes(peers.agent.channel(ChannelName.PTY)))
        async with (
            TransferPort.over(peers.agent.channel(ChannelName.FIRMWARE)) as sender,
            TransferPort.over(peers.client.channel(ChannelName.FIRMWARE)) as receiver,
        ):
            digest = hashlib.sha256(data).hexdigest()
            receiving = asyncio.create_task(
                receiver.receive_to(1, tmp / "image", size_bytes=SIZE_BYTES, sha256=digest)
            )
            sending = asyncio.create_task(sender.send_file(1, data))
            keystrokes = 0
            while not receiving.done():
                await peers.client.channel(ChannelName.PTY).send(b"x")
                # A keystroke goes before what waits here, and behind what is on the line.
                async with asyncio.timeout(60):
                    assert await peers.client.channel(ChannelName.PTY).receive() == b"x"
                keystrokes += 1
            await receiving
            assert (await sending).sha256 == digest
        assert (tmp / "image").read_bytes() == data
        assert clock() - began > max(AT_LEAST_S, SILENCE_LIMIT_S)
        assert keystrokes > 3 and path.dropped > 0
        assert peers.client.error is peers.agent.error is None
        echoing.cancel()


async def _echoes(channel: Channel) -> None:
    async for message in channel:
        await channel.send(message)
