"""The store's clock: where several hosts write times that they compare, one clock must count."""

from __future__ import annotations

import time

from sqlalchemy import Double, cast, func, select
from sqlalchemy.ext.asyncio import AsyncConnection


async def now_s(conn: AsyncConnection) -> float:
    """Unix seconds: PostgreSQL's, or our own where nobody else writes."""
    if conn.dialect.name == "sqlite":
        return time.time()
    statement = select(cast(func.extract("epoch", func.clock_timestamp()), Double))
    return float((await conn.execute(statement)).scalar_one())
