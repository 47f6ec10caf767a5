"""
A board's console: what it prints goes to a spool, what is typed goes to it.

One thread per open port reads and writes; the loop hears of it by `call_soon_threadsafe`. A port
that vanishes (a board that re-enumerates on reset) is waited for; a flash pauses the console and
gives it back.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from typing import Any, Final

import structlog
from aegis_links.spool import Spool
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.board import BoardError, BoardGone

from aegis_agent.boards import ports

log = structlog.get_logger()

_READ_BYTES: Final = 4096
_BACKLOG: Final = 64
_TYPED: Final = 256
_RETURN_DEADLINE_S: Final = 20.0
_RETRY_S: Final = 0.25


class Console:
    """
    An open console. `spool` holds everything since it was opened.

    Use: `await console.start()` (raises when the port can't be opened), then `wait_closed()`.
    """

    def __init__(self, board_id: str, port: str, baud: int, spool: Spool) -> None:
        self.board_id = board_id
        self.spool = spool
        self.baud = baud
        self._port = port
        self._typed: queue.Queue[bytes] = queue.Queue(_TYPED)
        self._room = threading.BoundedSemaphore(_BACKLOG)
        self._pump: _Pump | None = None
        self._changed = asyncio.Event()
        self._lost: AegisError | None = None
        self._paused = False
        self._open_now = asyncio.Event()
        self._closed = asyncio.Event()
        self._error: AegisError | None = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open the port, without resetting the board."""
        await self._open()
        self._watch = asyncio.create_task(self._keep(), name=f"console-{self.board_id}")

    def write(self, data: bytes) -> None:
        """Type `data`; what the board does not take in time is dropped, and logged."""
        try:
            self._typed.put_nowait(data)
        except queue.Full:
            log.warning("console.input_dropped", board_id=self.board_id, size_bytes=len(data))

    async def reset(self) -> None:
        """Reset the board with the console open, so that nothing of its boot is missed."""
        pump = self._pump
        if pump is None:
            raise BoardGone(f"the port of {self.board_id} is not open right now")
        done = asyncio.get_running_loop().create_future()
        pump.ask_reset(done)
        async with asyncio.timeout(5):
            await done

    async def pause(self) -> None:
        """Close the port so that another program may use it; `resume` opens it again."""
        self._paused = True
        await self._close_port()

    async def resume(self) -> None:
        """Open the port again, waiting for it if it is not back yet."""
        self._paused = False
        self._changed.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_RETURN_DEADLINE_S):
                await self._open_now.wait()

    async def wait_closed(self) -> AegisError | None:
        """Return once the console is closed: None, or why it could not be kept."""
        await self._closed.wait()
        return self._error

    async def close(self) -> None:
        """Close the port and finish the spool; doing it twice is harmless."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await self._close_port()
        if not self.spool.finished:
            self.spool.finish()
        self._closed.set()

    async def _keep(self) -> None:
        """Open the port again whenever it was lost, until it stays away too long."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._paused or (self._pump is not None and self._lost is None):
                continue
            await self._close_port()
            lost, self._lost = self._lost, None
            if lost is not None:
                log.info("console.port_lost", board_id=self.board_id, detail=lost.message)
            error = await self._reopened()
            if error is not None:
                self._error = error
                self.spool.finish()
                self._closed.set()
                return

    async def _reopened(self) -> AegisError | None:
        deadline = time.monotonic() + _RETURN_DEADLINE_S
        while True:
            try:
                await self._open()
            except BoardError as exc:
                if time.monotonic() > deadline:
                    return exc
                await asyncio.sleep(_RETRY_S)
            else:
                return None

    async def _open(self) -> None:
        device = await asyncio.to_thread(ports.open_port, self._port, self.baud)
        loop = asyncio.get_running_loop()
        self._pump = _Pump(device, loop, self._typed, self._room, self._heard, self._gone)
        self._open_now.set()

    async def _close_port(self) -> None:
        self._open_now.clear()
        pump, self._pump = self._pump, None
        if pump is not None:
            await asyncio.to_thread(pump.stop)

    def _heard(self, data: bytes) -> None:
        self._room.release()
        if not self.spool.finished:
            self.spool.append(data)

    def _gone(self, pump: _Pump, error: AegisError) -> None:
        if pump is self._pump:
            self._lost = error
            self._changed.set()


class _Pump:
    """The thread of one open port."""

    def __init__(
        self,
        device: Any,
        loop: asyncio.AbstractEventLoop,
        typed: queue.Queue[bytes],
        room: threading.BoundedSemaphore,
        heard: Any,
        gone: Any,
    ) -> None:
        self._device = device
        self._loop = loop
        self._typed = typed
        self._room = room
        self._heard = heard
        self._gone = gone
        self._stop = threading.Event()
        self._reset: asyncio.Future[None] | None = None
        self._thread = threading.Thread(target=self._run, name="console", daemon=True)
        self._thread.start()

    def ask_reset(self, done: asyncio.Future[None]) -> None:
        self._reset = done

    def stop(self) -> None:
        """End the thread and close the port; at most a few seconds (a stuck write)."""
        self._stop.set()
        self._thread.join(timeout=5)
        with contextlib.suppress(Exception):
            self._device.close()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._answer_reset()
                self._read()
                self._write()
        except (OSError, TypeError, ValueError, AegisError) as exc:
            # pyserial raises TypeError when a port is closed under a read.
            port = str(self._device.port)
            error = exc if isinstance(exc, AegisError) else ports.named(exc, port)
            self._say(self._gone, self, error)
        finally:
            self._fail_reset()

    def _read(self) -> None:
        data = self._device.read(max(1, min(_READ_BYTES, self._device.in_waiting)))
        if not data:
            return
        while not self._room.acquire(timeout=0.2):
            if self._stop.is_set():
                return
        self._say(self._heard, bytes(data))

    def _write(self) -> None:
        with contextlib.suppress(queue.Empty):
            while data := self._typed.get_nowait():
                self._device.write(data)

    def _answer_reset(self) -> None:
        done, self._reset = self._reset, None
        if done is None:
            return
        try:
            ports.pulse_reset(self._device)
        except AegisError as exc:
            self._say(_settle, done, exc)
        else:
            self._say(_settle, done, None)

    def _fail_reset(self) -> None:
        done, self._reset = self._reset, None
        if done is not None:
            self._say(_settle, done, BoardGone("the port went away while it was reset"))

    def _say(self, callback: Any, *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(callback, *args)


def _settle(done: asyncio.Future[None], error: AegisError | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
