"""The processes of a measurement: started, asked by lines of JSON, joined, and ended."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from bench.udp_path import Weather

PEERS: Final = Path(__file__).parents[1] / "peers"
NODE_MODULES: Final = Path(__file__).parents[2] / "build" / "bench" / "node_modules"
ANSWER_LIMIT_S: Final = 60.0
_LINE_BYTES: Final = 1 << 20


class Kind(StrEnum):
    OURS = "ours"
    STOCK = "aiortc"
    DATACHANNEL = "libdatachannel"
    CHROMIUM = "Chromium"


def is_installed(kind: Kind) -> bool:
    match kind:
        case Kind.DATACHANNEL:
            return (NODE_MODULES / "node-datachannel").is_dir() and bool(shutil.which("node"))
        case Kind.CHROMIUM:
            return bool(shutil.which("chromium"))
    return True


class Station:
    """A process that answers questions. The answers may come in any order."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._next = 0

    async def ask(self, do: str, **words: Any) -> dict[str, Any]:
        """Raises TimeoutError, and ConnectionError if the process ended before it answered."""
        assert self.process.stdin is not None
        self._next += 1
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[self._next] = answer
        self.process.stdin.write(json.dumps({"id": self._next, "do": do, **words}).encode() + b"\n")
        async with asyncio.timeout(ANSWER_LIMIT_S):
            return await answer

    async def read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            words = json.loads(line)
            if (future := self._waiting.pop(words["id"], None)) and not future.done():
                future.set_result(words)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ConnectionError("the station ended"))


@asynccontextmanager
async def station(kind: Kind) -> AsyncIterator[Station]:
    environment = dict(os.environ)
    match kind:
        case Kind.OURS | Kind.STOCK:
            command = [sys.executable, str(PEERS / "link_peer.py")]
            if kind is Kind.STOCK:
                environment |= {"AEGIS_FAST_LINKS": "off", "AEGIS_EVENT_LOOP": "asyncio"}
        case Kind.DATACHANNEL:
            command = ["node", str(PEERS / "datachannel_peer.js")]
        case Kind.CHROMIUM:
            command = [sys.executable, str(PEERS / "chromium_peer.py")]
    async with answering(command, environment) as made:
        yield made


@asynccontextmanager
async def answering(command: list[str], environment: dict[str, str]) -> AsyncIterator[Station]:
    """A process that answers questions on its standard input; it ends with the block."""
    async with _running(command, environment) as process:
        made = Station(process)
        reading = asyncio.create_task(made.read())
        try:
            yield made
        finally:
            reading.cancel()


@asynccontextmanager
async def joined(
    client: Kind, agent: Kind, weather: Weather | None = None
) -> AsyncIterator[tuple[Station, Station, float]]:
    """A client that offered and an agent that answered, open, and how long that took in s."""
    async with station(client) as near, station(agent) as far, _path(weather) as path:
        open_s = await join(near, far, path)
        yield near, far, open_s


async def join(near: Station, far: Station, path: Process | None = None, peer: int = 0) -> float:
    """Connect the links of that number; return the time from the answer to open, in s."""
    words = {"peer": peer} if peer else {}
    offer = (await near.ask("offer", **words))["sdp"]
    answer = (await far.ask("answer", sdp=await _through(path, "offer", offer), **words))["sdp"]
    answer = await _through(path, "answer", answer)
    opening = await near.ask("accept", sdp=answer, **words)
    await far.ask("opened", **words)
    return float(opening["open_s"])


@asynccontextmanager
async def _path(weather: Weather | None) -> AsyncIterator[Process | None]:
    if weather is None:
        yield None
        return
    async with _running(
        [sys.executable, str(Path(__file__).with_name("udp_path.py"))], dict(os.environ)
    ) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(vars(weather)).encode() + b"\n")
        yield process


async def _through(path: Process | None, kind: str, sdp: str) -> str:
    if path is None:
        return sdp
    assert path.stdin is not None and path.stdout is not None
    path.stdin.write(json.dumps({kind: sdp}).encode() + b"\n")
    async with asyncio.timeout(ANSWER_LIMIT_S):
        return str(json.loads(await path.stdout.readline())[kind])


@asynccontextmanager
async def _running(command: list[str], environment: dict[str, str]) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=environment, limit=_LINE_BYTES
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()  # each ends by itself then, with what it started
        try:
            async with asyncio.timeout(5):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
