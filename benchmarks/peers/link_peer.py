"""
One side of a measurement: a link of ours, in a process of its own.

Reads one JSON object per line and answers each with one, by its id; `do` is the name of a method
below, `peer` the number of the link among several.
`AEGIS_FAST_LINKS=off` makes it a link over aiortc as it comes.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import structlog
from aegis_links import event_loop
from aegis_links.certificate import Certificate
from aegis_links.peer_link import PeerLink
from aegis_protocol.channels import ChannelName
from aegis_protocol.fingerprint import check_sdp

ALL = frozenset(ChannelName)
PIECE_BYTES = 16_384
BULK, KEYS = ChannelName.FIRMWARE, ChannelName.PTY


class LinkPeer:
    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._certificate = Certificate.generate()
        self._link: PeerLink | None = None
        self._echo: asyncio.Task[None] | None = None
        self._got_bytes = 0

    @property
    def link(self) -> PeerLink:
        assert self._link is not None
        return self._link

    async def offer(self) -> dict[str, Any]:
        self._link = await self._stack.enter_async_context(
            PeerLink.offering(self._certificate, channels=ALL)
        )
        return {"sdp": self.link.offer_sdp}

    async def answer(self, sdp: str) -> dict[str, Any]:
        self._link = await self._stack.enter_async_context(
            PeerLink.answering(
                sdp, self._certificate, expected_fingerprint=check_sdp(sdp), granted=ALL
            )
        )
        return {"sdp": self.link.answer_sdp}

    async def accept(self, sdp: str) -> dict[str, Any]:
        began = time.perf_counter()
        await self.link.accept_answer(sdp, expected_fingerprint=check_sdp(sdp))
        await self.link.opened(20)
        return {"open_s": time.perf_counter() - began}

    async def opened(self) -> dict[str, Any]:
        await self.link.opened(20)
        await self.link.channel(BULK).opened(20)
        await self.link.channel(KEYS).opened(20)
        return {}

    async def send(self, size_bytes: int) -> dict[str, Any]:
        """Send so much; CPU is counted until all of it is acknowledged."""
        channel, piece = self.link.channel(BULK), bytes(PIECE_BYTES)
        cpu_s = time.process_time()
        for _ in range(size_bytes // PIECE_BYTES):
            await channel.send(piece)
        self.link._queue_moved()  # what it knew was of before the last message
        await self.link._delivered.wait()
        return {
            "cpu_s": time.process_time() - cpu_s,
            "high_water_bytes": self.link.buffered_high_water,
        }

    async def receive(self, size_bytes: int) -> dict[str, Any]:
        channel = self.link.channel(BULK)
        until, began, cpu_s = self._got_bytes + size_bytes, time.perf_counter(), time.process_time()
        while self._got_bytes < until:
            self._got_bytes += len(await channel.receive())
        return {"seconds": time.perf_counter() - began, "cpu_s": time.process_time() - cpu_s}

    async def got(self) -> dict[str, Any]:
        """How much `receive` has taken so far."""
        return {"size_bytes": self._got_bytes}

    async def keys(self, count: int, pause_s: float) -> dict[str, Any]:
        """Send `count` keystrokes, each answered by the peer; how long each took there and back."""
        channel = self.link.channel(KEYS)
        waits = []
        for _ in range(count):
            began = time.perf_counter()
            await channel.send(b"k")
            await channel.receive()
            waits.append(time.perf_counter() - began)
            await asyncio.sleep(pause_s)
        return {"waits_s": waits}

    async def echo(self) -> dict[str, Any]:
        async def answer_keys() -> None:
            channel = self.link.channel(KEYS)
            async for message in channel:
                await channel.send(message)

        self._echo = asyncio.create_task(answer_keys())
        return {}

    async def end(self) -> dict[str, Any]:
        """Wait until the link ends by itself; say when, by the clock that all processes share."""
        error = await self.link.wait_closed()
        return {"ended_at": time.monotonic(), "code": error.code if error else None}

    async def memory(self) -> dict[str, Any]:
        """How much of this process is in memory now."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])  # noqa: ASYNC240  no disk
        return {"resident_bytes": pages * resource.getpagesize()}


async def questions() -> AsyncIterator[dict[str, Any]]:
    lines = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    while line := await lines.readline():
        yield json.loads(line)


async def main() -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    running: set[asyncio.Task[None]] = set()
    async with AsyncExitStack() as stack:
        peers: dict[int, LinkPeer] = {}

        async def reply(question: dict[str, Any]) -> None:
            number, name = question.pop("id"), question.pop("do")
            peer = peers.setdefault(question.pop("peer", 0), LinkPeer(stack))
            found = await getattr(peer, name)(**question)
            sys.stdout.write(json.dumps({"id": number, **found}) + "\n")
            sys.stdout.flush()

        async for question in questions():
            task = asyncio.create_task(reply(question))
            running.add(task)
            task.add_done_callback(running.discard)


if __name__ == "__main__":
    event_loop.run(main())
