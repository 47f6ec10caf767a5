"""Work that is due at agents: of which of them it was told, and the loop that does it in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from sqlalchemy.exc import DBAPIError

from aegis_control.bus import EVERYTHING
from aegis_control.hub import set_within

_AGAIN_S: Final = 1.0


class AgentRounds:
    """
    work        called with ids of agents; `EVERYTHING` among them: all. Not with two at a time
    on_failure  called when the store failed it: the same agents are due again a second later
    look_s      without a word for so long, all are due
    """

    def __init__(
        self,
        work: Callable[[set[str]], Awaitable[None]],
        *,
        on_failure: Callable[[DBAPIError], None],
        look_s: float,
    ) -> None:
        self._work = work
        self._on_failure = on_failure
        self._look_s = look_s
        self._told: set[str] = set()
        self._changed = asyncio.Event()

    def tell(self, agent_id: str) -> None:
        """Have `run` see to this agent."""
        self._told.add(agent_id)
        self._changed.set()

    def wake(self) -> None:
        """Have `run` look whether it is to stop."""
        self._changed.set()

    async def run(self, stopping: asyncio.Event) -> None:
        """Work until `stopping` is set and `tell` or `wake` after it."""
        while not stopping.is_set():
            if not await set_within(self._changed, self._look_s):
                self._told.add(EVERYTHING)
            self._changed.clear()
            told, self._told = self._told, set()
            try:
                await self._work(told)
            except DBAPIError as exc:
                self._on_failure(exc)
                await set_within(stopping, _AGAIN_S)
                self._told |= told
                self._changed.set()
