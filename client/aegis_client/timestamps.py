"""The time before each line of a stream of bytes that is cut anywhere."""

from __future__ import annotations

import time
from collections.abc import Callable


class Timestamps:
    """Local time with milliseconds, given when the first byte of the line came."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._at_start = True

    def feed(self, data: bytes) -> bytes:
        now = self._clock()
        stamp = time.strftime("%H:%M:%S", time.localtime(now)) + f".{int(now * 1000) % 1000:03d} "
        out = bytearray()
        for line in data.splitlines(keepends=True):
            if self._at_start:
                out += stamp.encode()
            out += line
            self._at_start = line.endswith((b"\n", b"\r"))
        return bytes(out)
