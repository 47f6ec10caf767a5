"""
API keys and enrolment tokens: made, checked, taken back.

A key is `aegis_sk_<id>_<256-bit secret>`. It is looked up by its id; what is kept of it is the
HMAC-SHA256 of the secret under a pepper that lies outside the database. Every compare takes the
same time whether it fails at the first byte or the last.
"""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Final

from aegis_protocol.actions import Role
from aegis_protocol.failures.http import EnrollRefused, KeyWrong
from aegis_protocol.http_api.enrollment import EnrollTokenMade, EnrollTokenRow
from aegis_protocol.http_api.keys import KeyMade, KeyRow
from aegis_protocol.ids import new_secret

from aegis_control.identity import MCP, Identity
from aegis_control.store import audit, identities, keys
from aegis_control.store.audit import Act
from aegis_control.store.database import Database

_KEY: Final = re.compile(r"^aegis_sk_([a-z2-7]{8,32})_([a-z2-7]{40,80})$")
_NO_DIGEST: Final = b"\0" * 32

UNKNOWN: Final = "unknown"
"""The `reason` of a key that is nobody's, and may be a guess."""


class Keyring:
    """mcp_secrets, agent_secrets: the shared secrets that count, newest first."""

    def __init__(
        self,
        database: Database,
        pepper: bytes,
        *,
        mcp_secrets: Sequence[str],
        agent_secrets: Sequence[str],
    ) -> None:
        self._database = database
        self._pepper = pepper
        self._mcp_secrets = tuple(mcp_secrets)
        self._agent_secrets = tuple(agent_secrets)

    async def identify(self, presented: str) -> Identity:
        """Return whose key `presented` is. KeyWrong when it is nobody's, expired or revoked."""
        if self.is_shared_secret(presented):
            return self.shared()
        record = await self.genuine(presented)
        check_good(record)
        return identity_of(record)

    async def genuine(self, presented: str) -> keys.KeyRecord:
        """Return the key that `presented` is, good or not any more. KeyWrong when it is none."""
        match = _KEY.match(presented)
        if match is None:
            raise KeyWrong("the key is not one of ours", reason=UNKNOWN)
        async with self._database.read() as conn:
            record = await keys.get(conn, match[1])
        digest = record.digest if record is not None else _NO_DIGEST
        genuine = hmac.compare_digest(digest, self._digest("key", match[2]))
        if record is None or not genuine:
            raise KeyWrong("the key is not one of ours", key_id=match[1], reason=UNKNOWN)
        return record

    def is_shared_secret(self, presented: str) -> bool:
        """Tell whether `presented` is MCP_AUTH_SECRET, or the one before."""
        return _is_one_of(presented, self._mcp_secrets)

    def is_previous(self, presented: str) -> bool:
        """Tell whether it is one of the shared secrets, and not the first of its kind any more."""
        first = (*self._mcp_secrets[:1], *self._agent_secrets[:1])
        every = (*self._mcp_secrets, *self._agent_secrets)
        return _is_one_of(presented, every) and not _is_one_of(presented, first)

    def shared(self) -> Identity:
        """Everyone who knows MCP_AUTH_SECRET."""
        return Identity(MCP, Role.FLASHER)

    async def make_key(
        self,
        role: Role,
        *,
        name: str = "",
        limits: Mapping[str, Sequence[str]] | None = None,
        expires_in_s: float | None = None,
    ) -> KeyMade:
        """Make a key; its text is in the reply and nowhere else."""
        key_id, secret, now_s = new_secret(80), new_secret(), time.time()
        expires_at = None if expires_in_s is None else now_s + expires_in_s
        async with self._database.write() as conn:
            await keys.add(
                conn,
                key_id,
                self._digest("key", secret),
                role,
                name=name,
                limits=limits or {},
                now_s=now_s,
                expires_at=expires_at,
            )
            facts = {
                "key_id": key_id,
                "role": str(role),
                "name": name,
                "limits": {kind: list(words) for kind, words in (limits or {}).items()},
                "expires_at": expires_at,
            }
            await audit.record(conn, Act(what="key.created", facts=facts), now_s=now_s)
        return KeyMade(
            id=key_id,
            role=role,
            key=f"aegis_sk_{key_id}_{secret}",
            name=name,
            expires_at=expires_at,
            limits={kind: tuple(words) for kind, words in (limits or {}).items()},
        )

    async def rows(self, *, prefix: str = "") -> tuple[KeyRow, ...]:
        """The keys whose ids begin with `prefix`, oldest first."""
        async with self._database.read() as conn:
            records = await keys.every(conn, prefix=prefix)
            asked = await identities.asked(conn, [record.id for record in records])
        return tuple(
            KeyRow(
                id=record.id,
                role=record.role,
                name=record.name,
                created_at=record.created_at,
                expires_at=record.expires_at,
                revoked=record.revoked_at is not None,
                limits={kind: tuple(words) for kind, words in record.limits.items()},
                asked_at=asked.get(record.id),
            )
            for record in records
        )

    async def empty(self) -> bool:
        async with self._database.read() as conn:
            return await keys.count(conn) == 0

    async def make_token(self, *, ttl_s: float, name: str | None) -> EnrollTokenMade:
        """Make an enrolment token for one agent (of that name, if one is given)."""
        token_id, now_s = new_secret(80), time.time()
        token, expires_at = f"aegis_et_{token_id}_{new_secret()}", now_s + ttl_s
        async with self._database.write() as conn:
            await keys.add_token(
                conn,
                token_id,
                self._digest("token", token),
                name=name,
                now_s=now_s,
                expires_at=expires_at,
            )
            facts = {"token_id": token_id, "name": name, "expires_at": expires_at}
            await audit.record(conn, Act(what="token.created", facts=facts), now_s=now_s)
        return EnrollTokenMade(id=token_id, token=token, name=name, expires_at=expires_at)

    async def tokens(self) -> tuple[EnrollTokenRow, ...]:
        """The enrolment tokens, oldest first; an expired one for a week."""
        async with self._database.read() as conn:
            records = await keys.tokens(conn)
        return tuple(
            EnrollTokenRow(
                id=record.id,
                name=record.name,
                created_at=record.created_at,
                expires_at=record.expires_at,
                used_by=record.used_by,
                used_at=record.used_at,
                revoked=record.revoked_at is not None,
            )
            for record in records
        )

    async def revoke_token(self, token_id: str) -> bool:
        """Take a token back; False when there is none of that id."""
        now_s = time.time()
        async with self._database.write() as conn:
            found = await keys.revoke_token(conn, token_id, now_s=now_s)
            if found:
                act = Act(what="token.revoked", facts={"token_id": token_id})
                await audit.record(conn, act, now_s=now_s)
        return found

    def is_agent_secret(self, presented: str) -> bool:
        """Tell whether `presented` is AGENT_AUTH_SECRET."""
        return _is_one_of(presented, self._agent_secrets)

    def token_digest(self, token: str) -> bytes:
        return self._digest("token", token)

    def _digest(self, kind: str, secret: str) -> bytes:
        message = f"{kind}:{secret}".encode("utf-8", "surrogateescape")
        return hmac.new(self._pepper, message, sha256).digest()


def check_good(record: keys.KeyRecord) -> None:
    """Raise KeyWrong when the key was revoked or has expired."""
    if record.revoked_at is not None:
        raise revoked_key(record.id)
    if record.expires_at is not None and record.expires_at <= time.time():
        raise KeyWrong(
            "the key has expired",
            key_id=record.id,
            reason="expired",
            expires_at=record.expires_at,
        )


def revoked_key(key_id: str) -> KeyWrong:
    return KeyWrong("the key was revoked", key_id=key_id, reason="revoked")


def identity_of(record: keys.KeyRecord) -> Identity:
    """Whose key it is, whether it still is good or not."""
    return Identity(record.id, record.role, dict(record.limits), record.expires_at)


def refused_token() -> EnrollRefused:
    """One error for every wrong token, so that nobody learns which it was."""
    return EnrollRefused("the token is unknown, used up, expired or for another name")


def _is_one_of(presented: str, secrets: Sequence[str]) -> bool:
    given = presented.encode("utf-8", "surrogateescape")
    matches = [hmac.compare_digest(given, secret.encode()) for secret in secrets]
    return any(matches)
