"""A TCP connection's way to a control that can be cut and mended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class CutWire:
    """`url`: where the way begins. port: where it leads; set it before anybody comes."""

    def __init__(self) -> None:
        self.port = 0
        self.url = ""
        self.whole = True
        self._passing: set[asyncio.Task[None]] = set()

    @classmethod
    @asynccontextmanager
    async def laid(cls) -> AsyncIterator[CutWire]:
        wire = cls()
        server = await asyncio.start_server(wire._pass, "127.0.0.1", 0)
        wire.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield wire
        finally:
            wire.cut()
            server.close()
            await server.wait_closed()

    def cut(self) -> None:
        """End what passes, and let nothing through."""
        self.whole = False
        for task in list(self._passing):
            task.cancel()

    def mend(self) -> None:
        self.whole = True

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._passing.add(task)
        try:
            if self.whole:
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.port)
                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(_copy(reader, far_writer))
                        group.create_task(_copy(far_reader, writer))
                finally:
                    far_writer.transport.abort()
        except (asyncio.CancelledError, OSError):
            pass  # the wire is cut, or who was at its end has gone
        finally:
            self._passing.discard(task)
            writer.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()
