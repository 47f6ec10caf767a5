# SPDX-License-Identifier: GPL-2.0-or-later
"""
The port: who holds the board's UART, and the bytes between the holder and the board.

One holder at a time. What the board sends while nobody listens, or faster than the holder
reads, is dropped, as a UART drops it. Paced, a byte takes ten bit times at the host's rate.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from aegis_agent.serial_urls.wire import Lines
from aegis_agent.virtual_board.board import Board
from aegis_agent.virtual_board.control_words import BoardState, BoardStatus, FaultName, Holder
from aegis_agent.virtual_board.faults import Faults

log = structlog.get_logger()

# A host that flashes must get every answer; a console that nobody reads must not grow old.
LOADER_QUEUE_BYTES: Final = 512 * 1024
CONSOLE_QUEUE_BYTES: Final = 65_536
DEFAULT_BAUD: Final = 115_200
PACE_STEP_S: Final = 0.005


class Outlet(Protocol):
    """The way to a holder. `write` never waits; `waiting_bytes` is what it has not passed on."""

    def write(self, data: bytes) -> None: ...

    def waiting_bytes(self) -> int: ...


class PortBusy(Exception):
    """Somebody else holds the port; the message says who."""


class Port:
    """
    One UART's socket in the wall.

    on_unplug  is called when the board is to be pulled out: a fault that counted to its end
    on_change  is called after a change that a status shows
    """

    def __init__(
        self,
        faults: Faults,
        *,
        is_paced: bool,
        on_unplug: Callable[[], None],
        on_change: Callable[[], None],
    ) -> None:
        self.board: Board | None = None
        self.is_plugged = False
        self.generation = 0
        self.holder: Holder | None = None
        self.lines = Lines()
        self.baud = DEFAULT_BAUD
        self.received_bytes = 0
        self.sent_bytes = 0
        self.dropped_bytes = 0
        self._outlet: Outlet | None = None
        self._freed = asyncio.Event()
        self._faults = faults
        self._is_paced = is_paced
        self._on_unplug = on_unplug
        self._on_change = on_change
        self._unpaced = bytearray()
        self._pace_timer: asyncio.TimerHandle | None = None

    # --- the holder ---

    def refusal(self) -> str | None:
        """Return why nobody can take the port now, or None."""
        if not self.is_plugged:
            return "the board is unplugged"
        if self.holder is not None:
            return f"the board's port is in use by {describe(self.holder)}"
        return None

    async def until_free(self, limit_s: float) -> None:
        """
        Return when nobody holds the port, or after `limit_s`.

        One program closes a port and the next opens it: the news of both come by two sockets,
        in any order.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self.holder is not None:
                    await self._freed.wait()

    def take(self, holder: Holder, outlet: Outlet, lines: Lines | None, baud: int) -> None:
        """
        Give the port to `holder`.

        lines   as they are at the opening; None for a way without lines

        Raises
        ------
        PortBusy   there is a holder already, or the board is not plugged in
        """
        refusal = self.refusal()
        if refusal is not None:
            raise PortBusy(refusal)
        self.holder, self._outlet = holder, outlet
        self._freed.clear()
        self.baud = baud
        log.info("port.taken", by=holder.by, pid=holder.pid, program=holder.program)
        if lines is not None:
            self.set_lines(lines)
        self._on_change()

    def release(self, holder: Holder) -> None:
        """Take the port from `holder` and let its lines fall, both at once; else do nothing."""
        if self.holder is not holder:
            return
        self.holder = self._outlet = None
        self._freed.set()
        self._stop_pacing()
        log.info("port.released", by=holder.by, pid=holder.pid)
        self.set_lines(Lines())
        self._on_change()

    def set_lines(self, lines: Lines) -> None:
        if lines == self.lines:
            return
        self.lines = lines
        if self.board is not None:
            self.board.set_lines(lines.dtr, lines.rts)
        self._on_change()

    def set_baud(self, baud: int) -> None:
        if baud > 0:
            self.baud = baud

    # --- bytes ---

    async def receive(self, data: bytes) -> None:
        """Take `data` from the holder; paced, return when it has passed the wire."""
        if not self._is_paced:
            self._arrive(data)
            return
        step = max(1, int(self.baud / 10 * PACE_STEP_S))
        for start in range(0, len(data), step):
            part = data[start : start + step]
            await asyncio.sleep(len(part) * 10 / self.baud)
            self._arrive(part)

    def _arrive(self, data: bytes) -> None:
        if not self.is_plugged or self.board is None:
            return
        arriving = data[: self._faults.spend(FaultName.UNPLUG_AFTER, len(data))]
        self.received_bytes += len(arriving)
        self.board.receive(arriving, self.baud)
        if len(arriving) < len(data) or self._faults.amount(FaultName.UNPLUG_AFTER) == 0:
            self._faults.drop(FaultName.UNPLUG_AFTER)
            self._on_unplug()

    def transmit(self, data: bytes) -> None:
        """Send what the board transmits; drop what nobody takes."""
        if self._outlet is None or not self.is_plugged or self.board is None:
            self.dropped_bytes += len(data)
            return
        limit = LOADER_QUEUE_BYTES if self.board.state is BoardState.LOADER else CONSOLE_QUEUE_BYTES
        room = max(0, limit - self._outlet.waiting_bytes() - len(self._unpaced))
        self.dropped_bytes += max(0, len(data) - room)
        data = self.board.transmitted(data[:room], self.baud)
        self.sent_bytes += len(data)
        if not self._is_paced:
            self._outlet.write(data)
            return
        self._unpaced += data
        if self._pace_timer is None:
            self._pace_step()

    def _pace_step(self) -> None:
        step = max(1, int(self.baud / 10 * PACE_STEP_S))
        part = bytes(self._unpaced[:step])
        del self._unpaced[:step]
        self._pace_timer = None
        if not part or self._outlet is None:
            return
        self._outlet.write(part)
        loop = asyncio.get_running_loop()
        self._pace_timer = loop.call_later(len(part) * 10 / self.baud, self._pace_step)

    def _stop_pacing(self) -> None:
        self._unpaced.clear()
        if self._pace_timer is not None:
            self._pace_timer.cancel()
            self._pace_timer = None

    # --- plugging ---

    def plug(self) -> None:
        self.is_plugged = True
        self.generation += 1
        self._on_change()

    def pull(self) -> None:
        """Cut every way to the board at once; the ways themselves close after it."""
        self.is_plugged = False
        self._on_change()

    def status(self) -> BoardStatus:
        board = self.board
        if board is None:
            raise RuntimeError("a port without a board")
        return BoardStatus(
            chip=board.chip.name,
            mac=board.mac.hex(":"),
            state=board.state,
            stub=board.is_stub,
            plugged=self.is_plugged,
            holder=self.holder,
            dtr=self.lines.dtr,
            rts=self.lines.rts,
            host_baud=self.baud if self.holder else None,
            resets=board.resets,
            boots=board.boots,
            generation=self.generation,
            received_bytes=self.received_bytes,
            sent_bytes=self.sent_bytes,
            dropped_bytes=self.dropped_bytes,
            faults={str(name): amount for name, amount in self._faults.in_force().items()},
        )


def describe(holder: Holder) -> str:
    if holder.pid is None:
        return "a program that has its pty open"
    return f"process {holder.pid} ({holder.program or 'unknown'})"
