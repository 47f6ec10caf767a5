"""
SQLite inside the event loop: what SQLAlchemy's aiosqlite dialect asks of a driver, with no thread.

A statement of ours takes 10 to 100 microseconds; to hand it to a thread and back takes longer, and
one transaction has ten. So they run where they are called. What may wait does not block the loop:
a lock that another process has is asked for again and again, with pauses, and the log is written
back into the database (the only part that waits for the disk) by a thread, see `checkpoints`.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

BUSY_LIMIT_S: Final = 5.0
"""How long another process may have the lock before the statement fails."""

_BUSY_PAUSE_S: Final = 0.005
_CHECKPOINT_EVERY_S: Final = 2.0
_CHECKPOINT_BYTES: Final = 1 << 20
_PAGES_WITHOUT_THREAD: Final = 32_768
"""128 MiB of log: SQLite writes it back by itself then, should the thread not have done so."""

Result = TypeVar("Result")


async def connect(path: str) -> LoopConnection:
    """Open the database at `path`; transactions begin when a statement says so."""
    connection = sqlite3.connect(path, timeout=0, isolation_level=None)
    try:
        for pragma in (
            "journal_mode=WAL",
            "synchronous=NORMAL",
            "foreign_keys=ON",
            f"wal_autocheckpoint={_PAGES_WITHOUT_THREAD}",
        ):
            await _unlocked(partial(connection.execute, f"PRAGMA {pragma}"))
    except BaseException:
        connection.close()
        raise
    return LoopConnection(connection)


class LoopConnection:
    """The part of aiosqlite.Connection that the dialect uses."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection: sqlite3.Connection | None = connection  # the dialect looks at it

    @property
    def isolation_level(self) -> str | None:
        return self._open.isolation_level

    async def begin(self, *, writes: bool) -> None:
        """Begin a transaction; one that writes takes the lock at once."""
        sql = "BEGIN IMMEDIATE" if writes else "BEGIN"
        await _unlocked(partial(self._open.execute, sql))

    def cursor(self) -> LoopCursor:
        return LoopCursor(self._open.cursor())

    async def commit(self) -> None:
        await _unlocked(self._open.commit)

    async def rollback(self) -> None:
        self._open.rollback()

    async def create_function(self, *args: Any, **kwargs: Any) -> None:
        self._open.create_function(*args, **kwargs)

    async def close(self) -> None:
        self.stop()

    def stop(self) -> None:
        """Close at once, from wherever the pool lets go of it."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @property
    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            raise ValueError("Connection closed")  # the words by which the dialect knows it
        return self._connection


class LoopCursor:
    """The part of aiosqlite.Cursor that the dialect uses."""

    def __init__(self, cursor: sqlite3.Cursor) -> None:
        self._cursor = cursor
        self.arraysize = cursor.arraysize

    @property
    def description(self) -> Any:
        return self._cursor.description

    @property
    def rowcount(self) -> int:
        return self._cursor.rowcount

    @property
    def lastrowid(self) -> int | None:
        return self._cursor.lastrowid

    async def __aenter__(self) -> LoopCursor:
        return self

    async def execute(self, sql: str, parameters: Iterable[Any] = ()) -> LoopCursor:
        given = tuple(parameters)
        await _unlocked(lambda: self._cursor.execute(sql, given))
        return self

    async def executemany(self, sql: str, parameters: Sequence[Sequence[Any]]) -> LoopCursor:
        self._cursor.executemany(sql, parameters)
        return self

    async def fetchone(self) -> Any:
        return self._cursor.fetchone()

    async def fetchmany(self, size: int | None = None) -> list[Any]:
        return self._cursor.fetchmany(self.arraysize if size is None else size)

    async def fetchall(self) -> list[Any]:
        return self._cursor.fetchall()

    async def close(self) -> None:
        self._cursor.close()


@asynccontextmanager
async def checkpoints(path: str) -> AsyncIterator[None]:
    """While the block lasts, write the log of the database at `path` back into it, in a thread."""

    async def go_on() -> None:
        log = Path(f"{path}-wal")
        while True:
            await asyncio.sleep(_CHECKPOINT_EVERY_S)
            await asyncio.to_thread(_checkpoint, path, log)

    task = asyncio.create_task(go_on(), name="sqlite-checkpoints")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def flush(path: str) -> None:
    """
    Return when what was committed to the database at `path` is on the disk: commits are in its log
    until a checkpoint, which flushes too, has written them back. Raises OSError.
    """
    for file in (f"{path}-wal", Path(path).parent):  # the folder: the log may be new in it
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _checkpoint(path: str, log: Path) -> None:
    """Nothing is lost when it can't be done: the log stays, and the statements themselves fail."""
    try:
        if log.stat().st_size < _CHECKPOINT_BYTES:
            return
        with closing(sqlite3.connect(path, timeout=0)) as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    except (OSError, sqlite3.Error):
        return


async def _unlocked(work: Callable[[], Result]) -> Result:
    """Do `work`, again while another process has the lock; its own error after BUSY_LIMIT_S."""
    until_s: float | None = None
    while True:
        try:
            return work()
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            now_s = time.monotonic()
            until_s = now_s + BUSY_LIMIT_S if until_s is None else until_s
            if now_s >= until_s:
                raise
        await asyncio.sleep(_BUSY_PAUSE_S)
