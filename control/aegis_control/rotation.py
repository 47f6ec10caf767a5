"""
The change of the issuer's key, and every replica's knowledge of it.

With SQLite the private key is the file in the state directory; a new one lies beside it until the
store knows it. With a shared database it lies there, sealed with AEGIS_SEAL_KEY, and signs only a
few seconds after it was made: by then every replica and every agent with a link trusts it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from aegis_protocol.control_link import IssuerKeys
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.http import AgentOffline, RotationRefused
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy.exc import DBAPIError

from aegis_control.hub import set_within
from aegis_control.issuer import Issuer, kid_of, read_key, write_key
from aegis_control.link.registry import Links
from aegis_control.log import get_logger
from aegis_control.sealing import Seal
from aegis_control.store import issuer_keys
from aegis_control.store.audit import Act, record
from aegis_control.store.database import Database
from aegis_control.store.issuer_keys import IssuerKeyRecord

log = get_logger("issuer")

_SPREAD_S: Final = 5.0
"""How long a new key is known at all replicas before it signs."""
_LOOK_S: Final = 2.0
"""A word on the bus can be lost: so often the keys are read without one."""
_ALONE_LOOK_S: Final = 60.0


class Rotation:
    """
    path   the file of the key that signs, where the database is not shared
    links  those to tell; the keys are read before there are any
    """

    def __init__(
        self, database: Database, issuer: Issuer, links: Links, seal: Seal | None, path: Path
    ) -> None:
        self._database = database
        self._issuer = issuer
        self._links = links
        self._seal = seal
        self._path = path
        self._next = path.with_suffix(".next.pem")
        self._mine: dict[str, Ed25519PrivateKey] = {issuer.kid: issuer.key}
        self._changed = asyncio.Event()
        database.bus.subscribe("issuer", lambda _: self._changed.set())

    async def begin(self) -> None:
        """
        Read the keys, and put our own among them if it is new there.

        Raises SealWrong; StateUnusable when the key that signs is not to be had.
        """
        async with self._database.alone("issuer"):
            found = await self.every()
            known = {one.key.kid for one in found}
            if not self._database.shared:
                await asyncio.to_thread(self._finish, known)
            if self._issuer.kid not in known and not (found and self._database.shared):
                await self._add_own(found)
        await self.look()

    async def rotate(self) -> tuple[IssuerKeyRecord, ...]:
        """Make a new key, signed by the one that signs now. RotationRefused."""
        shared = self._database.shared
        if shared and self._seal is None:
            raise RotationRefused("replicas share no secret without AEGIS_SEAL_KEY")
        async with self._database.alone("issuer"):
            await self.look()
            found = await self.every()
            if found[-1].signs_at > time.time():
                raise RotationRefused(
                    "a new key was made a moment ago and does not sign yet",
                    remedy="Wait some seconds, then rotate again.",
                )
            key = Ed25519PrivateKey.generate()
            introduced = self._issuer.introduce(key)
            now_s = time.time()
            if not shared:
                await asyncio.to_thread(write_key, self._next, key)
            async with self._database.write() as conn:
                await issuer_keys.add(
                    conn,
                    introduced,
                    now_s=now_s,
                    signs_at=now_s + _SPREAD_S if shared else now_s,
                    sealed=self._sealed(introduced.kid, key),
                )
                facts = {"kid": introduced.kid, "prev_kid": introduced.prev_kid}
                await record(conn, Act(what="issuer.rotated", facts=facts), now_s=now_s)
            if not shared:
                await asyncio.to_thread(self._finish, {introduced.kid})
        log.warning("issuer.rotated", kid=introduced.kid, prev_kid=introduced.prev_kid)
        await self.look()
        return await self.every()

    async def every(self) -> tuple[IssuerKeyRecord, ...]:
        """All keys, oldest first."""
        async with self._database.read() as conn:
            return await issuer_keys.every(conn)

    async def run(self, stopping: asyncio.Event) -> None:
        """Follow what other replicas do, until `stopping` is set and `wake` is called after it."""
        while not stopping.is_set():
            await set_within(self._changed, _LOOK_S if self._database.shared else _ALONE_LOOK_S)
            self._changed.clear()
            try:
                await self.look()
            except DBAPIError as exc:
                log.error("issuer.not_read", detail=str(exc.orig))  # noqa: TRY400
                await set_within(stopping, _LOOK_S)
            except AegisError as exc:
                log.error("issuer.not_followed", code=exc.code, detail=exc.message)  # noqa: TRY400
                await set_within(stopping, _LOOK_S)

    def wake(self) -> None:
        self._changed.set()

    async def look(self) -> None:
        """Sign with the key whose turn it is, and tell the agents here what they may trust."""
        found = await self.every()
        now_s = time.time()
        due = [one for one in found if one.signs_at <= now_s]
        if not self._database.shared:  # a file that was put back may be older than the store
            due = [one for one in due if one.key.kid in self._mine]
        if not due:
            return
        key = await self._private(due[-1])
        if not self._issuer.follow([one.key for one in found], key):
            return
        log.info("issuer.followed", kid=self._issuer.kid, keys=len(found))
        frame = IssuerKeys(issuer_keys=self._issuer.keys())
        for link in self._links.own().values():
            try:
                link.send(frame)
            except AgentOffline:
                continue  # its next welcome says it

    async def _private(self, one: IssuerKeyRecord) -> Ed25519PrivateKey:
        kid = one.key.kid
        if kid in self._mine:
            return self._mine[kid]
        if self._seal is None or one.sealed is None:
            raise RotationRefused(f"the key {kid}, which signs now, is not to be had here")
        raw, newest = self._seal.open(_name(kid), one.sealed)
        key = self._mine[kid] = Ed25519PrivateKey.from_private_bytes(raw)
        if not newest:
            async with self._database.write() as conn:
                await issuer_keys.reseal(conn, kid, self._seal.close(_name(kid), raw))
        return key

    async def _add_own(self, known: Sequence[IssuerKeyRecord]) -> None:
        """The key that we have stands in no chain: it begins one."""
        own = self._issuer.keys()[-1]
        if known:
            log.warning(
                "issuer.key_replaced",
                kid=own.kid,
                remedy="Agents trust only the key from before: enrol them again.",
            )
        now_s = time.time()
        async with self._database.write() as conn:
            sealed = self._sealed(own.kid, self._issuer.key)
            await issuer_keys.add(conn, own, now_s=now_s, signs_at=now_s, sealed=sealed)

    def _sealed(self, kid: str, key: Ed25519PrivateKey) -> bytes | None:
        if self._seal is None or not self._database.shared:
            return None
        return self._seal.close(_name(kid), key.private_bytes_raw())

    def _finish(self, known: Collection[str]) -> None:
        """Give the new key its place, if the store knows it; else it was never used."""
        try:
            key = read_key(self._next)
        except FileNotFoundError:
            return
        if kid_of(key) in known:
            self._mine[kid_of(key)] = key
            self._next.replace(self._path)
        else:
            self._next.unlink()


def _name(kid: str) -> str:
    return f"issuer {kid}"
