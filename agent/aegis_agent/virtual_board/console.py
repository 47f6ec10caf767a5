# SPDX-License-Identifier: GPL-2.0-or-later
"""
The transmitter of running firmware: bytes from the thread of the CPU to the board's loop.

A full transmitter holds the firmware up, as a real one does at its rate; it is never a queue
that grows. What is left when the program is stopped is not sent.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Final

FIFO_BYTES: Final = 65_536
FULL_WAIT_S: Final = 0.25


class Console:
    """One booted program's way out; a reset closes it, so that no late byte slips through."""

    def __init__(self, loop: asyncio.AbstractEventLoop, send: Callable[[bytes], None]) -> None:
        self._loop = loop
        self._send = send
        self._fifo = bytearray()
        self._changed = threading.Condition()
        self._is_draining = False
        self._is_closed = False

    def write(self, data: bytes) -> None:
        """Take `data` from the CPU's thread; wait a moment while the FIFO is full, then drop."""
        view = memoryview(data)
        while view:
            with self._changed:
                has_room = self._changed.wait_for(
                    lambda: self._is_closed or len(self._fifo) < FIFO_BYTES, FULL_WAIT_S
                )
                if self._is_closed or not has_room:
                    return
                room = FIFO_BYTES - len(self._fifo)
                self._fifo += view[:room]
                view = view[room:]
                if not self._is_draining:
                    self._is_draining = True
                    self._loop.call_soon_threadsafe(self._drain)

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._fifo.clear()
            self._changed.notify_all()

    def _drain(self) -> None:
        with self._changed:
            data = bytes(self._fifo)
            self._fifo.clear()
            self._is_draining = False
            self._changed.notify_all()
        if data:
            self._send(data)
