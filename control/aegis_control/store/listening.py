"""
Words from other replicas: LISTEN on a connection of its own, and a slow look at everything besides.

While the connection is gone the bus is told every second that words may have been missed, and at
its return once more; while it is there, four times a minute.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from aegis_control.hub import set_within
from aegis_control.log import get_logger
from aegis_control.store.database import CHANNEL, STEP, Database
from aegis_control.store.engine import make_patient_engine

log = get_logger("bus")

_POLL_S: Final = 15.0
_AGAIN_S: Final = 1.0
_PING_S: Final = 5.0


async def listen(database: Database, stopping: asyncio.Event) -> None:
    """Deliver other replicas' words to `database.bus` until `stopping` is set."""
    if not database.shared:
        return
    engine = make_patient_engine(database.url)
    try:
        while not stopping.is_set():
            try:
                await _connected(engine, database, stopping)
            except (DBAPIError, OSError) as exc:
                detail = str(exc.orig) if isinstance(exc, DBAPIError) else str(exc)
                log.warning("bus.connection_lost", detail=detail)
            if await set_within(stopping, _AGAIN_S):
                return
            database.bus.missed()
    finally:
        await engine.dispose()


async def _connected(engine: AsyncEngine, database: Database, stopping: asyncio.Event) -> None:
    """Listen on one connection; returns or raises when it is lost."""
    over = asyncio.Event()
    async with engine.connect() as conn, asyncio.TaskGroup() as group:
        raw: Any = (await conn.get_raw_connection()).driver_connection
        raw.add_termination_listener(lambda _: over.set())

        def heard(_: Any, __: int, ___: str, payload: str) -> None:
            _hear(database, payload)

        await raw.add_listener(CHANNEL, heard)
        watching = group.create_task(_stop_with(stopping, over), name="bus-stop")
        try:
            log.info("bus.connected")
            database.bus.missed()
            database.hears = True
            while not await set_within(over, _POLL_S):
                async with asyncio.timeout(_PING_S):
                    await conn.exec_driver_sql("SELECT 1")
                    await conn.rollback()
                database.bus.missed()
        finally:
            database.hears = False
            database.bus.missed()
            database.stepped()
            watching.cancel()
            if not raw.is_closed():
                raw.terminate()
    if not stopping.is_set():
        log.warning("bus.connection_lost", detail="the server closed it")


async def _stop_with(stopping: asyncio.Event, over: asyncio.Event) -> None:
    await stopping.wait()
    over.set()


def _hear(database: Database, payload: str) -> None:
    """Deliver one word, unless it is our own: that was delivered at its commit."""
    writer, _, word = payload.partition(" ")
    topic, _, word_id = word.partition(" ")
    if writer != database.replica_id:
        database.bus.deliver([(topic, word_id)])
    elif topic == STEP:
        database.stepped(word_id)
