"""How an agent joins, and the tokens with which it may."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from aegis_protocol.http_api.issuer import IssuerKey
from aegis_protocol.model import Id, UnixSeconds, Wire


class EnrollRequest(Wire):
    """
    `POST /agents/enroll`.

    token       one-time token, or AGENT_AUTH_SECRET
    public_key  Ed25519, base64url
    signature   over `enroll_statement(sha256 of the token in hex, base_url)`, base64url
    """

    token: str = Field(min_length=1, max_length=256)
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
    public_key: str = Field(max_length=64)
    signature: str = Field(max_length=128)
    base_url: str = Field(max_length=256)


class EnrollReply(Wire):
    agent_id: Id
    issuer_keys: tuple[IssuerKey, ...]
    server_time: UnixSeconds


class EnrollTokenRequest(Wire):
    ttl_secs: int = Field(default=3600, ge=10, le=30 * 86_400)
    name: str | None = Field(default=None, max_length=63)


class EnrollTokenMade(Wire):
    """A new enrolment token; its text is shown this once. `id` names it later."""

    id: Id
    token: str
    name: str | None = None
    expires_at: UnixSeconds


class EnrollTokenRow(Wire):
    """name: the only agent that may use it; used_by: the id of the one that did."""

    id: str
    name: str | None = None
    created_at: UnixSeconds
    expires_at: UnixSeconds
    used_by: Id | None = None
    used_at: UnixSeconds | None = None
    revoked: bool = False


class EnrollTokenList(Wire):
    tokens: tuple[EnrollTokenRow, ...]
