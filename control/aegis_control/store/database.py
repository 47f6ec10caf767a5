"""
The database: transactions that read, transactions that write, and who is alone at what.

Whatever keeps a transaction from being made (no connection, no answer in time) is an
OperationalError too, so that `except DBAPIError` means: the store failed.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from typing import Final, Literal

from aegis_protocol.ids import new_id
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from aegis_control.bus import Bus, Word, take_words
from aegis_control.log import get_logger
from aegis_control.store import migrate, sqlite_driver
from aegis_control.store.announcing import forget_announced, write_announced
from aegis_control.store.engine import WRITES, make_engine, make_patient_engine
from aegis_control.store.failures import SchemaNewer, StoreUnusable
from aegis_control.store.migrate import Schema
from aegis_control.store.tables import keys
from aegis_control.store.wellness import Wellness
from aegis_control.store.written_last import forget_last, write_last

__all__ = ["Database", "Schema", "SchemaNewer", "StoreUnusable"]

log = get_logger("bus")

CHANNEL: Final = "aegis"
"""Where replicas tell each other their words: `<replica> <topic> <id>`."""

STEP: Final = "step"
"""The topic of the words by which a replica finds out how far it has heard."""

_STEP_S: Final = 2.0
_ANSWER_S: Final = 3.0
_ALONE: Final = text("SELECT pg_advisory_xact_lock(hashtextextended('aegis.' || :what, 0))")
_UNFLUSHED: Final = text("SET LOCAL synchronous_commit TO off")
"""For a transaction that keeps nothing: its commit need not wait for the disk."""
_NOTIFY: Final = text("SELECT pg_notify(:channel, word) FROM unnest(CAST(:words AS text[])) word")


class Database:
    """
    `open` it, then `read()` and `write()` are transactions; `bus` tells of what they changed.

    shared      whether other processes may be at work on it (PostgreSQL)
    replica_id  who we are among those, as long as we run
    hears       whether their words reach us right now (see `listening`)
    timed       called with `read` or `write` and how long a transaction took, the wait for it
                included
    """

    def __init__(self, engine: AsyncEngine, url: str) -> None:
        self._engine = engine
        self._writing: AsyncEngine = engine.execution_options(**{WRITES: True})
        one_writer = engine.dialect.name == "sqlite"
        # PostgreSQL's statements see what is committed when each begins, in a transaction or not
        self._reading = (
            engine if one_writer else engine.execution_options(isolation_level="AUTOCOMMIT")
        )
        self._turn: asyncio.Lock | nullcontext[None] = (
            asyncio.Lock() if one_writer else nullcontext()
        )
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._steps: dict[str, asyncio.Future[None]] = {}
        self.hears = False
        self.url: Final = url
        self.bus: Final = Bus()
        self.wellness: Final = Wellness()
        self.shared: Final = not one_writer
        self.replica_id: Final = new_id()
        self.timed: Callable[[Literal["read", "write"], float], None] = lambda kind, took_s: None

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator[Database]:
        """
        Open the database at `url` and bring its tables up to date.

        Raises StoreUnusable, SchemaNewer.
        """
        await bring_up_to_date(url)
        async with AsyncExitStack() as stack:
            engine = make_engine(url)
            stack.push_async_callback(engine.dispose)
            if engine.dialect.name == "sqlite" and engine.url.database:
                await stack.enter_async_context(sqlite_driver.checkpoints(engine.url.database))
            yield cls(engine, url)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Read only. With SQLite it is a transaction: all statements see the same."""
        began = time.monotonic()
        async with self._watched(), _connected(self._reading) as conn:
            yield conn
        self.timed("read", time.monotonic() - began)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """
        A transaction that is committed when the block ends, or rolled back when it raises.

        What was told in it (`bus.tell`) is delivered after the commit; also when the wait for its
        answer was cut off, as it may well have been done.
        """
        began = time.monotonic()
        words: tuple[Word, ...] = ()
        try:
            async with self._turn, self._watched(), _connected(self._writing) as conn:
                take_words(conn)  # of one that was rolled back on this connection
                forget_announced(conn)
                forget_last(conn)
                async with conn.begin():
                    yield conn
                    await write_last(conn)
                    await write_announced(conn)
                    words = take_words(conn)
                    await self._tell_others(conn, words)
        finally:
            self.bus.deliver(words)
        self.wellness.worked()
        self.timed("write", time.monotonic() - began)

    @asynccontextmanager
    async def alone(self, what: str) -> AsyncIterator[None]:
        """While the block lasts nobody else, at no replica, is in one of that name."""
        async with self._turns[what]:
            if not self.shared:
                yield
                return
            async with _connected(self._engine) as conn:
                await conn.execute(_ALONE, {"what": what})
                yield

    async def in_step(self) -> None:
        """
        Return when every word of what was committed by now, wherever, has been delivered here.

        Words arrive in the order of their commits: we tell ourselves one and wait for it. Where
        that fails, the bus is told that words may have been missed.
        """
        if not self.shared:
            return
        step = new_id()
        arrived = self._steps[step] = asyncio.get_running_loop().create_future()
        try:
            if self.hears:
                async with self.write() as conn:
                    await conn.execute(_UNFLUSHED)
                    await self._tell_others(conn, ((STEP, step),))
                async with asyncio.timeout(_STEP_S):
                    await arrived
                return
        except TimeoutError:
            log.warning("bus.slow", limit_s=_STEP_S)
        finally:
            del self._steps[step]
        self.bus.missed()

    def stepped(self, step: str | None = None) -> None:
        """What `in_step` waits for has arrived (None: will not arrive)."""
        for waiting, arrived in self._steps.items():
            if not arrived.done() and step in (None, waiting):
                arrived.set_result(None)

    async def on_disk(self) -> None:
        """
        Return when what was committed by now would outlive a power failure.

        PostgreSQL's commits do; SQLite's, which wait for no disk, do so some seconds later by
        themselves. Raises OperationalError.
        """
        if self.shared or not self._engine.url.database:
            return
        async with self._watched():
            try:
                await asyncio.to_thread(sqlite_driver.flush, self._engine.url.database)
            except OSError as exc:
                raise OperationalError(None, None, exc) from exc

    async def answers(self) -> bool:
        """Tell whether the database answers, and takes what we write."""
        try:
            async with asyncio.timeout(_ANSWER_S), self.read() as conn:
                await conn.execute(select(keys.c.id).limit(1))
        except (DBAPIError, TimeoutError):
            return False
        return self.wellness.trouble is None

    @asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        try:
            yield
        except DBAPIError as exc:
            self.wellness.failed(exc)
            raise

    async def _tell_others(self, conn: AsyncConnection, words: tuple[Word, ...]) -> None:
        if self.shared and words:
            told = [f"{self.replica_id} {topic} {word_id}" for topic, word_id in words]
            await conn.execute(_NOTIFY, {"channel": CHANNEL, "words": told})


async def look_at_schema(url: str) -> Schema:
    """Return what the tables at `url` are and lack. Raises StoreUnusable, SchemaNewer."""
    async with _patient(url) as conn:
        return await conn.run_sync(migrate.schema)


async def bring_up_to_date(url: str) -> Schema:
    """
    Run the missing migrations in one transaction; returns what was there before.

    Of several at once the others wait and find it done. Raises StoreUnusable, SchemaNewer.
    """
    async with _patient(url) as conn:
        if conn.dialect.name != "sqlite":
            await conn.execute(_ALONE, {"what": "migrations"})
        return await conn.run_sync(migrate.upgrade)


@asynccontextmanager
async def _patient(url: str) -> AsyncIterator[AsyncConnection]:
    engine = make_patient_engine(url)
    try:
        async with _connected(engine.execution_options(**{WRITES: True})) as conn, conn.begin():
            yield conn
    except DBAPIError as exc:
        raise StoreUnusable(f"the store can't be opened: {exc.orig}") from exc
    finally:
        await engine.dispose()


@asynccontextmanager
async def _connected(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection; what the driver lets through of its own errors is an OperationalError."""
    try:
        async with engine.connect() as conn:
            yield conn
    except (OSError, PoolTimeout) as exc:
        raise OperationalError(None, None, exc) from exc
