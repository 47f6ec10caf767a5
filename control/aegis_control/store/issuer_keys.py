"""
The issuer's keys, oldest first: each but the first introduced by the one before it.

A change is told as `issuer`. The private half lies here only where replicas share the database,
and then sealed.
"""

from __future__ import annotations

from dataclasses import dataclass

from aegis_protocol.http_api.issuer import IssuerKey
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control.bus import tell
from aegis_control.store.tables import issuer_keys


@dataclass(frozen=True)
class IssuerKeyRecord:
    """signs_at: from when on it signs, in unix seconds; it is trusted before. sealed: see above."""

    key: IssuerKey
    made_at: float
    signs_at: float
    sealed: bytes | None


async def every(conn: AsyncConnection) -> tuple[IssuerKeyRecord, ...]:
    rows = await conn.execute(select(issuer_keys).order_by(issuer_keys.c.number))
    return tuple(
        IssuerKeyRecord(
            IssuerKey(kid=row.kid, x=row.x, prev_kid=row.prev_kid, sig=row.sig),
            row.made_at,
            row.signs_at,
            row.sealed,
        )
        for row in rows
    )


async def add(
    conn: AsyncConnection, key: IssuerKey, *, now_s: float, signs_at: float, sealed: bytes | None
) -> None:
    await conn.execute(
        insert(issuer_keys).values(
            kid=key.kid,
            x=key.x,
            prev_kid=key.prev_kid,
            sig=key.sig,
            made_at=now_s,
            signs_at=signs_at,
            sealed=sealed,
        )
    )
    await tell(conn, "issuer", key.kid)


async def reseal(conn: AsyncConnection, kid: str, sealed: bytes) -> None:
    await conn.execute(update(issuer_keys).where(issuer_keys.c.kid == kid).values(sealed=sealed))
