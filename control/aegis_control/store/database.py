"""
The database: one engine, transactions that read and transactions that write.

SQLite runs in WAL mode and takes its write lock when a writing transaction begins, so that two
of them wait for each other instead of failing half-way; PostgreSQL needs nothing of that.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Any, Final

from aegis_protocol.errors import AegisError
from sqlalchemy import Connection, event, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from aegis_control.bus import Bus, take_words
from aegis_control.store import migrate
from aegis_control.store.tables import keys

_BUSY_TIMEOUT_MS: Final = 5000
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

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator[Database]:
        """Open the database at `url` and bring its tables up to date. StoreUnusable if it can't."""
        try:
            engine = create_async_engine(
                make_url(url), hide_parameters=True, pool_pre_ping=not url.startswith("sqlite")
            )
        except (ArgumentError, ImportError) as exc:
            raise StoreUnusable(
                "AEGIS_DATABASE_URL is no URL of sqlite+aiosqlite or postgresql+asyncpg"
            ) from exc
        if engine.dialect.name == "sqlite":
            _check_sqlite(engine.url.database)
            _prepare_sqlite(engine)
        try:
            database = cls(engine)
            try:
                async with database._writer.begin() as conn:
                    await conn.run_sync(migrate.upgrade)
            except (DBAPIError, OSError) as exc:
                raise StoreUnusable(f"the store can't be opened: {_words(exc)}") from exc
            yield database
        finally:
            await engine.dispose()

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
        async with self._writer.connect() as conn:
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


def _check_sqlite(path: str | None) -> None:
    """Look at the file first: a thread that fails to open it would be left behind."""
    try:
        with closing(sqlite3.connect(path or ":memory:")) as connection:
            connection.execute("PRAGMA schema_version")
    except sqlite3.Error as exc:
        raise StoreUnusable(f"{path} can't be opened: {exc}", path=path) from exc


def _prepare_sqlite(engine: AsyncEngine) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def _connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver must not begin transactions by itself
        try:
            _set_up(connection)
        except BaseException:
            connection.close()  # nobody else would: its thread would stay
            raise

    @event.listens_for(engine.sync_engine, "begin")
    def _begun(connection: Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _set_up(connection: Any) -> None:
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=NORMAL",
        "foreign_keys=ON",
        f"busy_timeout={_BUSY_TIMEOUT_MS}",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _words(exc: Exception) -> str:
    return str(exc.orig) if isinstance(exc, DBAPIError) else str(exc)
