"""API keys: what they may, and what a secret is."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints

from aegis_protocol.actions import Action, Role
from aegis_protocol.http_api.grants import ChannelText
from aegis_protocol.model import Id, TargetName, UnixSeconds, Wire
from aegis_protocol.states import JobState

KeyLimits = Annotated[
    dict[
        Annotated[str, StringConstraints(max_length=40)],
        Annotated[
            tuple[Annotated[str, StringConstraints(max_length=160)], ...], Field(max_length=256)
        ],
    ],
    Field(max_length=16),
]
"""Words by kind: targets, labels, agents, boards, channels, and jobs (one number)."""


MAX_KEY_LIFE_S: Final = 100 * 366 * 86_400


class WhoAmI(Wire):
    """My key. `limits`: what it is limited to, by kind."""

    identity: Id
    role: Role
    actions: tuple[Action, ...]
    limits: KeyLimits = Field(default_factory=dict)
    expires_at: UnixSeconds | None = None


class KeyMade(Wire):
    """A new API key; its secret is shown this once."""

    id: Id
    role: Role
    key: str
    name: str = ""
    expires_at: UnixSeconds | None = None
    limits: KeyLimits = Field(default_factory=dict)


class KeyRow(Wire):
    """asked_at: when it last asked for a new job."""

    id: Id
    role: Role
    name: str
    created_at: UnixSeconds
    expires_at: UnixSeconds | None = None
    revoked: bool = False
    limits: KeyLimits = Field(default_factory=dict)
    asked_at: UnixSeconds | None = None


class KeyList(Wire):
    keys: tuple[KeyRow, ...]


class KeyRequest(Wire):
    role: Role
    name: str = Field(default="", max_length=80)
    expires_in_secs: int | None = Field(default=None, ge=1, le=MAX_KEY_LIFE_S)
    limits: KeyLimits = Field(default_factory=dict)


class VerifyTokenRequest(Wire):
    """token: an API key, a grant, an enrolment token or a shared secret."""

    token: str = Field(min_length=1, max_length=16_384)


class TokenVerdict(Wire):
    """
    What a secret is. why: in words, why it is good or not; code: the error that it would meet.

    name  the key's; of a token the agent that it is for; of a grant its agent's
    """

    kind: Literal["key", "shared_secret", "agent_secret", "enroll_token", "grant", "unknown"]
    valid: bool
    why: str
    code: str | None = None
    id: str | None = None
    name: str | None = None
    identity: Id | None = None
    role: Role | None = None
    actions: tuple[Action, ...] = ()
    channels: tuple[ChannelText, ...] = ()
    limits: KeyLimits = Field(default_factory=dict)
    job_id: Id | None = None
    job_state: JobState | None = None
    agent_id: Id | None = None
    target: TargetName | None = None
    boards: tuple[Id, ...] = ()
    peer_fingerprint: str | None = None
    issued_at: UnixSeconds | None = None
    expires_at: UnixSeconds | None = None
