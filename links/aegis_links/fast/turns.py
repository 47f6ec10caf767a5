"""
Whose turn it is among the associations of an event loop.

A burst takes some tenth of a millisecond. If everyone who has one went at once, 32 streams would
make a keystroke wait for 32 of them each time; so one goes in each pass of the loop. What is small
does not ask.

Whoever had the last turns goes before those who wait, a few times in a row: what it works with is
still in the processor's caches, where with 32 streams by strict rotation it never is. Then it
goes to the end of the line.
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
IN_A_ROW: Final = 8

_OF_LOOP: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, Turns]] = WeakKeyDictionary()


class Turns:
    """Of one event loop; `of_this_loop` gives it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.create_future = loop.create_future
        self._call_soon = loop.call_soon
        self._line: deque[tuple[Seat, Callable[[], None]]] = deque()
        self._ahead: deque[Callable[[], None]] = deque()
        self._taken = False

    def seat(self) -> Seat:
        """Return a place for one who asks for turns."""
        return Seat(self)

    def take(self) -> bool:
        """Take this pass's turn; tell whether it was free."""
        if self._taken:
            return False
        self._taken = True
        self._call_soon(self._next)
        return True

    def wait(self, seat: Seat, work: Callable[[], None]) -> None:
        """Do `work` in a pass of its own, in the order that the line has."""
        if seat.left > 0:
            seat.left -= 1
            self._ahead.append(work)
        else:
            self._line.append((seat, work))

    def hurry(self, seat: Seat) -> bool:
        """Let `seat` go before the line; tell whether it stood there."""
        for entry in self._line:
            if entry[0] is seat:
                self._line.remove(entry)
                self._ahead.append(entry[1])
                return True
        return False

    def _next(self) -> None:
        self._taken = False
        if self._ahead:
            self.take()
            self._ahead.popleft()()
        elif self._line:
            self.take()
            seat, work = self._line.popleft()
            seat.left, seat.has_hurried = IN_A_ROW - 1, False
            work()


class Seat:
    """
    Of one who asks for turns, with one wish at a time.

    left         how many it still has in a row
    has_hurried  since it last stood at the head of the line
    """

    __slots__ = ("_turns", "has_hurried", "left")

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.left = 0
        self.has_hurried = False

    def do(self, work: Callable[[], None]) -> None:
        """Do `work`, now or in the pass that it has to itself."""
        if self._turns.take():
            work()
        else:
            self._turns.wait(self, work)

    def hurry(self) -> None:
        """Somebody types: do the work that waits before what others stream. Once in each round."""
        if not self.has_hurried:
            self.has_hurried = self._turns.hurry(self)

    async def mine(self) -> None:
        """Return when it is the caller's turn."""
        if self._turns.take():
            return
        came: asyncio.Future[None] = self._turns.create_future()
        self._turns.wait(self, partial(_tell, came))
        await came


def _tell(came: asyncio.Future[None]) -> None:
    if not came.done():
        came.set_result(None)


def of_this_loop() -> Turns:
    loop = asyncio.get_running_loop()
    found = _OF_LOOP.get(loop)
    if found is None:
        found = _OF_LOOP[loop] = Turns(loop)
    return found
