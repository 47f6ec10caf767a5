"""Identities as the store knows them: a row each, with when they last asked for a job."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control.store.tables import identities

_IN_SQLITE: Final = sqlite.insert(identities)
_IN_POSTGRESQL: Final = postgresql.insert(identities)
_KEY: Final = [identities.c.id]
_UPSERT: Final = {
    "sqlite": _IN_SQLITE.on_conflict_do_update(
        index_elements=_KEY, set_={"asked_at": _IN_SQLITE.excluded.asked_at}
    ),
    "postgresql": _IN_POSTGRESQL.on_conflict_do_update(
        index_elements=_KEY, set_={"asked_at": _IN_POSTGRESQL.excluded.asked_at}
    ),
}

_BATCH: Final = 500
"""SQLite takes 32,766 parameters at most, older ones 999."""


async def note_asked(conn: AsyncConnection, ids: Collection[str], *, now_s: float) -> None:
    """Each of `ids` asked for a new job just now."""
    upsert = _UPSERT[conn.dialect.name]
    await conn.execute(upsert, [{"id": identity, "asked_at": now_s} for identity in sorted(ids)])


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
