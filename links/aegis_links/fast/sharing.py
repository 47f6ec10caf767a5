"""
How many associations of this process have something on their way. They share its event loop: what
is on its way for all of them is what a keystroke of one waits behind.
"""

from __future__ import annotations

from typing import Final
from weakref import WeakSet

_BUSY: Final[WeakSet[object]] = WeakSet()


class Share:
    """One association's; `busy` when it has something on its way, `idle` when all has arrived."""

    __slots__ = ("__weakref__", "_is_busy")

    def __init__(self) -> None:
        self._is_busy = False

    def busy(self) -> None:
        if not self._is_busy:
            self._is_busy = True
            _BUSY.add(self)

    def idle(self) -> None:
        if self._is_busy:
            self._is_busy = False
            _BUSY.discard(self)


def sharers() -> int:
    """At least one: whoever asks."""
    return len(_BUSY) or 1
