"""How a machine joins: a token, its own public key, and the proof that it holds the key."""

from __future__ import annotations

import time
from hashlib import sha256

from aegis_protocol.failures.http import BadRequest, EnrollNameTaken, EnrollRefused
from aegis_protocol.http_api.enrollment import EnrollReply, EnrollRequest
from aegis_protocol.ids import public_id
from aegis_protocol.signing import enroll_statement, unb64, verified

from aegis_control.issuer import Issuer
from aegis_control.keyring import Keyring, refused_token
from aegis_control.log import get_logger
from aegis_control.membership import refusal
from aegis_control.store import agents, audit, keys
from aegis_control.store.audit import Act
from aegis_control.store.database import Database
from aegis_control.store.locks import Lock, locked

log = get_logger("enroll")


class Enrollment:
    """base_url: what agents must call this control."""

    def __init__(
        self, database: Database, keyring: Keyring, issuer: Issuer, *, base_url: str
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._issuer = issuer
        self._base_url = base_url

    async def enroll(self, request: EnrollRequest) -> EnrollReply:
        """
        Add an agent, or give a known key its new name.

        A token is used up in the same transaction. Raises BadRequest, EnrollRefused,
        EnrollNameTaken, AgentRevoked; nothing has changed then.
        """
        if request.base_url.rstrip("/") != self._base_url:
            raise BadRequest(
                f"base_url: this control calls itself {self._base_url}",
                remedy="Set CONTROL_PUBLIC_BASE_URL on control and CONTROL_BASE_URL here alike.",
                field="base_url",
                base_url=self._base_url,
            )
        public_key = _proven_key(request, self._base_url)
        agent_id, now_s = public_id(public_key), time.time()
        async with self._database.write() as conn:
            if not self._keyring.is_agent_secret(request.token):
                digest = self._keyring.token_digest(request.token)
                if not await keys.use_token(conn, digest, agent_id, request.name, now_s=now_s):
                    raise refused_token()
            await locked(conn, Lock.AGENT_NAMES)
            known = await agents.get(conn, agent_id)
            revoked = None if known is None else refusal(known)
            if revoked is not None:
                raise revoked
            holder = await agents.named(conn, request.name)
            if holder is not None and holder.id != agent_id:
                raise EnrollNameTaken(
                    f"another agent is called {request.name}", name=request.name, holder=holder.id
                )
            await agents.enroll(conn, agent_id, request.name, public_key, now_s=now_s)
            joined = Act(
                what="agent.enrolled",
                who=agent_id,
                agent_id=agent_id,
                outcome=request.name,
                facts={"again": known is not None},
            )
            await audit.record(conn, joined, now_s=now_s)
        log.info("agent.enrolled", agent_id=agent_id, name=request.name)
        return EnrollReply(agent_id=agent_id, issuer_keys=self._issuer.keys(), server_time=now_s)


def _proven_key(request: EnrollRequest, base_url: str) -> bytes:
    """The public key, if the request is signed with its private half."""
    try:
        public_key, signature = unb64(request.public_key), unb64(request.signature)
    except ValueError as exc:
        raise BadRequest("public_key and signature are base64url", field="public_key") from exc
    if len(public_key) != 32:
        raise BadRequest("public_key: an Ed25519 key has 32 bytes", field="public_key")
    digest = sha256(request.token.encode("utf-8", "surrogatepass")).hexdigest()
    if not verified(public_key, signature, enroll_statement(digest, base_url)):
        raise EnrollRefused(
            "the signature is not this key's over this token",
            remedy="Agent and control may be of different versions: compare `--version`.",
        )
    return public_key
