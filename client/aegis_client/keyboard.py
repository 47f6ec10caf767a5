"""Keys for a board: stdin as it is typed, until Ctrl-] or its end."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from typing import Final

LEAVE: Final = b"\x1d"
EOLS: Final = {"cr": b"\r", "lf": b"\n", "crlf": b"\r\n"}
_READ_BYTES: Final = 4096


async def keys(leave: asyncio.Event, eol: str = "crlf") -> AsyncIterator[bytes]:
    """
    What is typed, with `eol` for each Enter. Ctrl-] sets `leave` and ends it, as does the end of
    a pipe (which sets nothing). Where stdin can't be waited for, there are no keys.
    """
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    try:
        fd = sys.stdin.fileno()
        loop.add_reader(fd, ready.set)
    except (OSError, ValueError, NotImplementedError):
        return  # no stdin, a plain file, or an event loop that can't (Windows)
    try:
        while True:
            await ready.wait()
            ready.clear()
            data = os.read(fd, _READ_BYTES)
            typed, ctrl_bracket, _ = data.partition(LEAVE)
            if typed:
                yield typed.replace(b"\n", EOLS[eol])
            if ctrl_bracket:
                leave.set()
            if ctrl_bracket or not data:
                return
    finally:
        loop.remove_reader(fd)
