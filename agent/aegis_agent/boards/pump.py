"""
The thread of one open port: what the board prints goes to the loop, what is typed to the board.

The loop never waits for the port, and the port's thread waits for the loop only when 64 pieces
are on their way to it (then the kernel's buffer fills, and a UART drops).
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, Final

import serial
import structlog
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.board import BoardError, BoardGone

from aegis_agent.boards import ports

log = structlog.get_logger()

TYPED_BYTES: Final = 256 * 1024
_READ_BYTES: Final = 4096
_WRITE_BYTES: Final = 256
_UNSENT_BYTES: Final = 8192
_BACKLOG: Final = 64
_STOP_S: Final = 8.0


class Typed:
    """What is to be written to a board, 256 KiB of it at most. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._data = bytearray()

    def put(self, data: bytes) -> bool:
        """Add `data`; False, and nothing added, where there is no room."""
        with self._lock:
            if len(self._data) + len(data) > TYPED_BYTES:
                return False
            self._data += data
            return True

    def take(self, size: int) -> bytes:
        with self._lock:
            data = bytes(self._data[:size])
            del self._data[:size]
            return data

    def clear(self) -> None:
        with self._lock:
            self._data.clear()


class Pump:
    """
    Reads and writes an open `device`, from `start` until `stop` or until the port goes away.

    heard  called in `loop` with what the board printed
    lost   called in `loop`, once, when the port went away by itself
    """

    def __init__(
        self,
        device: Any,
        loop: asyncio.AbstractEventLoop,
        typed: Typed,
        *,
        heard: Callable[[bytes], None],
        lost: Callable[[Pump, AegisError], None],
    ) -> None:
        self._device = device
        self._port = str(device.port)
        self._loop = loop
        self._typed = typed
        self._heard = heard
        self._lost = lost
        self._room = threading.BoundedSemaphore(_BACKLOG)
        self._stopping = threading.Event()
        self._resets: queue.SimpleQueue[asyncio.Future[None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="console", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def reset(self) -> asyncio.Future[None]:
        """Ask for a reset of the board: done when EN was low and is high again."""
        done: asyncio.Future[None] = self._loop.create_future()
        self._resets.put(done)
        return done

    def stop(self) -> None:
        """End the thread and close the port. Blocks for some seconds at most."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=_STOP_S)
        ports.close_port(self._device)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._reset()
                self._read()
                self._write()
        except AegisError as exc:
            self._say(self._lost, self, exc)
        except Exception as exc:  # noqa: BLE001 (pyserial's are many, and a thread has no caller)
            self._say(self._lost, self, ports.named(exc, self._port))
        finally:
            self._refuse_resets()

    def _read(self) -> None:
        data = bytearray()
        try:
            data += self._device.read(1)
            while data and len(data) < _READ_BYTES and (more := self._device.in_waiting):
                data += self._device.read(min(more, _READ_BYTES - len(data)))
        finally:
            if data:  # what came before the port went away is kept too
                self._pass_on(bytes(data))

    def _pass_on(self, data: bytes) -> None:
        while not self._room.acquire(timeout=0.2):
            if self._stopping.is_set():
                return
        self._say(self._take, data)

    def _take(self, data: bytes) -> None:
        self._room.release()
        self._heard(data)

    def _write(self) -> None:
        if self._is_stuck():
            return
        data = self._typed.take(_WRITE_BYTES)
        if data:
            try:
                self._device.write(data)
            except serial.SerialTimeoutException:
                log.warning("console.input_dropped", port=self._port, size_bytes=len(data))

    def _is_stuck(self) -> bool:
        """Tell whether the port still has to send a lot; one that can't tell has not."""
        try:
            return int(self._device.out_waiting) > _UNSENT_BYTES
        except (AttributeError, NotImplementedError):
            return False

    def _reset(self) -> None:
        with contextlib.suppress(queue.Empty):
            done = self._resets.get_nowait()
            try:
                ports.pulse_reset(self._device)
            except BoardGone:
                # A chip with USB of its own takes its port along: that was the reset.
                self._say(_settle, done, None)
                raise
            except BoardError as exc:
                self._say(_settle, done, exc)
            else:
                self._say(_settle, done, None)

    def _refuse_resets(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                done = self._resets.get_nowait()
                self._say(_settle, done, BoardGone(f"the port {self._port} went away"))

    def _say(self, callback: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(callback, *args)


def _settle(done: asyncio.Future[None], error: AegisError | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
