"""What the policy decides, and what it says."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from aegis_protocol.actions import Action, Role
from aegis_protocol.http_api.grants import ChannelText, GrantWish
from aegis_protocol.http_api.keys import KeyLimits
from aegis_protocol.model import Id, UnixSeconds, Wire


class PolicyCheckRequest(Wire):
    """
    `POST /services/policy/check`: what would be decided.

    key_id        a key's id, or `mcp`
    role, limits  decide as for a key of that id with this role and these limits, instead of
                  those that it has (it need not be there)
    """

    key_id: Id = "anybody"
    role: Role | None = None
    limits: KeyLimits = Field(default_factory=dict)
    wish: GrantWish


class PolicyReason(Wire):
    """rule: whose word it is: a policy rule, a key's limit, a role, a setting, the request."""

    rule: str
    code: str
    message: str
    remedy: str


class PolicyDecision(Wire):
    """
    rule    what decided
    limits  which agents and boards the job may get, and how many jobs at once, by kind
    error   what the real request would be refused with

    A limit of 0 is none.
    """

    identity: Id
    role: Role
    allowed: bool
    rule: str
    reasons: tuple[PolicyReason, ...] = ()
    channels: tuple[ChannelText, ...] = ()
    actions: tuple[Action, ...] = ()
    max_bandwidth_kbps: int
    max_message_rate: int
    max_job_secs: int
    limits: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    error: dict[str, Any] | None = None


class PolicyShown(Wire):
    """
    The policy in force. file: where it came from; none: there is no rule, the defaults count.

    trouble  what is wrong with the file as it is now; the policy shown is the older one
    """

    file: str | None = None
    loaded_at: UnixSeconds
    sha256: str
    rules: tuple[dict[str, Any], ...] = ()
    trouble: dict[str, Any] | None = None
