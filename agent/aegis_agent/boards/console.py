"""
A board's console: what it prints goes to a spool, what is typed goes to it.

A port that vanishes (a board that re-enumerates on reset) is waited for and opened again, wherever
it comes back; a flash pauses the console and gives it back.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import time
from collections.abc import Callable
from typing import Final

import structlog
from aegis_links.spool import Spool
from aegis_links.uninterrupted import uninterrupted
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.board import BoardError, BoardGone
from aegis_protocol.failures.source import DiskFull

from aegis_agent.boards import ports
from aegis_agent.boards.pump import Pump, Typed

log = structlog.get_logger()

RETURN_DEADLINE_S: Final = 20.0
_RETRY_S: Final = 0.25
_RESET_DEADLINE_S: Final = 10.0


class ConsoleState(enum.Enum):
    """closed is the end; away: the port went by itself and is waited for."""

    OPEN = "open"
    PAUSED = "paused"
    AWAY = "away"
    CLOSED = "closed"


class Console:
    """
    A console that is kept open. `spool` holds everything since it was opened.

    locate             returns the board's port as it is now, or None; it may block
    return_deadline_s  how long a port that went away is waited for

    Use: `await console.start()` (raises when the port can't be opened), then `wait_closed()`.
    """

    def __init__(
        self,
        board_id: str,
        locate: Callable[[], str | None],
        baud: int,
        spool: Spool,
        *,
        return_deadline_s: float = RETURN_DEADLINE_S,
    ) -> None:
        self.board_id = board_id
        self.spool = spool
        self.baud = baud
        self.state = ConsoleState.CLOSED
        self._locate = locate
        self._return_deadline_s = return_deadline_s
        self._typed = Typed()
        self._pump: Pump | None = None
        self._port_lock = asyncio.Lock()
        self._changed = asyncio.Event()
        self._opened = asyncio.Event()
        self._closed = asyncio.Event()
        self._error: AegisError | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open the port, without resetting the board. Raises BoardGone, BoardBusy, BoardError."""
        await self._open()
        self._keeper = asyncio.create_task(self._keep(), name=f"console-{self.board_id}")

    def write(self, data: bytes) -> None:
        """Type `data`; what the board does not take in time is dropped, and logged."""
        if not self._typed.put(data):
            log.warning("console.input_dropped", board_id=self.board_id, size_bytes=len(data))

    async def reset(self) -> None:
        """
        Reset the board with the console open, so that nothing of its boot is missed.

        Raises NoResetLines, and BoardGone when the port is not there, or is not taking it.
        """
        pump = self._pump
        if pump is None:
            raise BoardGone(f"the port of {self.board_id} is not open right now")
        try:
            async with asyncio.timeout(_RESET_DEADLINE_S):
                await pump.reset()
        except TimeoutError as exc:
            raise BoardGone(f"the port of {self.board_id} does not respond") from exc

    async def pause(self) -> None:
        """Close the port so that another program may use it; `resume` opens it again."""
        async with self._port_lock:
            if self.state is not ConsoleState.CLOSED:
                self._move(ConsoleState.PAUSED)
                await self._close_port()

    async def resume(self, *, deadline_s: float) -> None:
        """
        Open the port again, and wait until it is open: `deadline_s` at most.

        One that stays away longer is still waited for, and ends the console in the end.
        """
        async with self._port_lock:
            if self.state is not ConsoleState.PAUSED:
                return
            self._typed.clear()
            self._move(ConsoleState.AWAY)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                await self._opened.wait()

    async def wait_closed(self) -> AegisError | None:
        """Return once the console is closed: None, or why it could not be kept."""
        await self._closed.wait()
        keeper = self._keeper
        if keeper is not None and keeper.done() and not keeper.cancelled():
            keeper.result()  # a defect of the keeper is told, not swallowed
        return self._error

    async def close(self) -> None:
        """Close the port and the spool, which can still be read; doing it twice is harmless."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        async with self._port_lock:
            await self._close_port()
            self._end(None)
            self.spool.close()

    async def _keep(self) -> None:
        """Open the port again whenever it went away by itself, until it stays away too long."""
        try:
            while self.state is not ConsoleState.CLOSED:
                await self._changed.wait()
                self._changed.clear()
                await self._return()
        finally:
            self._closed.set()

    async def _return(self) -> None:
        gives_up_at = time.monotonic() + self._return_deadline_s
        while self._is_away():
            # Within the lock: a pause that comes meanwhile finds the port open, or not being tried.
            async with self._port_lock:
                if not self._is_away():
                    return
                await self._close_port()
                try:
                    await self._open()
                except BoardError as exc:
                    if time.monotonic() > gives_up_at:
                        log.info("console.gone", board_id=self.board_id, code=exc.code)
                        self._end(exc)
                        return
                else:
                    return
            await asyncio.sleep(_RETRY_S)

    def _is_away(self) -> bool:
        return self.state is ConsoleState.AWAY

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()

        def open_now() -> None:
            port = self._locate()
            if port is None:
                raise BoardGone(f"the port of {self.board_id} is not there")
            device = ports.open_port(port, self.baud)
            self._pump = Pump(device, loop, self._typed, heard=self._heard, lost=self._lost)

        # Never left halfway: a port that was opened for nobody would stay taken.
        await uninterrupted(asyncio.to_thread(open_now))
        assert self._pump is not None
        self._move(ConsoleState.OPEN)
        self._pump.start()

    async def _close_port(self) -> None:
        pump, self._pump = self._pump, None
        if pump is not None:
            await uninterrupted(asyncio.to_thread(pump.stop))

    def _heard(self, data: bytes) -> None:
        if self.spool.finished:
            return
        try:
            self.spool.append(data)
        except OSError as exc:
            log.warning("console.not_spooled", board_id=self.board_id, detail=str(exc))
            self._end(DiskFull(f"the console's output can't be kept: {exc.strerror}"))

    def _lost(self, pump: Pump, error: AegisError) -> None:
        if pump is self._pump and self.state is ConsoleState.OPEN:
            log.info("console.port_lost", board_id=self.board_id, detail=error.message)
            self._move(ConsoleState.AWAY)

    def _end(self, error: AegisError | None) -> None:
        if self.state is ConsoleState.CLOSED and self._closed.is_set():
            return
        self._error = error
        try:
            self.spool.finish()
        except OSError as exc:  # a full disk must not keep the end from being told
            log.warning("spool.not_finished", board_id=self.board_id, detail=str(exc))
        self._move(ConsoleState.CLOSED)
        self._closed.set()

    def _move(self, to: ConsoleState) -> None:
        self.state = to
        if to in (ConsoleState.OPEN, ConsoleState.CLOSED):
            self._opened.set()
        else:
            self._opened.clear()
        if to in (ConsoleState.AWAY, ConsoleState.CLOSED):
            self._changed.set()
