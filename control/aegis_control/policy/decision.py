"""
The decision about a request for a grant: who asks, what for, and every rule that has a say.

Pure: what the store knows comes in as `Known`. A real request and `policy check` both call
`decide`, so that what the one says is what the other does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aegis_protocol.actions import Action
from aegis_protocol.errors import AegisError
from aegis_protocol.http_api.grants import GrantWish

from aegis_control.identity import Identity
from aegis_control.policy.rules import Policy
from aegis_control.policy.weighing import Asked, Known, Limits, Settings, Why, name_of

__all__ = ["Decision", "Known", "Limits", "Settings", "Why", "decide"]


_NOTHING: Final = Known()


@dataclass(frozen=True)
class Decision:
    """
    channels, actions  of the grant; none when it is refused
    rule               what decided: the first that refused, or else what permits
    reasons            all that refused, in the order of their weight
    """

    allowed: bool
    channels: tuple[str, ...]
    actions: tuple[Action, ...]
    limits: Limits
    reasons: tuple[Why, ...]
    rule: str

    @property
    def error(self) -> AegisError | None:
        return self.reasons[0].error if self.reasons else None

    def check(self) -> None:
        """Raise what refuses, if anything does."""
        if self.error is not None:
            raise self.error


def decide(
    identity: Identity,
    policy: Policy,
    settings: Settings,
    request: GrantWish,
    known: Known = _NOTHING,
) -> Decision:
    """Decide whether `identity` gets a grant for `request`, with what, and say by which rule."""
    rule = policy.rule_for(identity)
    asked = Asked(identity, rule, settings, request, known)
    reasons = asked.objections()
    limits = asked.limits()
    if reasons:
        return Decision(False, (), (), limits, reasons, reasons[0].rule)
    return Decision(
        True, request.required_channels, asked.actions, limits, (), name_of(rule, identity)
    )
