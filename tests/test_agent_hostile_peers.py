"""Peers that behave as none may, beside one that does: bounded, refused, and it never notices."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

import psutil
import pytest
from aegis_protocol.channels import SEND_QUEUE_CAP_BYTES, ChannelName
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.link import LinkError
from aegis_protocol.rpc import TaskInfo
from agent_control import ControlPlane
from agent_stand import ALL, Peer, RunningAgent, an_agent
from structlog.testing import capture_logs
from waiting import until

pytestmark = [pytest.mark.requires("bwrap"), pytest.mark.timeout(120)]

SIZE = 3_000_000
PROJECT = {
    "build.sh": f"yes aegis | head -c {SIZE} > app.bin; yes aegis | head -c {SIZE}\n".encode()
}
IMAGE = (b"aegis\n" * (SIZE // 6 + 1))[:SIZE]
MOST_GROWTH_BYTES = 64 * 1024 * 1024
Misbehavior: TypeAlias = Callable[[Peer, TaskInfo], Coroutine[Any, Any, None]]


@pytest.fixture
async def agent(tmp: Path) -> AsyncIterator[RunningAgent]:
    async with (
        ControlPlane.running() as control,
        an_agent(control, tmp, linger_secs=0.5, slots=4) as made,
    ):
        yield made


async def download(peer: Peer, task: TaskInfo) -> str:
    """The digest of the build's image as it arrives."""
    port = peer.ports[ChannelName.FIRMWARE]
    number = port.next_number()
    wanted = sha256(IMAGE).hexdigest()
    receiving = asyncio.create_task(port.receive_bytes(number, size_bytes=SIZE, sha256=wanted))
    await peer.ask("artifact.fetch", task_id=task.task_id, name="app.bin", transfer=number)
    return sha256(await receiving).hexdigest()


async def never_reads(peer: Peer, task: TaskInfo) -> None:
    """Asks for much, and takes nothing of it."""
    for number in range(1, 20):
        try:
            await peer.ask("artifact.fetch", task_id=task.task_id, name="app.bin", transfer=number)
        except AegisError as exc:
            assert exc.code == "transfer.refused", exc.code
            break
    else:
        pytest.fail("any number of transfers was begun")


async def sends_garbage(peer: Peer, task: TaskInfo) -> None:
    chance = random.Random(1)  # noqa: S311
    for name in ALL:
        try:
            for _ in range(60):
                await peer.link.channel(name).send(chance.randbytes(chance.randrange(1, 4000)))
                await peer.link.channel(name).send("{" * chance.randrange(1, 400))
        except LinkError:
            continue  # the channel was closed for it
    closed = [peer.link.channel(name) for name in ALL if name is not ChannelName.ESPCTL]
    await until(lambda: all(channel.closed for channel in closed), within_s=20)


async def opens_channels(peer: Peer, task: TaskInfo) -> None:
    for number in range(1000):
        peer.link._transport.open_channel(f"more-{number}")
    await peer.link.wait_closed()


@pytest.mark.parametrize(
    ("misbehave", "code"),
    [(never_reads, None), (sends_garbage, None), (opens_channels, "link.flooded")],
)
async def test_the_others_go_on_beside_a_peer_that_does_not_behave(
    agent: RunningAgent, misbehave: Misbehavior, code: str | None
) -> None:
    with capture_logs() as events:
        async with agent.peer() as good:
            await good.hello()
            task = await good.built(PROJECT)
            before = psutil.Process().memory_info().rss
            async with agent.peer() as hostile:
                await hostile.hello()
                worst = asyncio.create_task(misbehave(hostile, task))
                for _ in range(3):
                    assert await download(good, task) == sha256(IMAGE).hexdigest()
                await worst
                assert await download(good, task) == sha256(IMAGE).hexdigest()
                assert not good.link.error
            assert psutil.Process().memory_info().rss - before < MOST_GROWTH_BYTES
        await until(agent.daemon.jobs.idle, within_s=20)
        async with agent.peer() as later:
            await later.hello()
    assert not [event for event in events if event["log_level"] in ("error", "critical")]
    closed = [event for event in events if event["event"] == "session.closed"]
    assert [event["code"] for event in closed] == [code, None]
    assert all(event["buffered_high_water"] <= SEND_QUEUE_CAP_BYTES for event in closed)
