"""The limits of a grant on the agent's side: what it sends is slowed, and arrives."""

from __future__ import annotations

import asyncio
import time
from hashlib import sha256
from pathlib import Path

import pytest
from aegis_protocol.channels import ChannelName
from agent_control import ControlPlane
from agent_stand import an_agent

pytestmark = pytest.mark.requires("bwrap")

IMAGE = bytes(range(256)) * 256
PROJECT = {"build.sh": b"cp image app.bin\n", "image": IMAGE}


@pytest.mark.parametrize(
    ("limits", "at_least_s"),
    [
        # 65,536 bytes at 50,000 a second; a quarter of a second's worth and a message more pass
        # at once.
        ({"max_bandwidth_kbps": 400}, 0.6),
        # Five messages, two of which pass at once.
        ({"max_message_rate": 4}, 0.6),
    ],
)
async def test_a_download_takes_the_time_that_its_grant_gives_it(
    tmp: Path, limits: dict[str, int], at_least_s: float
) -> None:
    async with ControlPlane.running() as control, an_agent(control, tmp, slots=2) as agent:
        async with agent.peer() as peer:
            await peer.hello()
            task = await peer.built(PROJECT)
        async with agent.peer(limits=limits) as slowed:
            await slowed.hello()
            port = slowed.ports[ChannelName.FIRMWARE]
            number = port.next_number()
            digest = sha256(IMAGE).hexdigest()
            began = time.monotonic()
            receiving = asyncio.create_task(
                port.receive_bytes(number, size_bytes=len(IMAGE), sha256=digest)
            )
            await slowed.ask(
                "artifact.fetch", task_id=task.task_id, name="app.bin", transfer=number
            )
            assert await receiving == IMAGE
            assert time.monotonic() - began > at_least_s
            assert slowed.link.error is None
