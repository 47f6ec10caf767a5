"""
Whether the store works, as the transactions on it went: a heartbeat writes every two seconds.

A transaction that the store failed is trouble; one that was written ends it. A damaged file is
trouble until control is started anew: what can still be read of it proves nothing.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError

from aegis_control.log import get_logger

log = get_logger("store")

_OURS: Final = (DataError, IntegrityError, ProgrammingError)
"""What says nothing of the store: a statement of ours was wrong, or came second."""

_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Wellness:
    """trouble: what is wrong with the store, in its own words; None: nothing."""

    def __init__(self) -> None:
        self.trouble: str | None = None
        self._damaged = False

    def failed(self, exc: DBAPIError) -> None:
        """A transaction ended like this."""
        if isinstance(exc, _OURS):
            return
        code = getattr(exc.orig, "sqlite_errorcode", None)
        self._damaged |= isinstance(code, int) and code & 0xFF in _DAMAGED
        if self.trouble is None:
            log.error("store.failing", detail=str(exc.orig), damaged=self._damaged)
        self.trouble = str(exc.orig)

    def worked(self) -> None:
        """A transaction was written."""
        if self.trouble is not None and not self._damaged:
            log.info("store.works_again")
            self.trouble = None
