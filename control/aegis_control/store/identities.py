"""Identities as the store knows them: a row each, which is also the lock on what they ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control.store.tables import identities

_BATCH: Final = 500
"""SQLite takes 32,766 parameters at most, older ones 999."""


async def take_turn(conn: AsyncConnection, identity: str, *, now_s: float) -> None:
    """
    Make the other transactions that take this identity's turn wait until this one ends.

    SQLite has one writer at a time anyway; PostgreSQL locks the row that is updated.
    """
    insert = sqlite.insert if conn.dialect.name == "sqlite" else postgresql.insert
    new = insert(identities).values(id=identity, asked_at=now_s)
    await conn.execute(
        new.on_conflict_do_update(
            index_elements=[identities.c.id], set_={"asked_at": new.excluded.asked_at}
        )
    )


async def asked(conn: AsyncConnection, ids: Sequence[str]) -> Mapping[str, float]:
    """When each of `ids` last asked for a new job; one that never did is not in it."""
    found: dict[str, float] = {}
    for begin in range(0, len(ids), _BATCH):
        some = ids[begin : begin + _BATCH]
        rows = await conn.execute(
            select(identities.c.id, identities.c.asked_at).where(identities.c.id.in_(some))
        )
        found.update((row.id, row.asked_at) for row in rows)
    return found
