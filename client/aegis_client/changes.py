"""Waiting for facts that others change: look, and look again whenever something moved."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Changes:
    """Whoever changes a fact calls `wake`; whoever waits for one gives `until` a look at it."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, look: Callable[[], T | None]) -> T:
        """Return the first value other than None that `look` finds; the caller sets a limit."""
        while True:
            changed = self._changed
            found = look()
            if found is not None:
                return found
            await changed.wait()
