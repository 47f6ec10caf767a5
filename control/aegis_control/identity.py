"""Who is calling: an identity with a role and limits, and the check of what it may ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from aegis_protocol.actions import RANK, ROLE_ACTIONS, Action, Role
from aegis_protocol.channels import ChannelName
from aegis_protocol.failures.http import (
    BoardNotAllowed,
    ChannelNotAllowed,
    RoleInsufficient,
    TargetNotAllowed,
)
from aegis_protocol.http_api import GrantRequest

MCP: Final = "mcp"
"""Everyone who knows MCP_AUTH_SECRET."""

LOCAL: Final = "local"
"""Whoever may open the socket in the state directory."""

LIMIT_KINDS: Final = ("targets", "labels", "agents", "boards", "channels", "jobs")
"""`key_limits` says what each means."""

CHANNEL_ACTION: Final[Mapping[str, Action]] = {
    ChannelName.SOURCE: Action.SOURCE_WRITE,
    ChannelName.PTY: Action.BUILD_READ,
    ChannelName.FIRMWARE: Action.ARTIFACT_READ,
    ChannelName.SERIAL: Action.CONSOLE_READ,
}
"""What a channel is for; without the action it would be of no use."""


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


def granted_actions(
    identity: Identity, request: GrantRequest, allowed_channels: Sequence[str]
) -> tuple[Action, ...]:
    """
    Return the actions of a grant for `request`; the channels are those that it requires.

    Raises ChannelNotAllowed, RoleInsufficient, TargetNotAllowed, BoardNotAllowed.
    """
    _check_channels(identity, request, allowed_channels)
    wanted = identity.actions if request.actions is None else frozenset(request.actions)
    excess = sorted(wanted - identity.actions)
    if excess:
        raise RoleInsufficient(
            f"the action {excess[0]} is not the role {identity.role}'s",
            actions=[str(action) for action in excess],
            role=str(identity.role),
        )
    for channel in request.required_channels:
        needed = CHANNEL_ACTION.get(channel)
        if needed is not None and needed not in wanted:
            raise RoleInsufficient(
                f"the channel {channel} needs the action {needed}, which "
                + (
                    f"the role {identity.role} does not have"
                    if needed not in identity.actions
                    else "the request leaves out"
                ),
                channel=channel,
                action=str(needed),
                role=str(identity.role),
            )
    targets = identity.limits.get("targets")
    if targets is not None and request.target is not None and request.target not in targets:
        raise TargetNotAllowed(
            f"the key may not use the target {request.target}",
            target=request.target,
            allowed=sorted(targets),
        )
    boards = identity.limits.get("boards")
    for wish in request.boards:
        if boards is not None and wish.id is not None and wish.id not in boards:
            raise BoardNotAllowed(f"the key may not use the board {wish.id}", board_id=wish.id)
    return tuple(sorted(wanted))


def _check_channels(
    identity: Identity, request: GrantRequest, allowed_channels: Sequence[str]
) -> None:
    limit = identity.limits.get("channels")
    allowed = [c for c in allowed_channels if limit is None or c in limit]
    refused = [c for c in request.required_channels if c not in allowed]
    if refused:
        raise ChannelNotAllowed(
            f"the channel {refused[0]} is not allowed; allowed are {', '.join(allowed) or 'none'}",
            channels=list(refused),
            allowed=list(allowed),
        )
