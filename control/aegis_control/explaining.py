"""What a secret text is, whether it is good, until when and for what: keys, tokens and grants."""

from __future__ import annotations

import time
from typing import Final

import jwt
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.grant import (
    GrantError,
    GrantExpired,
    GrantNotYetValid,
    GrantRevoked,
    GrantStale,
)
from aegis_protocol.failures.http import JobOver, KeyWrong
from aegis_protocol.grant import GrantClaims
from aegis_protocol.http_api.keys import TokenVerdict
from aegis_protocol.states import ended

from aegis_control.issuer import Issuer
from aegis_control.jobs import not_found
from aegis_control.keyring import Keyring, check_good, identity_of, refused_token
from aegis_control.store import jobs, keys, sessions
from aegis_control.store.database import Database
from aegis_control.store.jobs import LIVE, JobRecord

_KEY: Final = "aegis_sk_"
_TOKEN: Final = "aegis_et_"  # noqa: S105 - the beginning of one


class Explaining:
    def __init__(self, database: Database, keyring: Keyring, issuer: Issuer) -> None:
        self._database = database
        self._keyring = keyring
        self._issuer = issuer

    async def explain(self, text: str) -> TokenVerdict:
        """Say all that control knows of `text`; never an error, whatever it is."""
        if self._keyring.is_shared_secret(text):
            return self._shared_secret(text)
        if self._keyring.is_agent_secret(text):
            return TokenVerdict(
                kind="agent_secret",
                valid=True,
                why=f"AGENT_AUTH_SECRET{self._which(text)}: any machine that has it may enrol; it "
                "lets nobody in else",
            )
        if text.startswith(_KEY):
            return await self._key(text)
        if text.startswith(_TOKEN):
            return await self._token(text)
        if text.startswith("ey") and text.count(".") == 2:
            return await self._grant(text)
        return TokenVerdict(
            kind="unknown",
            valid=False,
            why="neither an API key (aegis_sk_…), an enrolment token (aegis_et_…), a grant (a JWT) "
            "nor one of this control's shared secrets",
        )

    def _which(self, text: str) -> str:
        return "_PREVIOUS (until that is unset)" if self._keyring.is_previous(text) else ""

    def _shared_secret(self, text: str) -> TokenVerdict:
        identity = self._keyring.shared()
        return TokenVerdict(
            kind="shared_secret",
            valid=True,
            why=f"MCP_AUTH_SECRET{self._which(text)}: everyone who has it is the same identity",
            identity=identity.id,
            role=identity.role,
            actions=tuple(sorted(identity.actions)),
        )

    async def _key(self, text: str) -> TokenVerdict:
        try:
            record = await self._keyring.genuine(text)
        except KeyWrong as exc:
            return _bad("key", exc)
        identity = identity_of(record)
        verdict = TokenVerdict(
            kind="key",
            valid=True,
            why="an API key of this control",
            id=record.id,
            name=record.name,
            identity=identity.id,
            role=identity.role,
            actions=tuple(sorted(identity.actions)),
            limits={kind: tuple(words) for kind, words in identity.limits.items()},
            issued_at=record.created_at,
            expires_at=record.expires_at,
        )
        try:
            check_good(record)
        except KeyWrong as exc:
            return _but(verdict, exc)
        return verdict

    async def _token(self, text: str) -> TokenVerdict:
        digest = self._keyring.token_digest(text)
        async with self._database.read() as conn:
            found = await keys.tokens(conn, digest=digest)
        if not found:
            return _bad("enroll_token", refused_token())
        (token,) = found
        valid, why = True, "one machine may enrol with it"
        if token.used_by is not None:
            valid, why = False, f"it was used by {token.used_by}, which alone may repeat itself"
        elif token.revoked_at is not None:
            valid, why = False, "it was revoked"
        elif token.expires_at <= time.time():
            valid, why = False, "it has expired"
        if token.name is not None:
            why += f"; only for the agent {token.name}"
        return TokenVerdict(
            kind="enroll_token",
            valid=valid,
            why=why,
            code=None if valid else refused_token().code,
            id=token.id or None,
            name=token.name,
            agent_id=token.used_by,
            issued_at=token.created_at,
            expires_at=token.expires_at,
        )

    async def _grant(self, text: str) -> TokenVerdict:
        wrong: AegisError | None = None
        try:
            claims = self._issuer.verify(text)
        except (GrantExpired, GrantNotYetValid) as exc:  # both are said of genuine grants alone
            claims = GrantClaims.model_validate(
                jwt.decode(text, options={"verify_signature": False})
            )
            wrong = exc
        except GrantError as exc:
            return _bad("grant", exc)
        async with self._database.read() as conn:
            job = await jobs.get(conn, claims.job_id)
            row = await sessions.one(conn, claims.jti)
        wrong = _stands_against(claims, job) or wrong
        if row is not None and row.revoked_at is not None:
            wrong = GrantRevoked("an operator took the permission back")
        verdict = TokenVerdict(
            kind="grant",
            valid=True,
            why="opens one connection"
            if row is None or row.offered_at is None
            else "it was offered to its agent, which takes it once",
            id=claims.jti,
            identity=claims.sub,
            actions=claims.actions,
            channels=claims.webrtc.allowed_channels,
            job_id=claims.job_id,
            job_state=None if job is None else job.state,
            agent_id=claims.aud,
            name="" if row is None else row.agent_name or "",
            target=claims.execution.target,
            boards=tuple(sorted(claims.execution.boards)),
            peer_fingerprint=claims.webrtc.peer_fingerprint,
            issued_at=claims.iat,
            expires_at=claims.exp,
        )
        return verdict if wrong is None else _but(verdict, wrong)


def _stands_against(claims: GrantClaims, job: JobRecord | None) -> AegisError | None:
    """What is wrong with the grant's job, which control would refuse an offer for."""
    if job is None:
        return not_found(claims.job_id)
    if ended(job.state):
        return JobOver(f"the job is {job.state}")
    if job.state not in LIVE:
        return GrantStale("the job waits for an agent again")
    if job.agent_id != claims.aud or job.attempt != claims.attempt:
        return GrantStale(f"the job was handed out anew since: attempt {job.attempt}")
    return None


def _bad(kind: str, error: AegisError) -> TokenVerdict:
    return TokenVerdict.model_validate(
        {"kind": kind, "valid": False, "why": error.message, "code": error.code}
    )


def _but(verdict: TokenVerdict, error: AegisError) -> TokenVerdict:
    return verdict.model_copy(update={"valid": False, "why": error.message, "code": error.code})
