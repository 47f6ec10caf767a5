"""
The loop that seals the audit, signs its head each minute, and prunes what is old enough.

A head goes to the log as one word (`audit.head_published`): whoever keeps the log elsewhere can
show with it that the audit's tail was cut (`aegis-control audit verify --head`).
"""

from __future__ import annotations

import asyncio
import time
from typing import Final, Literal

from aegis_protocol.audit import AuditHead, AuditPruned, AuditSeal
from aegis_protocol.http_api.issuer import IssuerKey
from aegis_protocol.signing import audit_statement, b64
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from aegis_control.hub import set_within
from aegis_control.issuer import Issuer
from aegis_control.log import get_logger
from aegis_control.store import audit, audit_chain
from aegis_control.store.audit import Act
from aegis_control.store.audit_chain import Sealed
from aegis_control.store.database import Database
from aegis_control.store.locks import Lock, locked

log = get_logger("audit")

HEAD_EVERY_S: Final = 60.0
_GATHER_S: Final = 0.2
"""Acts that come within this time are sealed together."""
_LOOK_S: Final = 5.0
_PRUNE_EVERY_S: Final = 3600.0
_SEAL_BATCH: Final = 500
_PRUNE_BATCH: Final = 5000
_DAY_S: Final = 86_400.0


class Auditor:
    """keep_days: records older than that are pruned; 0 keeps them for ever."""

    def __init__(self, database: Database, issuer: Issuer, *, keep_days: float) -> None:
        self._database = database
        self._issuer = issuer
        self._keep_days = keep_days
        self._wake = asyncio.Event()
        database.bus.subscribe("audit", lambda _: self._wake.set())

    async def run(self, stopping: asyncio.Event) -> None:
        """Work until `stopping` is set (`wake` after it); what is written then is sealed yet."""
        pruned_at = 0.0
        while True:
            last = stopping.is_set()
            self._wake.clear()
            try:
                await self.seal()
                await self._publish(every_s=0.0 if last else HEAD_EVERY_S)
                if self._keep_days and time.monotonic() - pruned_at > _PRUNE_EVERY_S:
                    pruned_at = time.monotonic()
                    await self.prune(before_s=time.time() - self._keep_days * _DAY_S)
            except (DBAPIError, OSError) as exc:
                log.error("audit.seal_failed", detail=str(getattr(exc, "orig", exc)))  # noqa: TRY400
                self._wake.clear()
            if last:
                return
            if not await set_within(self._wake, _LOOK_S):
                continue
            await set_within(stopping, _GATHER_S)

    def wake(self) -> None:
        self._wake.set()

    async def seal(self) -> None:
        """Seal all that is written."""
        async with self._database.read() as conn:
            waiting, _ = await audit_chain.waiting(conn)
        while waiting > 0:
            async with self._database.write() as conn:
                sealed = await audit_chain.seal(conn, limit=_SEAL_BATCH)
            waiting = 0 if sealed.count < _SEAL_BATCH else sealed.count

    async def overview(self) -> AuditSeal:
        """What holds the chain now; all that is written is sealed before."""
        await self.seal()
        async with self._database.read() as conn:
            checkpoints = await audit_chain.heads(conn, "checkpoint", limit=1)
            heads = await audit_chain.heads(conn, "head", limit=audit_chain.KEEP_HEADS)
            signers = await audit_chain.signers(conn)
            unsealed, since_s = await audit_chain.waiting(conn)
        keys = {kid: IssuerKey(kid=kid, x=b64(x)) for kid, x in signers.items()}
        issued = self._issuer.keys()
        keys |= {key.kid: key for key in issued}  # these say who introduced them
        return AuditSeal(
            checkpoint=checkpoints[0] if checkpoints else None,
            heads=heads,
            keys=tuple(keys.values()),
            unsealed=unsealed,
            unsealed_since=since_s,
        )

    async def publish(self) -> AuditHead | None:
        """Sign the chain's end now, and log it; None where there is no record at all."""
        await self.seal()
        await self._publish(every_s=0.0)
        async with self._database.read() as conn:
            newest = await audit_chain.heads(conn, "head", limit=1)
        return newest[0] if newest else None

    async def prune(self, *, before_s: float) -> AuditPruned:
        """Drop the sealed records from before `before_s`; a signed checkpoint takes their place."""
        removed, checkpoint = 0, None
        while True:
            async with self._database.write() as conn:
                await locked(conn, Lock.AUDIT)
                last = await audit_chain.prunable(conn, before_s=before_s, limit=_PRUNE_BATCH)
                if last is None:
                    break
                checkpoint, x = self._signed("checkpoint", last)
                count = await audit_chain.prune(conn, checkpoint, x)
                facts = {"records": count, "through": last.seq}
                await audit.record(conn, Act(what="audit.pruned", facts=facts), now_s=time.time())
            removed += count
            log.info("audit.pruned", records=count, through=last.seq, checkpoint=checkpoint.text())
        return AuditPruned(removed=removed, checkpoint=checkpoint)

    async def _publish(self, *, every_s: float) -> None:
        """Sign the chain's end if it grew since the last head, and that is `every_s` old."""
        async with self._database.read() as conn:
            if not await self._due(conn, every_s):
                return
        async with self._database.write() as conn:
            await locked(conn, Lock.AUDIT)
            if not await self._due(conn, every_s):  # another replica was faster
                return
            head, x = self._signed("head", await audit_chain.end(conn))
            await audit_chain.add_head(conn, head, x)
        log.info("audit.head_published", seq=head.seq, head=head.text())

    async def _due(self, conn: AsyncConnection, every_s: float) -> bool:
        end = await audit_chain.end(conn)
        newest = await audit_chain.heads(conn, "head", limit=1)
        if not newest:
            return end.seq > 0
        return end.seq != newest[0].seq and time.time() - newest[0].at >= every_s

    def _signed(self, kind: Literal["head", "checkpoint"], end: Sealed) -> tuple[AuditHead, bytes]:
        at = int(time.time())
        made = self._issuer.sign_statement(
            audit_statement(kind, end.seq, bytes.fromhex(end.hash), at)
        )
        head = AuditHead(
            kind=kind, seq=end.seq, hash=end.hash, at=at, kid=made.kid, sig=b64(made.sig)
        )
        return head, made.x
