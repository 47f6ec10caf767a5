"""
Locks for a transaction: who has one is alone with it until he commits, on every replica.

PostgreSQL has advisory locks for that. SQLite has one writer at a time anyway.
"""

from __future__ import annotations

from enum import IntEnum

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


class Lock(IntEnum):
    """Numbers of our own, far from what others in the same database may use."""

    EVENTS = 0x6165_6769_0001
    AUDIT = 0x6165_6769_0002
    REVOCATIONS = 0x6165_6769_0003
    AGENT_NAMES = 0x6165_6769_0004


async def locked(conn: AsyncConnection, lock: Lock) -> None:
    """Wait for `lock`, and hold it until the transaction ends."""
    if conn.dialect.name == "postgresql":
        await conn.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": int(lock)})
