"""
One engine per kind of database, and what each needs to be safe.

SQLite runs in WAL mode and takes its write lock when a writing transaction begins, so that two of
them wait for each other instead of failing half-way: those of this process in a queue, those of
others by asking again. PostgreSQL is told to give up on whatever
takes too long, and on a transaction whose owner has vanished, which may hold a lock.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any, Final

from sqlalchemy import URL, Connection, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DisconnectionError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from aegis_control.store import sqlite_driver
from aegis_control.store.failures import StoreUnusable

WRITES: Final = "aegis_writes"
"""The execution option of a connection whose transactions write."""

_SQLITE_CONNECTIONS: Final = 32
"""Transactions that hold one at once; more of them open one each time."""

_CONNECT_S: Final = 5.0
_POOL_WAIT_S: Final = 10.0
_COMMAND_S: Final = 20.0
_KINDS: Final = ("sqlite+aiosqlite", "postgresql+asyncpg")
_SESSION: Final = {
    "application_name": "aegis-control",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "30s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}


def make_engine(url: str) -> AsyncEngine:
    """An engine for ordinary work on the database at `url`. Raises StoreUnusable."""
    parsed = _parsed(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite(parsed)
    engine = create_async_engine(
        parsed,
        hide_parameters=True,
        pool_size=20,
        max_overflow=10,
        pool_timeout=_POOL_WAIT_S,
        connect_args={
            "timeout": _CONNECT_S,
            "command_timeout": _COMMAND_S,
            "server_settings": _SESSION,
        },
    )
    event.listens_for(engine.sync_engine, "checkout")(_check_open)
    return engine


def make_patient_engine(url: str) -> AsyncEngine:
    """
    An engine for what may take long: migrations, and listening. Each use has its own connection.

    Raises StoreUnusable.
    """
    parsed = _parsed(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite(parsed)
    return create_async_engine(
        parsed,
        hide_parameters=True,
        poolclass=NullPool,
        connect_args={"timeout": _CONNECT_S, "server_settings": _SESSION | {"lock_timeout": "60s"}},
    )


def _check_open(connection: Any, record: Any, _: Any) -> None:
    """
    Have the pool replace a connection that the server closed.

    The driver knows without asking; to ask takes three round trips.
    """
    if connection.driver_connection.is_closed():
        raise DisconnectionError("the server closed the connection")


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        parsed = None
    if parsed is None or parsed.drivername not in _KINDS:
        raise StoreUnusable(f"AEGIS_DATABASE_URL is no URL of {' or '.join(_KINDS)}")
    return parsed


def _sqlite(parsed: URL) -> AsyncEngine:
    path = parsed.database or ":memory:"
    _check_sqlite(path)
    engine = create_async_engine(
        parsed,
        hide_parameters=True,
        async_creator=lambda: sqlite_driver.connect(path),
        pool_size=_SQLITE_CONNECTIONS,
    )

    @event.listens_for(engine.sync_engine, "begin")
    def _begun(connection: Connection) -> None:
        writes = connection.get_execution_options().get(WRITES, False)
        # past SQLAlchemy's cursors, which take ten times as long; its errors are put in its words
        try:
            driver: Any = connection.connection.dbapi_connection
            driver.run_async(lambda c: c.begin(writes=writes))
        except sqlite3.Error as exc:
            raise OperationalError(None, None, exc) from exc

    return engine


def _check_sqlite(path: str) -> None:
    """Look at the file first: the message is clearer than that of the first transaction."""
    try:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA schema_version")
    except sqlite3.Error as exc:
        raise StoreUnusable(f"{path} can't be opened: {exc}", path=path) from exc
