"""A TCP connection's way to a control that can be cut and mended."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager


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


class ThreadedWire:
    """A CutWire with a loop of its own, for a test that is no coroutine."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._wire: CutWire

    @classmethod
    @contextmanager
    def laid(cls) -> Iterator[ThreadedWire]:
        wire, ready = cls(), threading.Event()

        async def lie() -> None:
            async with CutWire.laid() as wire._wire:
                ready.set()
                await wire._over.wait()

        def run() -> None:
            with asyncio.Runner(loop_factory=lambda: wire._loop) as runner:
                runner.run(lie())

        thread = threading.Thread(target=run, name="cut-wire", daemon=True)
        thread.start()
        assert ready.wait(10)
        try:
            yield wire
        finally:
            wire._loop.call_soon_threadsafe(wire._over.set)
            thread.join(10)

    @property
    def url(self) -> str:
        return self._wire.url

    def lead_to(self, port: int) -> None:
        self._wire.port = port

    def cut(self) -> None:
        self._call(self._wire.cut)

    def mend(self) -> None:
        self._call(self._wire.mend)

    def _call(self, function: Callable[[], None]) -> None:
        """Call it on the wire's loop, and return when it was called."""

        async def called() -> None:
            function()

        asyncio.run_coroutine_threadsafe(called(), self._loop).result(10)
