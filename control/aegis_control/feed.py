"""
The newest of `GET /events`, read from the store once for all who listen here.

A listener has a cursor and no queue: it takes what comes after its cursor from the newest events,
which are kept in memory once for all, or from the store when it is further behind. So one that
reads slowly costs nothing but its connection.
While nobody listens nothing is read.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from sqlalchemy.exc import DBAPIError

from aegis_control.hub import set_within
from aegis_control.log import get_logger
from aegis_control.store import fleet_events
from aegis_control.store.announcing import TOPIC
from aegis_control.store.database import Database
from aegis_control.store.fleet_events import Announced

log = get_logger("events")

KEPT: Final = 2048
"""Events in memory."""
BATCH: Final = 256

_LOOK_S: Final = 5.0
"""How often the store is read without a word of news."""
_AFTER_TROUBLE_S: Final = 1.0


class Feed:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._told: list[Announced] = []
        self._since = self._head = -1
        """All that came after the one, up to the other, is in memory."""
        self._news = asyncio.Event()
        self._listeners: set[asyncio.Event] = set()
        database.bus.subscribe(TOPIC, lambda _: self._told_of_news())

    @property
    def listening(self) -> int:
        return len(self._listeners)

    async def run(self, stopping: asyncio.Event) -> None:
        """Read what is announced until `stopping` is set (and `wake` called)."""
        follows = False
        while not stopping.is_set():
            self._news.clear()
            try:
                if not self._listeners:
                    follows = False
                elif follows:
                    await self._read()
                else:
                    await self._begin()
                    follows = True
            except DBAPIError as exc:
                log.error("store.failed", detail=str(exc.orig))  # noqa: TRY400
                await set_within(stopping, _AFTER_TROUBLE_S)
                self._news.set()
            await set_within(self._news, _LOOK_S)

    def wake(self) -> None:
        """Have everybody look: the loop, and all who listen."""
        self._news.set()
        self._wake_listeners()

    @contextmanager
    def listen(self) -> Iterator[asyncio.Event]:
        """Yield an event that is set at all news; clear it before `after`."""
        event = asyncio.Event()
        self._listeners.add(event)
        self._news.set()
        try:
            yield event
        finally:
            self._listeners.discard(event)

    async def head(self) -> int:
        """The id of the newest event there is."""
        async with self._database.read() as conn:
            _, newest = await fleet_events.bounds(conn)
        return newest

    async def after(self, cursor: int) -> Sequence[Announced] | None:
        """
        The next events after `cursor`, `BATCH` at most; nothing when there is none yet.

        None when what came after it is not kept any more, and for a cursor from after the newest
        event: that is of another store.
        """
        if self._since <= cursor <= self._head:
            first = bisect_right(self._told, cursor, key=lambda told: told.id)
            return self._told[first : first + BATCH]
        async with self._database.read() as conn:
            oldest, newest = await fleet_events.bounds(conn)
            if cursor > newest or cursor < oldest - 1:
                return None
            return await fleet_events.after(conn, cursor, limit=BATCH)

    def _told_of_news(self) -> None:
        if self._listeners:
            self._news.set()

    def _wake_listeners(self) -> None:
        for event in self._listeners:
            event.set()

    async def _begin(self) -> None:
        """Keep what comes from now on; what came before is in the store for who looks for it."""
        self._told, self._since = [], await self.head()
        self._head = self._since
        self._wake_listeners()

    async def _read(self) -> None:
        while True:
            async with self._database.read() as conn:
                found = await fleet_events.after(conn, self._head, limit=BATCH)
            if not found:
                return
            self._told += found
            self._head = found[-1].id
            if len(self._told) > 2 * KEPT:
                self._since = self._told[-KEPT - 1].id
                del self._told[:-KEPT]
            self._wake_listeners()
            if len(found) < BATCH:
                return
