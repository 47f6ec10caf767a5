"""Who is calling: an identity with a role and limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from aegis_protocol.actions import RANK, ROLE_ACTIONS, Action, Role
from aegis_protocol.failures.http import RoleInsufficient

MCP: Final = "mcp"
"""Everyone who knows MCP_AUTH_SECRET."""

LOCAL: Final = "local"
"""Whoever may open the socket in the state directory."""

LIMIT_KINDS: Final = ("targets", "labels", "agents", "boards", "channels", "jobs")
"""`key_limits` says what each means."""


@dataclass(frozen=True)
class Identity:
    """limits: by kind (`LIMIT_KINDS`); a kind that is absent is not limited."""

    id: str
    role: Role
    limits: Mapping[str, Sequence[str]] = field(default_factory=dict)
    expires_at: float | None = None

    @property
    def actions(self) -> frozenset[Action]:
        return ROLE_ACTIONS[self.role]

    def has(self, role: Role) -> bool:
        return RANK[self.role] >= RANK[role]

    def require(self, role: Role) -> None:
        """Raise RoleInsufficient unless this identity's role is `role` or higher."""
        if not self.has(role):
            raise RoleInsufficient(
                f"this needs the role {role}, the key has {self.role}",
                needed=str(role),
                role=str(self.role),
            )
