"""Repeated requests: which job an identity's Idempotency-Key stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control.store.tables import idempotency

LIFE_S: Final = 24 * 3600


@dataclass(frozen=True)
class Repeat:
    body_digest: bytes
    job_id: str


async def find(conn: AsyncConnection, identity: str, key: str, *, now_s: float) -> Repeat | None:
    """What this identity asked under `key` within the last 24 hours."""
    statement = select(idempotency.c.body_digest, idempotency.c.job_id).where(
        idempotency.c.identity == identity,
        idempotency.c.key == key,
        idempotency.c.at > now_s - LIFE_S,
    )
    row = (await conn.execute(statement)).one_or_none()
    return None if row is None else Repeat(row.body_digest, row.job_id)


async def keep(
    conn: AsyncConnection, identity: str, key: str, body_digest: bytes, job_id: str, *, now_s: float
) -> None:
    """Note the first request under `key`; one that is too old to count is replaced."""
    known = (idempotency.c.identity == identity) & (idempotency.c.key == key)
    await conn.execute(delete(idempotency).where(known))
    await conn.execute(
        insert(idempotency).values(
            identity=identity, key=key, body_digest=body_digest, job_id=job_id, at=now_s
        )
    )


async def forget(conn: AsyncConnection, *, now_s: float) -> int:
    """Delete what is older than 24 hours; returns how many."""
    statement = delete(idempotency).where(idempotency.c.at <= now_s - LIFE_S)
    return (await conn.execute(statement)).rowcount
