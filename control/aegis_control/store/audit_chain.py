"""
The audit's chain in the store: numbering and hashing, signatures, pruning.

All of it under one lock, so that of several replicas one does it at a time. Sealed records are
never written again: triggers of the database refuse it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from aegis_protocol.audit import GENESIS, AuditHead, AuditRecord
from aegis_protocol.signing import b64, unb64
from sqlalchemy import Row, bindparam, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control.store.locks import Lock, locked
from aegis_control.store.tables import audit, audit_heads

KEEP_HEADS: Final = 100

Kind = Literal["head", "checkpoint"]


@dataclass(frozen=True)
class Sealed:
    """The end of the chain. count: how many records were added to it just now."""

    seq: int
    hash: str
    count: int = 0


async def seal(conn: AsyncConnection, *, limit: int) -> Sealed:
    """Number and chain the records that are not yet, `limit` at most; returns the chain's end."""
    await locked(conn, Lock.AUDIT)
    last = await end(conn)
    waiting = select(audit).where(audit.c.seq.is_(None)).order_by(audit.c.id).limit(limit)
    seq, before, sealed = last.seq, last.hash, []
    for row in await conn.execute(waiting):
        seq += 1
        before = record_of(row, seq=seq, digest=GENESIS).expected_hash(before)
        sealed.append({"row_id": row.id, "row_seq": seq, "row_hash": bytes.fromhex(before)})
    if sealed:
        statement = (
            update(audit)
            .where(audit.c.id == bindparam("row_id"), audit.c.seq.is_(None))
            .values(seq=bindparam("row_seq"), hash=bindparam("row_hash"))
        )
        await conn.execute(statement, sealed)
    return Sealed(seq, before, len(sealed))


async def waiting(conn: AsyncConnection) -> tuple[int, float | None]:
    """How many records are not sealed yet, and the oldest one's time."""
    statement = select(func.count(), func.min(audit.c.at)).where(audit.c.seq.is_(None))
    count, since = (await conn.execute(statement)).one()
    return count, since


async def add_head(conn: AsyncConnection, head: AuditHead, x: bytes) -> None:
    """Keep a signature, and of the older heads only the newest."""
    await conn.execute(
        insert(audit_heads).values(
            kind=head.kind,
            seq=head.seq,
            hash=bytes.fromhex(head.hash),
            at=head.at,
            kid=head.kid,
            x=x,
            sig=unb64(head.sig),
        )
    )
    newest = (
        select(audit_heads.c.id)
        .where(audit_heads.c.kind == head.kind)
        .order_by(audit_heads.c.id.desc())
        .limit(1 if head.kind == "checkpoint" else KEEP_HEADS)
    )
    kept = list((await conn.execute(newest)).scalars())
    await conn.execute(
        delete(audit_heads).where(audit_heads.c.kind == head.kind, audit_heads.c.id.not_in(kept))
    )


async def heads(conn: AsyncConnection, kind: Kind, *, limit: int) -> tuple[AuditHead, ...]:
    """The newest signatures of that kind, oldest first."""
    statement = (
        select(audit_heads)
        .where(audit_heads.c.kind == kind)
        .order_by(audit_heads.c.id.desc())
        .limit(limit)
    )
    return tuple(_head(row) for row in reversed((await conn.execute(statement)).all()))


async def signers(conn: AsyncConnection) -> Mapping[str, bytes]:
    """The public keys that signed what is kept, by key id."""
    statement = select(audit_heads.c.kid, audit_heads.c.x).distinct()
    return {row.kid: row.x for row in await conn.execute(statement)}


async def prunable(conn: AsyncConnection, *, before_s: float, limit: int) -> Sealed | None:
    """
    The last record of those at the chain's beginning that are all older than `before_s`, `limit`
    of them at most; None when there is none.
    """
    first = (await conn.execute(select(func.min(audit.c.seq)))).scalar_one()
    if first is None:
        return None
    young = select(func.min(audit.c.seq)).where(audit.c.seq.is_not(None), audit.c.at >= before_s)
    stop = (await conn.execute(young)).scalar_one()
    last = first + limit - 1 if stop is None else min(stop - 1, first + limit - 1)
    statement = (
        select(audit.c.seq, audit.c.hash)
        .where(audit.c.seq <= last)
        .order_by(audit.c.seq.desc())
        .limit(1)
    )
    row = (await conn.execute(statement)).one_or_none()
    return None if row is None else Sealed(row.seq, row.hash.hex())


async def prune(conn: AsyncConnection, checkpoint: AuditHead, x: bytes) -> int:
    """Drop the records up to `checkpoint`, which takes their place; returns how many."""
    await add_head(conn, checkpoint, x)
    return (await conn.execute(delete(audit).where(audit.c.seq <= checkpoint.seq))).rowcount


def record_of(row: Row[Any], *, seq: int | None = None, digest: str | None = None) -> AuditRecord:
    """A row as operators get it; `seq` and `digest` where it has none yet."""
    return AuditRecord(
        seq=row.seq if seq is None else seq,
        id=row.id,
        at=row.at,
        what=row.what,
        who=row.who,
        source=row.source,
        decision=row.decision,
        rule=row.rule,
        job_id=row.job_id,
        agent_id=row.agent_id,
        board_id=row.board_id,
        artifact_sha256=row.artifact_sha256,
        outcome=row.outcome,
        facts=row.facts,
        hash=row.hash.hex() if digest is None else digest,
    )


async def end(conn: AsyncConnection) -> Sealed:
    """The newest record of the chain, or the checkpoint where it goes on."""
    newest = (
        select(audit.c.seq, audit.c.hash)
        .where(audit.c.seq.is_not(None))
        .order_by(audit.c.seq.desc())
        .limit(1)
    )
    row = (await conn.execute(newest)).one_or_none()
    if row is not None:
        return Sealed(row.seq, row.hash.hex())
    for checkpoint in await heads(conn, "checkpoint", limit=1):
        return Sealed(checkpoint.seq, checkpoint.hash)
    return Sealed(0, GENESIS)


def _head(row: Row[Any]) -> AuditHead:
    return AuditHead(
        kind=row.kind,
        seq=row.seq,
        hash=row.hash.hex(),
        at=int(row.at),
        kid=row.kid,
        sig=b64(row.sig),
    )
