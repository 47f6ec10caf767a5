"""What every replica must have alike: how it is known again, and itself, sealed."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control.store.tables import secrets


@dataclass(frozen=True)
class SecretRecord:
    """mark: an HMAC under the secret, by which a replica knows its own. sealed: see `sealing`."""

    mark: bytes
    sealed: bytes | None


async def get(conn: AsyncConnection, name: str) -> SecretRecord | None:
    row = (await conn.execute(select(secrets).where(secrets.c.name == name))).one_or_none()
    return None if row is None else SecretRecord(row.mark, row.sealed)


async def add(conn: AsyncConnection, name: str, mark: bytes, sealed: bytes | None) -> None:
    await conn.execute(insert(secrets).values(name=name, mark=mark, sealed=sealed))


async def seal(conn: AsyncConnection, name: str, sealed: bytes) -> None:
    await conn.execute(update(secrets).where(secrets.c.name == name).values(sealed=sealed))
