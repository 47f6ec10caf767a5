"""
Rows that are looked at all the time, kept in memory and read again when the bus tells of them.

A grant looks at every agent and at every open job; with a thousand agents, reading them takes a
hundred times longer than what has changed since. What is decided by a mirror is checked by the
transaction that carries it out, as the store may be one commit further on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from types import MappingProxyType
from typing import Final, Generic, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control.bus import EVERYTHING
from aegis_control.store.database import Database

_MOST_IDS: Final = 500
"""With more of them all rows are read: a statement takes only so many parameters."""

Record = TypeVar("Record")

Read = Callable[[AsyncConnection, Collection[str] | None], Awaitable[Mapping[str, Record]]]
"""Returns the rows of these ids that belong into the mirror, by id; None: all that do."""


class Mirror(Generic[Record]):
    """
    The rows that `read` gives, by id.

    topic  every change of a row is told on it, with the row's id, in the change's transaction
    """

    def __init__(self, database: Database, topic: str, read: Read[Record]) -> None:
        self._database = database
        self._read = read
        self._rows: dict[str, Record] = {}
        self._stale: set[str] = {EVERYTHING}
        self.version = 0
        """Another one whenever rows were read."""
        self._refreshing = asyncio.Lock()
        database.bus.subscribe(topic, self._stale_add)

    async def now(self) -> Mapping[str, Record]:
        """
        Return the rows as of every word that was heard before this call.

        The same mapping each time, changed by later calls: don't keep it over an await. A row that
        did not change is the same object.
        """
        if self._stale or self._refreshing.locked():
            async with self._refreshing:
                await self._refresh()
        return MappingProxyType(self._rows)

    async def _refresh(self) -> None:
        stale, self._stale = self._stale, set()
        if not stale:
            return
        wanted = None if EVERYTHING in stale or len(stale) > _MOST_IDS else stale
        try:
            # a transaction of its own: one that began before the word would see what was before
            async with self._database.read() as conn:
                found = await self._read(conn, wanted)
        except BaseException:
            self._stale |= stale
            raise
        if wanted is None:
            self._rows.clear()
        else:
            for row_id in wanted:
                self._rows.pop(row_id, None)
        self._rows.update(found)
        self.version += 1

    def _stale_add(self, row_id: str) -> None:
        self._stale.add(row_id)
