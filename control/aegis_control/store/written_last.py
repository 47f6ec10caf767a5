"""
Rows that nobody reads before the commit: written at the transaction's end, all those of a table by
one statement.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Insert
from sqlalchemy.ext.asyncio import AsyncConnection

_ROWS: Final = "aegis_written_last"


def add_last(conn: AsyncConnection, statement: Insert, row: Mapping[str, Any]) -> None:
    """Have `row` inserted by `statement` before the transaction is committed."""
    conn.info.setdefault(_ROWS, {}).setdefault(statement, []).append(row)


async def write_last(conn: AsyncConnection) -> None:
    """Write what was added in this transaction."""
    for statement, rows in conn.info.pop(_ROWS, {}).items():
        await conn.execute(statement, rows)


def forget_last(conn: AsyncConnection) -> None:
    """Drop what a transaction that was rolled back on this connection has left."""
    conn.info.pop(_ROWS, None)
