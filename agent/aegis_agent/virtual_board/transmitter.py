# SPDX-License-Identifier: GPL-2.0-or-later
"""
What leaves UART0: bytes from the CPU and lines from the board's own acting, in order.

Bytes are gathered, since a call per byte would cost more than the firmware itself. Over the long
run they leave at the rate of a fast wire; who sends more is held up, as by a full FIFO.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Final

GATHERED_BYTES: Final = 512
RATE_BYTES_S: Final = 92_160  # 921,600 baud
BURST_BYTES: Final = 16_384


class Transmitter:
    """
    Belongs to the thread of the CPU.

    uart_out  takes what was gathered
    stopping  ends every wait
    """

    def __init__(self, uart_out: Callable[[bytes], None], stopping: threading.Event) -> None:
        self._uart_out = uart_out
        self._stopping = stopping
        self._gathered = bytearray()
        self._room_bytes = float(BURST_BYTES)
        self._room_at_s = time.monotonic()

    def send(self, byte: int) -> None:
        self._gathered.append(byte)
        if len(self._gathered) >= GATHERED_BYTES:
            self.flush()

    def say(self, lines: Iterable[str]) -> None:
        """Send `lines` at once, each ended by CR LF."""
        self._gathered += "".join(f"{line}\r\n" for line in lines).encode("ascii", "replace")
        self.flush()

    def flush(self) -> None:
        """Hand on what was gathered; wait first where more was sent than the wire takes."""
        if not self._gathered or self._stopping.is_set():
            self._gathered.clear()
            return
        now_s = time.monotonic()
        self._room_bytes += (now_s - self._room_at_s) * RATE_BYTES_S
        self._room_bytes = min(self._room_bytes, BURST_BYTES) - len(self._gathered)
        self._room_at_s = now_s
        if self._room_bytes < 0 and self._stopping.wait(-self._room_bytes / RATE_BYTES_S):
            self._gathered.clear()
            return
        data = bytes(self._gathered)
        self._gathered.clear()
        self._uart_out(data)
