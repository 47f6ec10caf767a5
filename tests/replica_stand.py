"""
Whole controls for a test: real `aegis-control serve` processes behind a TCP balancer.

    async with ReplicaStand.open(folder, url, count=3) as stand:
        stand.url                       the balancer: what agents and clients are given
        stand.replicas[0].kill()        SIGKILL; `await start()` brings it back
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

READY_S = 60.0
MCP = "the secret that everyone here knows"
AGENTS = "the secret with which machines may join"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class ControlProgram:
    """
    One `aegis-control serve`; what it prints goes to `log`.

    within  the words before its command: what it runs in
    """

    folder: Path
    environment: Mapping[str, str]
    port: int = field(default_factory=free_port)
    within: tuple[str, ...] = ()
    process: Process | None = None

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it and wait until it answers."""
        (self.folder / "state").mkdir(parents=True, exist_ok=True, mode=0o700)
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.within,
                *(sys.executable, "-m", "aegis_control", "serve"),
                *("--listen", f"127.0.0.1:{self.port}"),
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": str(self.folder),
                    "AEGIS_STATE_DIR": str(self.folder / "state"),
                    "AEGIS_CONFIG_DIR": str(self.folder / "etc"),
                    "MCP_AUTH_SECRET": MCP,
                    "AGENT_AUTH_SECRET": AGENTS,
                    **self.environment,
                },
                stdin=DEVNULL,
                stdout=log,
                stderr=STDOUT,
            )
        async with asyncio.timeout(READY_S):
            while await self.health() is None:
                assert self.process.returncode is None, self.said()
                await asyncio.sleep(0.05)

    async def health(self) -> tuple[int, dict[str, Any]] | None:
        """The status and the body of its `/health`; None when it does not answer."""
        try:
            timeout = aiohttp.ClientTimeout(total=30)
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(f"{self.url}/health") as answer,
            ):
                return answer.status, await answer.json()
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None

    async def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        await self.process.wait()

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL when that is not enough."""
        if self.process is None or self.process.returncode is not None:
            return
        self.process.terminate()
        try:
            async with asyncio.timeout(20):
                await self.process.wait()
        except TimeoutError:
            await self.kill()

    def said(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]


class Balancer:
    """Passes connections on to the replicas in turn; one that refuses is passed over."""

    def __init__(self, ports: list[int]) -> None:
        self._ports = ports
        self._turn = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            for _ in self._ports:
                self._turn += 1
                port = self._ports[self._turn % len(self._ports)]
                try:
                    there, back = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    continue
                await self._pass_on(reader, writer, there, back)
                return
        finally:
            self._open.discard(task)
            writer.transport.abort()

    async def _pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        there: asyncio.StreamReader,
        back: asyncio.StreamWriter,
    ) -> None:
        ways = [
            asyncio.create_task(_copy(reader, back)),
            asyncio.create_task(_copy(there, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            back.transport.abort()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(65_536):
            target.write(data)
            await target.drain()


@dataclass
class ReplicaStand:
    """url: what agents and clients are given."""

    url: str
    replicas: list[ControlProgram]

    def operator_key(self) -> str:
        """The first operator's key: the replica that came first made it."""
        files = [replica.folder / "state/operator.key" for replica in self.replicas]
        return next(file for file in files if file.exists()).read_text().strip()

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        folder: Path,
        database_url: str | None = None,
        *,
        count: int = 1,
        within: Callable[[Path], tuple[str, ...]] = lambda state: (),
        **environment: str,
    ) -> AsyncIterator[ReplicaStand]:
        """within: what a control runs in, by its state directory."""
        ports = [free_port() for _ in range(count)]
        balancer = Balancer(ports)
        url = f"http://127.0.0.1:{await balancer.start()}"
        given = {"CONTROL_PUBLIC_BASE_URL": url, "AEGIS_SEAL_KEY": "s" * 32} | environment
        if database_url is not None:
            given["AEGIS_DATABASE_URL"] = database_url
        folders = [folder / f"replica-{number}" for number in range(count)]
        replicas = [
            ControlProgram(here, given, port, within(here / "state"))
            for here, port in zip(folders, ports, strict=True)
        ]
        try:
            await asyncio.gather(*(replica.start() for replica in replicas))
            yield cls(url, replicas)
        finally:
            await asyncio.gather(*(replica.stop() for replica in replicas))
            await balancer.close()
