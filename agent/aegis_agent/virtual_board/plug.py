# SPDX-License-Identifier: GPL-2.0-or-later
"""
The plug: the ways to the board come when it is plugged in and go when it is pulled out.

Pulled out, the board has no power. With `vanish-on-reset` only the port goes and comes, as that
of a chip with USB of its own does at each reset.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import structlog

from aegis_agent.virtual_board.board import Board
from aegis_agent.virtual_board.control_words import FaultName
from aegis_agent.virtual_board.faults import Faults
from aegis_agent.virtual_board.port import Port

log = structlog.get_logger()


class Way(Protocol):
    """A way to the port: `open` makes it, `serve` serves it and closes it when canceled."""

    def open(self) -> None: ...

    async def serve(self) -> None: ...


class PortPlug:
    """Keeps `ways` open while the board is plugged in."""

    def __init__(self, port: Port, board: Board, faults: Faults, ways: Sequence[Way]) -> None:
        self._port = port
        self._board = board
        self._faults = faults
        self._ways = ways
        self._out = asyncio.Event()
        self._in = asyncio.Event()
        self._back_after_s: float | None = None

    def unplug(self) -> None:
        """Pull the board out; it is back by `replug`, or by `replug-after` where that is set."""
        self._pull(self._faults.amount(FaultName.REPLUG_AFTER))
        self._board.power_off()

    def replug(self) -> None:
        self._in.set()

    def vanish_for_reset(self) -> None:
        """The board was reset: let the port go for a while where that is asked for."""
        away_s = self._faults.amount(FaultName.VANISH_ON_RESET)
        if away_s is not None and self._port.is_plugged:
            self._pull(away_s)

    def _pull(self, back_after_s: float | None) -> None:
        if self._port.is_plugged:
            log.info("board.pulled", back_after_s=back_after_s)
            self._back_after_s = back_after_s
            self._port.pull()
            self._in.clear()
            self._out.set()

    async def run(self, *, on_ready: asyncio.Event) -> None:
        """Serve until canceled; `on_ready` is set when the board was plugged in at first."""
        try:
            while True:
                for way in self._ways:
                    way.open()
                async with asyncio.TaskGroup() as group:
                    serving = [group.create_task(way.serve()) for way in self._ways]
                    self._out.clear()
                    self._port.plug()
                    self._board.power_on()
                    on_ready.set()
                    await self._out.wait()
                    for task in serving:
                        task.cancel()
                await self._until_in()
        finally:
            self._port.pull()
            self._board.power_off()

    async def _until_in(self) -> None:
        try:
            async with asyncio.timeout(self._back_after_s):
                await self._in.wait()
        except TimeoutError:
            pass
