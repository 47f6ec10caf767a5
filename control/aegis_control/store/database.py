"""
The database: one engine, transactions that read and transactions that write.

SQLite runs in WAL mode and takes its write lock when a writing transaction begins, so that two
of them wait for each other instead of failing half-way: those of this process in a queue, those of
others by asking again. PostgreSQL needs nothing of that.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, nullcontext
from typing import Final

from aegis_protocol.errors import AegisError
from sqlalchemy import Connection, event, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from aegis_control.bus import Bus, take_words
from aegis_control.store import migrate, sqlite_driver
from aegis_control.store.tables import keys

_SQLITE_CONNECTIONS: Final = 32
"""Transactions that hold one at once; more of them open one each time."""
_WRITES: Final = "aegis_writes"


class StoreUnusable(AegisError):
    code = "store.unusable"
    remedy = "Check AEGIS_DATABASE_URL, the disk, and that control's user may write there."


class Database:
    """`open` it, then `read()` and `write()` are transactions; `bus` tells of what they changed."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self.bus: Final = Bus()
        self._writer: AsyncEngine = engine.execution_options(**{_WRITES: True})
        is_sqlite = engine.dialect.name == "sqlite"
        self._turn: asyncio.Lock | nullcontext[None] = (
            asyncio.Lock() if is_sqlite else nullcontext()
        )

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator[Database]:
        """Open the database at `url` and bring its tables up to date. StoreUnusable if it can't."""
        engine = _engine(url)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(engine.dispose)
            database = cls(engine)
            try:
                async with database._writer.begin() as conn:
                    await conn.run_sync(migrate.upgrade)
            except (DBAPIError, OSError) as exc:
                raise StoreUnusable(f"the store can't be opened: {_words(exc)}") from exc
            if engine.dialect.name == "sqlite" and engine.url.database:
                await stack.enter_async_context(sqlite_driver.checkpoints(engine.url.database))
            yield database

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that writes nothing."""
        async with self._engine.connect() as conn:
            yield conn

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """
        A transaction that is committed when the block ends, or rolled back when it raises.

        What was told in it (`bus.tell`) is delivered after the commit.
        """
        async with self._turn, self._writer.connect() as conn:
            take_words(conn)  # of one that was rolled back on this connection
            async with conn.begin():
                yield conn
            words = take_words(conn)
        self.bus.deliver(words)

    async def answers(self) -> bool:
        """Tell whether the database answers, and has our tables."""
        try:
            async with self.read() as conn:
                await conn.execute(select(keys.c.id).limit(1))
        except (DBAPIError, OperationalError, OSError):
            return False
        return True


def _engine(url: str) -> AsyncEngine:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() != "sqlite":
            return create_async_engine(parsed, hide_parameters=True, pool_pre_ping=True)
        path = parsed.database or ":memory:"
        engine = create_async_engine(
            parsed,
            hide_parameters=True,
            async_creator=lambda: sqlite_driver.connect(path),
            pool_size=_SQLITE_CONNECTIONS,
        )
    except (ArgumentError, ImportError) as exc:
        raise StoreUnusable(
            "AEGIS_DATABASE_URL is no URL of sqlite+aiosqlite or postgresql+asyncpg"
        ) from exc
    _check_sqlite(path)

    @event.listens_for(engine.sync_engine, "begin")
    def _begun(connection: Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _check_sqlite(path: str) -> None:
    """Look at the file first: the message is clearer than that of the first transaction."""
    try:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA schema_version")
    except sqlite3.Error as exc:
        raise StoreUnusable(f"{path} can't be opened: {exc}", path=path) from exc


def _words(exc: Exception) -> str:
    return str(exc.orig) if isinstance(exc, DBAPIError) else str(exc)
