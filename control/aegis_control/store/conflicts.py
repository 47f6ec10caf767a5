"""
Rows that are added unless they are there, decided by the database.

Looking first and adding then is a race on PostgreSQL, where transactions run side by side: the
second of two would fail with its whole transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from sqlalchemy import Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection


async def add_unless_there(conn: AsyncConnection, table: Table, row: Mapping[str, Any]) -> bool:
    """
    Add `row`; False when there is one with its key.

    Who is adding the same row just now is waited for until he commits.
    """
    added = await conn.execute(_unless_there(conn.dialect.name, table), dict(row))
    return added.rowcount > 0


@lru_cache
def _unless_there(dialect: str, table: Table) -> sqlite.Insert | postgresql.Insert:
    insert = sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)
    return insert.on_conflict_do_nothing()
