"""API keys and enrolment tokens. Of a secret only its keyed digest is kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aegis_protocol.actions import Role
from sqlalchemy import Row, bindparam, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control.bus import tell
from aegis_control.store.tables import enroll_tokens, keys


@dataclass(frozen=True)
class KeyRecord:
    id: str
    digest: bytes
    role: Role
    name: str
    limits: Mapping[str, Sequence[str]]
    created_at: float
    expires_at: float | None
    revoked_at: float | None


@dataclass(frozen=True)
class TokenRecord:
    """An enrolment token. name: the only agent that may use it; id: empty for the oldest ones."""

    id: str
    name: str | None
    created_at: float
    expires_at: float
    used_by: str | None
    used_at: float | None
    revoked_at: float | None


async def add(
    conn: AsyncConnection,
    key_id: str,
    digest: bytes,
    role: Role,
    *,
    name: str,
    limits: Mapping[str, Sequence[str]],
    now_s: float,
    expires_at: float | None,
) -> None:
    await conn.execute(
        insert(keys).values(
            id=key_id,
            digest=digest,
            role=role,
            name=name,
            limits={kind: list(words) for kind, words in limits.items()},
            created_at=now_s,
            expires_at=expires_at,
        )
    )


_ONE: Final = select(keys).where(keys.c.id == bindparam("key"))


async def get(conn: AsyncConnection, key_id: str) -> KeyRecord | None:
    row = (await conn.execute(_ONE, {"key": key_id})).one_or_none()
    return None if row is None else _record(row)


async def every(conn: AsyncConnection, *, prefix: str = "") -> tuple[KeyRecord, ...]:
    """The keys whose ids begin with `prefix`, oldest first."""
    statement = select(keys).order_by(keys.c.created_at, keys.c.id)
    if prefix:
        statement = statement.where(keys.c.id.startswith(prefix, autoescape=True))
    rows = await conn.execute(statement)
    return tuple(_record(row) for row in rows)


async def count(conn: AsyncConnection) -> int:
    return int((await conn.execute(select(func.count()).select_from(keys))).scalar_one())


async def revoke(conn: AsyncConnection, key_id: str, *, now_s: float) -> bool:
    """Take a key back; False when there is none of that id. Once more changes nothing."""
    await conn.execute(
        update(keys)
        .where(keys.c.id == key_id, keys.c.revoked_at.is_(None))
        .values(revoked_at=now_s)
    )
    await tell(conn, "keys", key_id)
    return (
        await conn.execute(select(keys.c.id).where(keys.c.id == key_id))
    ).one_or_none() is not None


async def revoked_among(conn: AsyncConnection, key_ids: Collection[str]) -> frozenset[str]:
    """Those of `key_ids` that were revoked."""
    found = await conn.execute(
        select(keys.c.id).where(keys.c.id.in_(key_ids), keys.c.revoked_at.is_not(None))
    )
    return frozenset(found.scalars())


async def add_token(
    conn: AsyncConnection,
    token_id: str,
    digest: bytes,
    *,
    name: str | None,
    now_s: float,
    expires_at: float,
) -> None:
    await conn.execute(
        insert(enroll_tokens).values(
            id=token_id, digest=digest, name=name, created_at=now_s, expires_at=expires_at
        )
    )


async def tokens(conn: AsyncConnection, *, digest: bytes | None = None) -> tuple[TokenRecord, ...]:
    """The enrolment tokens, oldest first; or the one that has this digest."""
    statement = select(enroll_tokens).order_by(enroll_tokens.c.created_at, enroll_tokens.c.id)
    if digest is not None:
        statement = statement.where(enroll_tokens.c.digest == digest)
    return tuple(
        TokenRecord(
            id=row.id,
            name=row.name,
            created_at=row.created_at,
            expires_at=row.expires_at,
            used_by=row.used_by,
            used_at=row.used_at,
            revoked_at=row.revoked_at,
        )
        for row in await conn.execute(statement)
    )


async def revoke_token(conn: AsyncConnection, token_id: str, *, now_s: float) -> bool:
    """Take a token back; False when there is none of that id. Once more changes nothing."""
    if not token_id:
        return False
    statement = (
        update(enroll_tokens)
        .where(enroll_tokens.c.id == token_id)
        .values(revoked_at=func.coalesce(enroll_tokens.c.revoked_at, now_s))
    )
    return (await conn.execute(statement)).rowcount > 0


async def use_token(
    conn: AsyncConnection, digest: bytes, agent_id: str, name: str, *, now_s: float
) -> bool:
    """
    Use a token up for `agent_id`; tells whether it was good.

    The agent that used it may repeat itself until it expires, since an answer can be lost.
    """
    statement = (
        update(enroll_tokens)
        .where(
            enroll_tokens.c.digest == digest,
            enroll_tokens.c.expires_at > now_s,
            enroll_tokens.c.revoked_at.is_(None),
            or_(enroll_tokens.c.used_by.is_(None), enroll_tokens.c.used_by == agent_id),
            or_(enroll_tokens.c.name.is_(None), enroll_tokens.c.name == name),
        )
        .values(used_by=agent_id, used_at=now_s)
    )
    return (await conn.execute(statement)).rowcount > 0


async def forget_tokens(conn: AsyncConnection, *, before_s: float) -> int:
    """Delete tokens that expired before `before_s`; returns how many."""
    statement = delete(enroll_tokens).where(enroll_tokens.c.expires_at < before_s)
    return (await conn.execute(statement)).rowcount


def _record(row: Row[Any]) -> KeyRecord:
    return KeyRecord(
        id=row.id,
        digest=row.digest,
        role=Role(row.role),
        name=row.name,
        limits=row.limits,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
