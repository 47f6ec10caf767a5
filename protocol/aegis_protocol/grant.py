"""
The grant: a signed permission to open one peer connection for one job.

A grant is a JWT signed with Ed25519 (RFC 7519, RFC 8037). Control signs it; the agent verifies it
itself, once, when the offer reaches it. `verify` holds every check that needs nothing but the
token, the trusted keys and the clock; what needs memory (a `jti` used before, an attempt or a
fencing number that is too old) the agent checks against its disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from pydantic import Field, StringConstraints, ValidationError

from aegis_protocol.actions import Action
from aegis_protocol.failures.grant import (
    GrantExpired,
    GrantForeignAgent,
    GrantInvalid,
    GrantNotYetValid,
    GrantUnknownIssuer,
)
from aegis_protocol.model import Id, TargetName, UnixSeconds, Wire

ALGORITHM: Final = "EdDSA"
LEEWAY_S: Final = 30.0
MAX_GRANT_LIFE_S: Final = 30
MAX_GRANT_BYTES: Final = 8192

_REQUIRED: Final = ("iss", "sub", "aud", "jti", "iat", "nbf", "exp", "job_id", "attempt")

FingerprintText = Annotated[
    str, StringConstraints(pattern=r"^sha-256:[0-9A-F]{2}(:[0-9A-F]{2}){31}$")
]


class WebRtcLimits(Wire):
    """What the peer connection may carry. Bandwidth in kbit/s, rate in messages per second."""

    allowed_channels: tuple[Annotated[str, StringConstraints(max_length=32)], ...] = Field(
        max_length=16
    )
    max_bandwidth_kbps: int = Field(default=0, ge=0)
    """0: no limit."""
    max_message_rate: int = Field(default=0, ge=0)
    """0: no limit."""
    peer_fingerprint: FingerprintText


class Execution(Wire):
    """What the job may use on the agent."""

    target: TargetName | None = None
    cpu_cores: float = Field(default=1.0, gt=0, le=1024)
    memory_mb: int = Field(default=1024, gt=0, le=1 << 24)
    timeout_secs: int = Field(default=600, ge=1, le=86_400)
    boards: dict[Id, int] = Field(default_factory=dict, max_length=64)
    """Board id to fencing number."""


class GrantClaims(Wire):
    """The claims of a grant; times in unix seconds."""

    iss: str = Field(max_length=512)
    sub: Id
    aud: Id
    jti: Id
    iat: UnixSeconds
    nbf: UnixSeconds
    exp: UnixSeconds
    job_id: Id
    attempt: int = Field(default=1, ge=1)
    actions: tuple[Action, ...] = ()
    webrtc: WebRtcLimits
    execution: Execution


def sign(claims: GrantClaims, key: Ed25519PrivateKey, kid: str) -> str:
    """Return `claims` as a signed JWT."""
    return jwt.encode(
        claims.model_dump(mode="json"), key, algorithm=ALGORITHM, headers={"kid": kid}
    )


def verify(
    token: str,
    issuer_keys: Mapping[str, Ed25519PublicKey],
    *,
    audience: str,
    now_s: float,
    skew_s: float | None = None,
) -> GrantClaims:
    """
    Return the claims of `token` if it is genuine, meant for `audience` and in time.

    issuer_keys  the trusted keys by `kid`
    skew_s       this clock minus control's, as far as it is known; stands in the errors only

    Raises
    ------
    GrantUnknownIssuer  its `kid` is not among the trusted ones
    GrantInvalid        the signature is wrong, a claim is missing or malformed
    GrantForeignAgent   it is for another agent
    GrantNotYetValid, GrantExpired  with both clocks in the facts; 30 s are forgiven
    """
    if len(token) > MAX_GRANT_BYTES:
        raise GrantInvalid("the grant is larger than any grant can be")
    try:
        kid = jwt.get_unverified_header(token).get("kid")
    except jwt.PyJWTError as exc:
        raise GrantInvalid("the grant is not a JWT") from exc
    key = issuer_keys.get(kid) if isinstance(kid, str) else None
    if key is None:
        raise GrantUnknownIssuer("the grant is signed with a key that this agent does not trust")
    try:
        raw = jwt.decode(
            token,
            key,
            algorithms=[ALGORITHM],
            options={
                "require": list(_REQUIRED),
                "verify_aud": False,
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
            },
        )
        claims = GrantClaims.model_validate(raw)
    except (jwt.PyJWTError, ValidationError) as exc:
        raise GrantInvalid("the grant's signature or content is not valid") from exc
    if claims.aud != audience:
        raise GrantForeignAgent("the grant is for another agent", audience=claims.aud)
    if claims.exp - min(claims.iat, claims.nbf) > MAX_GRANT_LIFE_S:
        raise GrantInvalid("the grant lives longer than grants may")
    if now_s < max(claims.nbf, claims.iat) - LEEWAY_S:
        raise GrantNotYetValid(
            "the grant's time has not come yet", now=now_s, nbf=claims.nbf, skew_s=skew_s
        )
    if now_s > claims.exp + LEEWAY_S:
        raise GrantExpired("the grant's time is over", now=now_s, exp=claims.exp, skew_s=skew_s)
    return claims
