"""
Whose turn it is among the associations of an event loop.

A burst takes some tenth of a millisecond. If everyone who has one went at once, 32 streams would
make a keystroke wait for 32 of them each time; so one goes in each pass of the loop, in the order
in which they asked. What is small does not ask.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final
from weakref import WeakKeyDictionary

LIGHT_BYTES: Final = 4 * 1024
"""So much goes without a turn."""

_OF_LOOP: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, Turns]] = WeakKeyDictionary()


class Turns:
    """Of one event loop; `of_this_loop` gives it. Whoever asks has one wish at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._call_soon = loop.call_soon
        self._create_future = loop.create_future
        self._waiting: deque[Callable[[], None]] = deque()
        self._taken = False

    def do(self, work: Callable[[], None]) -> None:
        """Do `work`, now or in the pass that it has to itself."""
        if self._taken:
            self._waiting.append(work)
        else:
            self._take()
            work()

    async def mine(self) -> None:
        """Return when it is the caller's turn."""
        if not self._taken:
            self._take()
            return
        came: asyncio.Future[None] = self._create_future()
        self._waiting.append(partial(_tell, came))
        await came

    def _take(self) -> None:
        self._taken = True
        self._call_soon(self._next)

    def _next(self) -> None:
        self._taken = False
        if self._waiting:
            self._take()
            self._waiting.popleft()()


def _tell(came: asyncio.Future[None]) -> None:
    if not came.done():
        came.set_result(None)


def of_this_loop() -> Turns:
    loop = asyncio.get_running_loop()
    found = _OF_LOOP.get(loop)
    if found is None:
        found = _OF_LOOP[loop] = Turns(loop)
    return found
