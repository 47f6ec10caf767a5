"""Identities as the store knows them: a row each, which is also the lock on what they ask."""

from __future__ import annotations

from sqlalchemy import update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control.store.tables import identities


async def take_turn(conn: AsyncConnection, identity: str, *, now_s: float) -> None:
    """
    Make the other transactions that take this identity's turn wait until this one ends.

    SQLite has one writer at a time anyway; PostgreSQL locks the row that is updated.
    """
    insert = sqlite.insert if conn.dialect.name == "sqlite" else postgresql.insert
    await conn.execute(
        insert(identities).values(id=identity, asked_at=now_s).on_conflict_do_nothing()
    )
    await conn.execute(update(identities).where(identities.c.id == identity).values(asked_at=now_s))
